/**
 * The file `index` beside a data file: its DataTable, so that a restart needs neither the blob nor the image that brought it. Its key is the digest of what it says: images share a data file when
 * they agree on the whole table, whatever they think of the blob otherwise.
 *
 * Sections: a JSON object (codec, blob, plain fields and the names and types of the decoder's arrays), the seven arrays of the UnitTable, the decoder's arrays one behind the
 * other, each padded to 8 bytes.
 */

import { createHash } from "node:crypto";
import { type Digest, isDigest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { alignUp } from "../base/ranges.ts";
import type { DataTable, DecodeTable, UnitTable } from "../formats/format.ts";
import { readSections, type SectionFormat, writeSections } from "./section-file.ts";

const FORMAT: SectionFormat = { magic: "HSDATA\0\0", version: 1, sectionCount: 9 };

type NumberArray = Uint8Array | Uint16Array | Uint32Array | Float64Array;
const CLASSES = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f64: Float64Array } as const;
type ArrayType = keyof typeof CLASSES;

interface Head {
  readonly codec: string;
  readonly blob: { readonly digest: Digest; readonly size: number };
  readonly fields: readonly { readonly name: string; readonly type: ArrayType; readonly length: number }[];
  readonly plain: Readonly<Record<string, unknown>>;
}

const UNIT_ARRAYS = [
  ["unitStart", "f64"],
  ["unitEnd", "f64"],
  ["unitDecodedLength", "f64"],
  ["pieceAddress", "f64"],
  ["pieceLength", "f64"],
  ["pieceUnit", "u32"],
  ["pieceOffset", "f64"],
] as const satisfies readonly (readonly [keyof UnitTable, ArrayType])[];

/** What identifies a table. */
export function dataTableDigest(table: DataTable): Digest {
  const hash = createHash("sha256");
  for (const section of sectionsOf(table)) hash.update(`${section.byteLength}\n`).update(section);
  return `sha256:${hash.digest("hex")}` as Digest;
}

export async function writeDataTable(path: string, table: DataTable): Promise<void> {
  await writeSections(path, FORMAT, sectionsOf(table), { durable: true });
}

/** `pieceDigest` is null in it. Throws as readSections, HS_DIGEST_MISMATCH when it is another table than `digest` says, HS_MALFORMED. */
export async function readDataTable(path: string, digest: Digest): Promise<DataTable> {
  const malformed = (what: string) => new HeadstartError("HS_MALFORMED", { what: `${path}: ${what}` });
  const [first, ...rest] = await readSections(path, FORMAT);
  const head = readHead(first!, malformed);
  const arrays = UNIT_ARRAYS.map(([, type], index) => arrayOf(type, rest[index]!, malformed));
  const [unitStart, unitEnd, unitDecodedLength, pieceAddress, pieceLength, pieceUnit, pieceOffset] = arrays as [
    Float64Array,
    Float64Array,
    Float64Array,
    Float64Array,
    Float64Array,
    Uint32Array,
    Float64Array,
  ];
  const table: DataTable = {
    units: {
      blobs: [head.blob],
      unitCount: unitStart.length,
      unitBlob: new Uint16Array(new SharedArrayBuffer(unitStart.length * 2)),
      unitStart,
      unitEnd,
      unitDecodedLength,
      unitDigest: null,
      pieceCount: pieceAddress.length,
      pieceAddress,
      pieceLength,
      pieceUnit,
      pieceOffset,
      pieceDigest: null,
      pieceDigestAlgorithm: null,
    },
    decode: readDecode(head, rest[UNIT_ARRAYS.length]!, malformed),
  };
  const got = dataTableDigest(table);
  if (got !== digest) throw new HeadstartError("HS_DIGEST_MISMATCH", { what: `${path} is ${got}, not ${digest}` });
  return table;
}

