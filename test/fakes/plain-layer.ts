/**
 * A lazy layer of the simplest kind, for tests of layer/ and fetch/: a plain tar, cut into units of one
 * size. The codec "plain" (plain-decode.worker.ts) copies, and compares each header with what the index says.
 */

import { createHash } from "node:crypto";
import { type Digest, sha256 } from "../../src/base/digest.ts";
import { alignUp } from "../../src/base/ranges.ts";
import type { LayerIdentity, LazyLayer, UnitTable } from "../../src/formats/format.ts";
import { LayerTreeBuilder } from "../../src/formats/tar/apply.ts";
import { TarReader } from "../../src/formats/tar/records.ts";
import type { StoredRange, UnitFetcher } from "../../src/layer/interfaces.ts";

export interface PlainFile {
  readonly name: string;
  readonly data: Uint8Array;
}

export interface PlainLayer {
  /** Stored and decoded bytes: they are the same. */
  readonly blob: Uint8Array;
  readonly identity: LayerIdentity;
  readonly lazy: LazyLayer;
  readonly files: readonly PlainFile[];
  /** Address of each file's data. */
  readonly addresses: readonly number[];
  readonly indexBytes: Uint8Array;
}

const BLOCK = 512;

/** `lies`: files whose header in the stream has another name than the index says. */
export function makePlainLayer(
  files: readonly PlainFile[],
  options: { unitBytes?: number; lies?: ReadonlySet<string>; diffID?: Digest } = {},
): PlainLayer {
  const unitBytes = options.unitBytes ?? 65_536;
  const stream = (headerName: (file: PlainFile) => string) => {
    const parts = files.flatMap((file) => {
      const padded = new Uint8Array(alignUp(file.data.byteLength, BLOCK));
      padded.set(file.data);
      return [headerOf(headerName(file), file.data.byteLength), padded];
    });
    return new Uint8Array(Buffer.concat([...parts, new Uint8Array(2 * BLOCK)]));
  };
  const blob = stream((file) => (options.lies?.has(file.name) ? `${file.name}?` : file.name));
  const digest = sha256(blob);
  const addresses: number[] = [];
  const builder = new LayerTreeBuilder("lowest", digest);
  const reader = new TarReader(
    {
      entry(entry) {
        addresses.push(entry.dataOffset);
        return builder.add(entry).dataWanted;
      },
      data() {},
    },
    { layer: digest },
  );
  // the index tells what an honest stream says
  reader.push(stream((file) => file.name));
  reader.finish();
  const headers = files.map(({ name, data }, index) => ({
    address: addresses[index]! - BLOCK,
    name,
    size: data.byteLength,
  }));
  return {
    blob,
    identity: { digest, size: blob.byteLength, mediaType: "plain", diffID: options.diffID ?? digest },
    lazy: {
      tree: builder.finish(),
      units: plainUnits(blob, digest, unitBytes),
      decode: { codec: "plain", headers },
      streamLength: blob.byteLength,
      prefetchUnits: [],
    },
    files,
    addresses,
    indexBytes: Buffer.from(JSON.stringify({ unitBytes, files: files.map((file) => file.name) })),
  };
}

/** A ustar header of a regular file. */
export function headerOf(name: string, size: number): Uint8Array {
  const header = Buffer.alloc(BLOCK);
  header.write(name, 0);
  header.write("0000644\0", 100);
  header.write("0000000\0", 108);
  header.write("0000000\0", 116);
  header.write(`${size.toString(8).padStart(11, "0")}\0`, 124);
  header.write("00000000000\0", 136);
  header.write("        0", 148);
  header.write("ustar\x0000", 257);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
  return header;
}

function plainUnits(blob: Uint8Array, digest: Digest, unitBytes: number): UnitTable {
  const count = Math.ceil(blob.byteLength / unitBytes);
  const f64 = () => new Float64Array(new SharedArrayBuffer(count * 8));
  const units = {
    blobs: [{ digest, size: blob.byteLength }],
    unitCount: count,
    unitBlob: new Uint16Array(new SharedArrayBuffer(count * 2)),
    unitStart: f64(),
    unitEnd: f64(),
    unitDecodedLength: f64(),
    unitDigest: new Uint8Array(new SharedArrayBuffer(count * 32)),
    pieceCount: count,
    pieceAddress: f64(),
    pieceLength: f64(),
    pieceUnit: new Uint32Array(new SharedArrayBuffer(count * 4)),
    pieceOffset: f64(),
    pieceDigest: null,
    pieceDigestAlgorithm: null,
  };
  for (let unit = 0; unit < count; unit++) {
    const start = unit * unitBytes;
    const end = Math.min(blob.byteLength, start + unitBytes);
    units.unitStart[unit] = start;
    units.unitEnd[unit] = end;
    units.unitDecodedLength[unit] = end - start;
    units.unitDigest.set(createHash("sha256").update(blob.subarray(start, end)).digest(), unit * 32);
    units.pieceAddress[unit] = start;
    units.pieceLength[unit] = end - start;
    units.pieceUnit[unit] = unit;
  }
  return units;
}

/** Bytes that look like nothing and differ everywhere. */
export function noise(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = (seed * 2_654_435_761 + 1) >>> 0;
  for (let index = 0; index < length; index++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[index] = state;
  }
  return bytes;
}

export interface FetchCall extends StoredRange {
  readonly attempt: number;
}

/** Serves ranges of one blob from memory, counts, and can be told to misbehave. */
export class MemoryFetcher implements UnitFetcher {
  readonly calls: FetchCall[] = [];
  readonly #blob: Uint8Array;
  /** What to do with a call; the bytes are a copy that may be changed. */
  onFetch: (call: FetchCall, bytes: Uint8Array, signal: AbortSignal | undefined) => void | Promise<void> = () => {};

  constructor(blob: Uint8Array) {
    this.#blob = blob;
  }

  async fetch(
    range: StoredRange,
    options: { priority: string; attempt?: number; signal?: AbortSignal },
  ): Promise<Uint8Array<ArrayBuffer>> {
    const call = { ...range, attempt: options.attempt ?? 0 };
    this.calls.push(call);
    const bytes = new Uint8Array(this.#blob.subarray(range.start, range.end));
    await this.onFetch(call, bytes, options.signal);
    options.signal?.throwIfAborted();
    return bytes;
  }

  promote(): void {}
}
