/** `headstart inspect`: decodes what it is given, recognised by content. */

import { closeSync, openSync, readSync, statSync } from "node:fs";
import { readFile } from "node:fs/promises";
import type { Command } from "commander";
import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { LIMITS } from "../../base/limits.ts";
import { checkErofs } from "../../erofs/check.ts";
import { openErofs } from "../../erofs/read.ts";
import { fdSource } from "../../erofs/source.ts";
import { looksLikeBlob, readBlobTail } from "../../formats/nydus/blob-tail.ts";
import { sniffBootstrap } from "../../formats/nydus/bootstrap.ts";
import { inspectBootstrap } from "../../formats/nydus/inspect.ts";
import { NYDUS_LIMITS } from "../../formats/nydus/ondisk.ts";
import { readPrefetch, readSociIndex } from "../../formats/soci/index.ts";
import { inspectZtoc } from "../../formats/soci/inspect.ts";
import { inspectNydusForms, inspectNydusImage, inspectRafs } from "../../image/look-nydus.ts";
import { parseConfig, parseIndex, parseManifest } from "../../oci/manifest.ts";
import { parseSource } from "../../oci/reference.ts";
import { EXT4_MAGIC } from "../../volume/ext4/ondisk.ts";
import { inspectVolume } from "../../volume/inspect.ts";
import { describeManifest } from "../../volume/manifest.ts";
import { addSourceOptions, openNamed, type SourceOptions } from "../sources.ts";

export interface Inspected {
  readonly kind:
    | "ztoc"
    | "soci-index"
    | "soci-prefetch"
    | "oci-index"
    | "oci-manifest"
    | "oci-config"
    | "erofs"
    | "layer-blob"
    | "rafs-bootstrap"
    | "rafs-image"
    | "nydus-blob"
    | "volume"
    | "volume-manifest";
  readonly [field: string]: unknown;
}

export function registerInspect(program: Command): void {
  addSourceOptions(
    program
      .command("inspect <file-or-source>")
      .summary("decode an index, manifest or layer file")
      .description(
        "Decode a zTOC, SOCI index, prefetch artifact, OCI manifest, index or configuration, a Nydus bootstrap or blob, an EROFS layer file, a volume or its manifest: recognised by content.",
      )
      .option("--entries", "of a zTOC: list every entry with its spans"),
  )
    .option("--json", "one object; `kind` says what it was")
    .addHelpText(
      "after",
      "\nExamples:\n  headstart inspect ./layer.ztoc --entries\n  headstart inspect docker://HOST/REPO:TAG --json\n  headstart inspect rafs:./image.boot:./blobs\n",
    )
    .action(async (name: string, options: SourceOptions & { json?: boolean; entries?: boolean }) => {
      const found = isFile(name)
        ? await inspectFile(name, options.entries === true)
        : await inspectSource(name, options);
      if (options.json) process.stdout.write(`${JSON.stringify(found)}\n`);
      else process.stdout.write(`${printObject(found).join("\n")}\n`);
    });
}

function isFile(name: string): boolean {
  try {
    return statSync(name).isFile();
  } catch {
    return false;
  }
}

async function inspectSource(name: string, options: SourceOptions): Promise<Inspected> {
  // a mistyped file name is no image of Docker Hub
  if (/^\.{0,2}\//.test(name) || !/[/:]/.test(name))
    throw new HeadstartError("HS_NOT_FOUND", {
      what: `${name}: no such file (an image of Docker Hub is docker://${name})`,
    });
  const source = parseSource(name);
  if (source.kind === "rafs") return { kind: "rafs-image", ...(await inspectRafs(source)) };
  await using reader = await openNamed(name, options);
  const descriptor = await reader.resolve();
  const nydus = await inspectNydusImage(reader, descriptor);
  const forms = await inspectNydusForms(reader, descriptor);
  return {
    ...inspectJson(await reader.readManifest(descriptor), name)!,
    digest: descriptor.digest,
    size: descriptor.size,
    ...(nydus !== null && { nydus }),
    ...(forms.length > 0 && { nydusForms: forms }),
  };
}

const EROFS_MAGIC = 0xe0f5e1e2;
/** Reaches to the end of an EROFS superblock. */
const HEAD_BYTES = 1152;

async function inspectFile(path: string, entries: boolean): Promise<Inspected> {
  const { size } = statSync(path);
  const head = readHead(path, HEAD_BYTES);
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  if (sniffBootstrap(head) !== null) {
    if (size > NYDUS_LIMITS.bootstrapBytes)
      throw new HeadstartError("HS_LIMIT", { what: `${path}: a bootstrap of ${size} bytes` });
    return { kind: "rafs-bootstrap", ...inspectBootstrap(await readFile(path), path) };
  }
  if (head.byteLength >= 1028 && view.getUint32(1024, true) === EROFS_MAGIC) return inspectErofs(path);
  if (isDisk(head)) {
    const { kind: _, ...found } = inspectVolume(path);
    return { kind: "volume", ...found };
  }
  // before what the first bytes say: those of a blob are its first chunk, often a zstd frame
  const blob = inspectNydusBlob(path);
  if (blob !== null) return { kind: "nydus-blob", size, ...blob };
  if (head[0] === 0x1f && head[1] === 0x8b) return { kind: "layer-blob", compression: "gzip", size };
  if (view.byteLength >= 4 && view.getUint32(0, true) === 0xfd2fb528)
    return { kind: "layer-blob", compression: "zstd", size };
  if (size > LIMITS.ztocBytes)
    throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `${path}: ${size} bytes of nothing that is known here` });
  const bytes = await readFile(path);
  const json = inspectJson(bytes, path);
  if (json !== null) return json;
  try {
    return { kind: "ztoc", ...inspectZtoc(bytes, path, { entries }) };
  } catch (cause) {
    throw new HeadstartError("HS_FORMAT_UNSUPPORTED", {
      what: `${path}: recognised as nothing; read as a zTOC it fails`,
      cause,
    });
  }
}