function sectionsOf({ units, decode }: DataTable): Uint8Array[] {
  const fields: Head["fields"][number][] = [];
  const plain: Record<string, unknown> = {};
  const parts: Uint8Array[] = [];
  for (const name of Object.keys(decode).sort()) {
    const value = decode[name];
    if (name === "codec") continue;
    const type = typeOf(value);
    if (type === null) {
      plain[name] = value;
      continue;
    }
    const array = value as NumberArray;
    fields.push({ name, type, length: array.length });
    parts.push(bytesOf(array), new Uint8Array(alignUp(array.byteLength, 8) - array.byteLength));
  }
  const head: Head = { codec: decode.codec, blob: units.blobs[0]!, fields, plain };
  return [
    Buffer.from(JSON.stringify(head, writeBytes)),
    ...UNIT_ARRAYS.map(([name]) => bytesOf(units[name])),
    Buffer.concat(parts),
  ];
}

function readHead(bytes: Uint8Array, malformed: (what: string) => HeadstartError): Head {
  let head: Head;
  try {
    head = JSON.parse(Buffer.from(bytes).toString(), readBytes) as Head;
  } catch (cause) {
    throw new HeadstartError("HS_MALFORMED", { what: malformed("its head is no JSON").details.what, cause });
  }
  const sound =
    typeof head.codec === "string" &&
    isDigest(head.blob?.digest) &&
    Number.isSafeInteger(head.blob.size) &&
    Array.isArray(head.fields) &&
    head.fields.every(
      ({ name, type, length }) =>
        typeof name === "string" && Object.hasOwn(CLASSES, type) && Number.isSafeInteger(length),
    );
  if (!sound) throw malformed("its head");
  return head;
}

function readDecode(head: Head, bytes: Uint8Array, malformed: (what: string) => HeadstartError): DecodeTable {
  const arrays: Record<string, NumberArray> = {};
  let at = 0;
  for (const { name, type, length } of head.fields) {
    const size = length * CLASSES[type].BYTES_PER_ELEMENT;
    if (!(length >= 0 && at + size <= bytes.byteLength)) throw malformed(`its array ${name}`);
    arrays[name] = viewOf(type, bytes, at, length);
    at += alignUp(size, 8);
  }
  return { ...head.plain, ...arrays, codec: head.codec };
}

function arrayOf(type: ArrayType, bytes: Uint8Array, malformed: (what: string) => HeadstartError): NumberArray {
  const size = CLASSES[type].BYTES_PER_ELEMENT;
  if (bytes.byteLength % size !== 0) throw malformed(`an array of ${bytes.byteLength} bytes`);
  return viewOf(type, bytes, 0, bytes.byteLength / size);
}

/** Sections lie in buffers that threads share: a view of one does too. */
function viewOf(type: ArrayType, bytes: Uint8Array, at: number, length: number): NumberArray {
  const { buffer } = bytes;
  const start = bytes.byteOffset + at;
  switch (type) {
    case "u8":
      return new Uint8Array(buffer, start, length);
    case "u16":
      return new Uint16Array(buffer, start, length);
    case "u32":
      return new Uint32Array(buffer, start, length);
    case "f64":
      return new Float64Array(buffer, start, length);
    default:
      throw type satisfies never;
  }
}

function typeOf(value: unknown): ArrayType | null {
  for (const [name, each] of Object.entries(CLASSES)) if (value instanceof each) return name as ArrayType;
  return null;
}

function bytesOf(array: NumberArray): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

/** Small bytes inside plain fields (keys). */
function writeBytes(_: string, value: unknown): unknown {
  // a Buffer has become an object of its own by now
  const bytes = value instanceof Uint8Array ? value : isBufferJson(value) ? Uint8Array.from(value.data) : null;
  return bytes === null ? value : { $hex: Buffer.from(bytes).toString("hex") };
}

function readBytes(_: string, value: unknown): unknown {
  const hex = (value as { $hex?: unknown } | null)?.$hex;
  return typeof hex === "string" ? new Uint8Array(Buffer.from(hex, "hex")) : value;
}

function isBufferJson(value: unknown): value is { data: number[] } {
  const candidate = value as { type?: unknown; data?: unknown } | null;
  return candidate?.type === "Buffer" && Array.isArray(candidate.data);
}
