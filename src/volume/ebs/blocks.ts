/**
 * A disk as EBS sees it: blocks of 512 KiB, named by their SHA-256; a block of zeros has no entry. Pure: what two disks differ in, one digest for the whole, and the aggregate checksum that EBS
 * wants (specs/warm-volume.md 8.4, 9).
 */

import { createHash } from "node:crypto";
import { type Digest, digestHex } from "../../base/digest.ts";
import { HeadstartError } from "../../base/errors.ts";
import { GiB } from "../../base/limits.ts";
import { asObject, field, type JsonObject, parseJson } from "../../oci/json.ts";

export const BLOCK_BYTES = 524_288;
export const BLOCKS_PER_GIB = GiB / BLOCK_BYTES;
/** What EBS takes, in GiB. */
export const VOLUME_GIB_MAX = 65_536;
/** SHA-256 of a block of zeros, hex. */
export const ZERO_BLOCK = createHash("sha256").update(Buffer.alloc(BLOCK_BYTES)).digest("hex");

/** Block index -> SHA-256 in hex; zero blocks are left out. */
export type BlockMap = ReadonlyMap<number, string>;

export function ascending(map: ReadonlyMap<number, unknown>): number[] {
  return [...map.keys()].sort((a, b) => a - b);
}

/** One name for what a disk holds, wherever it was built: "sha256:…" over index (u32, little endian) and digest of every block that is not zero, ascending. */
export function contentDigest(blocks: BlockMap): Digest {
  const hash = createHash("sha256");
  const entry = Buffer.alloc(36);
  for (const index of ascending(blocks)) {
    entry.writeUInt32LE(index);
    entry.write(blocks.get(index)!, 4, "hex");
    hash.update(entry);
  }
  return `sha256:${hash.digest("hex")}` as Digest;
}

/** EBS's LINEAR aggregate: base64 of the SHA-256 over the raw digests in the order of their indexes. Zero blocks that are put count. */
export function linearChecksum(put: BlockMap): string {
  const hash = createHash("sha256");
  for (const index of ascending(put)) hash.update(put.get(index)!, "hex");
  return hash.digest("base64");
}

/** What must be put so that a child of `parent` holds `blocks`: other bytes, and zeros where only the parent has any. */
export function changedBlocks(blocks: BlockMap, parent: BlockMap): Map<number, string> {
  const changed = new Map<number, string>();
  for (const [index, digest] of blocks) if (parent.get(index) !== digest) changed.set(index, digest);
  for (const index of parent.keys()) if (!blocks.has(index)) changed.set(index, ZERO_BLOCK);
  return changed;
}

/** What a child of `parent` may hold instead: in unused runs it keeps the parent's old bytes, which then need not be put over with zeros. */
export function keepFreed(blocks: BlockMap, parent: BlockMap, unused: readonly BlockRun[]): Map<number, string> {
  const kept = new Map(blocks);
  let at = 0;
  for (const index of ascending(parent)) {
    if (blocks.has(index)) continue;
    while (at < unused.length && unused[at]!.first + unused[at]!.count <= index) at++;
    const run = unused[at];
    if (run === undefined) break;
    if (run.first <= index) kept.set(index, parent.get(index)!);
  }
  return kept;
}

/** What a description says of a disk. */
export interface DescribedBlocks {
  readonly blocks: Map<number, string>;
  /** Of the file; undefined where it is not said. */
  readonly sizeBytes: number | undefined;
  /** The snapshot that it was pushed as, where that is said. */
  readonly snapshot: string | undefined;
  /** Runs of blocks that nothing lies in, ascending: whatever they hold is never looked at. */
  readonly unused: readonly BlockRun[];
}

export interface BlockRun {
  readonly first: number;
  readonly count: number;
}

/** A 64 TiB disk has as many; a description of one has gigabytes. */
const DESCRIPTION_BYTES = 512 * 1024 * 1024;

/**
 * The blocks in a volume manifest, in the provenance statement around one, or in the record of a push. Undefined when it describes none (a directory's manifest does not). Throws HS_MANIFEST,
 * HS_LIMIT.
 */
export function parseDescription(bytes: Uint8Array, what: string): DescribedBlocks | undefined {
  const document = parseJson(bytes, what, DESCRIPTION_BYTES);
  const manifest = [
    document,
    inner(document, ["predicate", "headstart_volume"]),
    inner(document, ["headstart_volume"]),
  ].find((each) => each !== undefined && field(each, "blocks") !== undefined);
  if (manifest === undefined) return undefined;
  const section = asObject(field(manifest, "blocks"), `${what}: blocks`);
  const size = field(section, "size");
  if (size !== BLOCK_BYTES)
    throw new HeadstartError("HS_MANIFEST", { what: `${what}: blocks of ${String(size)} bytes, not ${BLOCK_BYTES}` });
  const blocks = new Map<number, string>();
  for (const [key, value] of Object.entries(asObject(field(section, "sha256"), `${what}: blocks.sha256`))) {
    const index = Number(key);
    if (!/^(?:0|[1-9]\d{0,8})$/.test(key) || index >= VOLUME_GIB_MAX * BLOCKS_PER_GIB) {
      throw new HeadstartError("HS_MANIFEST", { what: `${what}: block ${key.slice(0, 40)}` });
    }
    const digest = typeof value === "string" && value.startsWith("sha256:") ? digestHex(value as Digest) : value;
    if (typeof digest !== "string" || !/^[0-9a-f]{64}$/.test(digest)) {
      throw new HeadstartError("HS_MANIFEST", { what: `${what}: block ${key}: no SHA-256 in hex` });
    }
    if (digest !== ZERO_BLOCK) blocks.set(index, digest);
  }
  const bytesOf = field(manifest, "size");
  const snapshot = field(manifest, "snapshot");
  const id = typeof snapshot === "object" && snapshot !== null ? field(snapshot as JsonObject, "id") : snapshot;
  return {
    blocks,
    sizeBytes: typeof bytesOf === "number" && Number.isSafeInteger(bytesOf) && bytesOf > 0 ? bytesOf : undefined,
    snapshot: typeof id === "string" ? id : undefined,
    unused: parseRuns(field(section, "unused") ?? [], what),
  };
}

function parseRuns(value: unknown, what: string): BlockRun[] {
  const wrong = () =>
    new HeadstartError("HS_MANIFEST", { what: `${what}: blocks.unused is no list of runs, ascending` });
  if (!Array.isArray(value)) throw wrong();
  let last = 0;
  return value.map((run: unknown): BlockRun => {
    const [first, count] = Array.isArray(run) ? (run as unknown[]) : [];
    if (typeof first !== "number" || typeof count !== "number") throw wrong();
    if (!Number.isSafeInteger(first) || !Number.isSafeInteger(count) || first < last || count < 1) throw wrong();
    last = first + count;
    return { first, count };
  });
}

function inner(document: JsonObject, path: readonly string[]): JsonObject | undefined {
  let current: unknown = document;
  for (const key of path) {
    if (typeof current !== "object" || current === null || Array.isArray(current)) return undefined;
    current = field(current as JsonObject, key);
  }
  return typeof current === "object" && current !== null ? (current as JsonObject) : undefined;
}