/** A partition table, or the superblock of ext4. */
function isDisk(head: Buffer): boolean {
  if (head.byteLength < HEAD_BYTES) return false;
  return head.toString("latin1", 512, 520) === "EFI PART" || head.readUInt16LE(1024 + 56) === EXT4_MAGIC;
}

function readHead(path: string, count: number): Buffer {
  const fd = openSync(path, "r");
  try {
    const head = Buffer.alloc(count);
    return head.subarray(0, readSync(fd, head, 0, count, 0));
  } finally {
    closeSync(fd);
  }
}

/** Null when it does not end as a blob does. */
function inspectNydusBlob(path: string) {
  const fd = openSync(path, "r");
  try {
    const source = fdSource(fd);
    return looksLikeBlob(source) ? readBlobTail(source, path) : null;
  } finally {
    closeSync(fd);
  }
}

function inspectErofs(path: string): Inspected {
  const fd = openSync(path, "r");
  try {
    const reader = openErofs(fdSource(fd));
    const { superblock } = reader;
    let entries = 0;
    reader.walk({
      name: () => {
        entries++;
      },
      inode: () => {},
    });
    let problem: string | null = null;
    try {
      checkErofs(reader);
    } catch (error) {
      if (!isHeadstartError(error)) throw error;
      problem = error.message;
    }
    return { kind: "erofs", ...plain(superblock), entries, sound: problem === null, problem };
  } finally {
    closeSync(fd);
  }
}

/** Bytes as hex, so that JSON and text can show them. */
function plain(value: object): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(value).map(([key, field]) => [
      key,
      field instanceof Uint8Array ? Buffer.from(field).toString("hex") : field,
    ]),
  );
}

/** Null when it is no JSON object. */
function inspectJson(bytes: Uint8Array, what: string): Inspected | null {
  const text = Buffer.from(bytes).toString();
  if (!/^\s*\{/.test(text)) return null;
  let value: Record<string, unknown>;
  try {
    value = JSON.parse(text) as Record<string, unknown>;
  } catch {
    return null;
  }
  const volume = describeManifest(value);
  if (volume !== null) return { kind: "volume-manifest", ...volume };
  if (Array.isArray(value.prefetch_spans)) return { kind: "soci-prefetch", ranges: readPrefetch(bytes, what) };
  if (Array.isArray(value.manifests)) return { kind: "oci-index", ...parseIndex(bytes, what) };
  if (value.rootfs !== undefined && value.layers === undefined)
    return { kind: "oci-config", ...parseConfig(bytes, what) };
  const config = (value.config as { mediaType?: string } | undefined)?.mediaType ?? "";
  if (config.startsWith("application/vnd.amazon.soci.index.")) {
    const index = readSociIndex(bytes, what);
    return {
      kind: "soci-index",
      ...index,
      ztocs: Object.fromEntries(index.ztocs),
      prefetch: Object.fromEntries(index.prefetch),
    };
  }
  return { kind: "oci-manifest", ...parseManifest(bytes, what) };
}

function printObject(value: Readonly<Record<string, unknown>>, indent = ""): string[] {
  return Object.entries(value).flatMap(([key, field]) => {
    if (Array.isArray(field) && field.some((item) => typeof item === "object")) {
      return [
        `${indent}${key}:`,
        ...field.flatMap((item) => [`${indent}  -`, ...printObject(item as Record<string, unknown>, `${indent}    `)]),
      ];
    }
    if (typeof field === "object" && field !== null && !Array.isArray(field))
      return [`${indent}${key}:`, ...printObject(field as Record<string, unknown>, `${indent}  `)];
    return field === undefined ? [] : [`${indent}${key}: ${Array.isArray(field) ? field.join(", ") : String(field)}`];
  });
}
