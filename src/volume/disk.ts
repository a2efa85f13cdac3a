/**
 * Writes a plan's disk: blobs are fetched and layers read (collect.ts), everything gets its place (disk-layout.ts), then the file system is written, and into it, several
 * layers at a time, the contents (fill.ts). A layer is decoded twice: its files have no place until all are known, and decoding again costs less than writing them twice.
 *
 * Memory is that of the trees: some 200 bytes an entry. On the disk it takes the blobs beside the image while it runs. Nothing has its final name before all is
 * written and synced.
 */

import { type FileHandle, open, rm, statfs } from "node:fs/promises";
import { join } from "node:path";
import { type ChainID, type Digest, digestHex } from "../base/digest.ts";
import { HeadstartError, kindOf } from "../base/errors.ts";
import { Limit } from "../base/limit.ts";
import type { FileTree } from "../erofs/file-tree.ts";
import type { ImageReader } from "../oci/store.ts";
import { writeBolt } from "./bolt/write.ts";
import { Collection, together } from "./collect.ts";
import { metaDatabase, snapshotDatabase } from "./containerd-db.ts";
import { type DiskIdentity, type DiskLayout, layoutDisk } from "./disk-layout.ts";
import { BLOCK } from "./ext4/ondisk.ts";
import type { RegionPlace } from "./ext4/place.ts";
import { type ContentSource, fileSink, writeExt4 } from "./ext4/write.ts";
import { type BlockDigests, type FillRows, SNAPSHOT_BLOCK } from "./fill.ts";
import type { FormerVolume } from "./former.ts";
import { encodeGpt, singlePartitionDisk } from "./gpt.ts";
import { findHot, type HotList, WARM_BYTES, warmFile } from "./hot.ts";
import { type DiskSkeleton, type DiskTarget, diskSkeleton } from "./layout/disk.ts";
import type { VolumePlan } from "./plan.ts";
import { type SnapshotUsage, snapshotUsage } from "./usage.ts";
import { VolumeWorkers } from "./workers.ts";

export interface DiskRequest {
  readonly target: DiskTarget;
  readonly selinux: boolean;
  readonly sizeGib: number | "auto";
  readonly identity: DiskIdentity;
  readonly former: FormerVolume | null;
  readonly hot: HotList | null;
  /** The image file to make, in a folder that is there. */
  readonly image: string;
  /** A folder on the same file system for blobs. */
  readonly work: string;
  /** One for each image of the plan. */
  readonly readers: readonly ImageReader[];
  readonly signal: AbortSignal;
  readonly onProgress?: ((progress: DiskProgress) => void) | undefined;
}

export interface DiskProgress {
  readonly fetchedBytes: number;
  readonly layersDone: number;
  /** Of layers and blobs, decoded, into the image. Null while layers are still read. */
  readonly written: { readonly bytes: number; readonly of: number } | null;
}

export interface WrittenDisk {
  readonly layout: DiskLayout;
  readonly usage: ReadonlyMap<ChainID, SnapshotUsage>;
  readonly databases: { readonly meta: Uint8Array; readonly snapshots: Uint8Array };
  readonly hot: { readonly files: number; readonly missing: readonly string[] } | null;
  readonly blocks: DiskBlocks;
}

/** What is in each SNAPSHOT_BLOCK of the disk. */
export interface DiskBlocks {
  /** Ascending; blocks of nothing but zeros are left out. */
  readonly indices: readonly number[];
  readonly digests: readonly string[];
  /** Runs of blocks that nothing lies in: [first, count]. */
  readonly unused: readonly (readonly [number, number])[];
}

/** Throws HS_EXT4_FULL, HS_EXT4_LIMIT, HS_DISK_FULL, and what fetching and reading layers throw. The image is synced. */
export async function writeDisk(plan: VolumePlan, request: DiskRequest): Promise<WrittenDisk> {
  try {
    const collected = await collect(plan, request);
    const { trees, usage } = collected;
    const meta = writeBolt(metaDatabase(plan));
    const snapshots = writeBolt(snapshotDatabase(plan, usage));
    const hot = request.hot === null ? null : findHot(plan, trees, request.hot);
    const { target, selinux } = request;
    const databases = { metaDatabase: meta, snapshotDatabase: snapshots };
    const warmBytes = hot === null ? 0 : WARM_BYTES;
    const skeleton = diskSkeleton(plan, target, { selinux, ...databases, warmBytes });
    const layout = layoutDisk({ ...request, plan, skeleton, trees, hot: hot?.files ?? [] });
    await using workers = new VolumeWorkers();
    const blocks = await new DiskWriter(plan, request, { layout, skeleton, collected }, workers).run();
    return {
      layout,
      usage,
      databases: { meta, snapshots },
      hot: hot === null ? null : { files: hot.files.length, missing: hot.missing },
      blocks,
    };
  } catch (error) {
    if (error instanceof HeadstartError || kindOf(error) !== "exhausted") throw error;
    throw new HeadstartError("HS_DISK_FULL", { what: `writing ${request.image}`, cause: error });
  }
}

interface Collected {
  readonly trees: ReadonlyMap<number, FileTree>;
  readonly usage: ReadonlyMap<ChainID, SnapshotUsage>;
  readonly blobs: ReadonlyMap<Digest, string>;
  readonly fetchedBytes: number;
}

async function collect(plan: VolumePlan, request: DiskRequest): Promise<Collected> {
  // its threads end with it: what they leave of the entries that they read is some 50 MB each
  await using workers = new VolumeWorkers();
  const trees = new Map<number, FileTree>();
  const usage = new Map<ChainID, SnapshotUsage>();
  const blobs = new Map<Digest, string>();
  let fetchedBytes = 0;
  const report = () => request.onProgress?.({ fetchedBytes, layersDone: trees.size, written: null });
  await together(request.signal, (signal) => {
    const onBytes = (count: number) => {
      fetchedBytes += count;
      report();
    };
    const blobPath = (blob: VolumePlan["blobs"][number]) => join(request.work, digestHex(blob.descriptor.digest));
    const collection = new Collection(plan, { blobPath, readers: request.readers, signal, onBytes }, workers);
    return [
      ...[...collection.blobs].map(async ([digest, path]) => blobs.set(digest, await path)),
      ...plan.snapshots.map(async ({ id, chainID }) => {
        const tree = (await collection.chains.get(chainID)!).at(-1)!;
        trees.set(id, tree);
        usage.set(chainID, snapshotUsage(tree));
        report();
      }),
    ];
  });
  return { trees, usage, blobs, fetchedBytes };
}

interface OwnRegion {
  readonly place: RegionPlace;
  /** The blob that it is filled from. */
  readonly digest: Digest;
  /** Its layer, not the blob itself. */
  readonly decode: boolean;
  /** Of what is written, roughly: for progress. */
  readonly bytes: number;
  readonly rows: () => FillRows;
}

interface Prepared {
  readonly layout: DiskLayout;
  readonly skeleton: DiskSkeleton;
  readonly collected: Collected;
}

/** What hashes in one job: small enough that all threads have work until the end. */
const HASH_BLOCKS = 64;

class DiskWriter {
  readonly #plan: VolumePlan;
  readonly #request: DiskRequest;
  readonly #prepared: Prepared;
  readonly #workers: VolumeWorkers;
  readonly #hashed: BlockDigests[] = [];
  #written = 0;

  constructor(plan: VolumePlan, request: DiskRequest, prepared: Prepared, workers: VolumeWorkers) {
    this.#plan = plan;
    this.#request = request;
    this.#prepared = prepared;
    this.#workers = workers;
  }

  async run(): Promise<DiskBlocks> {
    const { layout } = this.#prepared;
    const { image, signal } = this.#request;
    await this.#checkRoom();
    await using file = await open(image, "wx", 0o644);
    await file.truncate(layout.diskSize);
    await this.#metadata(file);
    const inUse = this.#blocksInUse();
    const own = this.#ownRegions();
    await together(signal, (stop) => {
      const parts: Promise<unknown>[] = [];
      const shared = inUse.slice();
      for (const { place } of own) shared.fill(0, ...this.#snapshotBlocks(place));
      const of = own.reduce((sum, { bytes }) => sum + bytes, 0);
      const left = new Map<Digest, number>();
      for (const { digest } of own) left.set(digest, (left.get(digest) ?? 0) + 1);
      const turns = new Limit(this.#workers.threads);
      for (const region of own) {
        const [start, end] = this.#snapshotBlocks(region.place);
        const work = async () => {
          await this.#fill(region, left, stop);
          this.#report(of);
          // while the kernel still has it in memory
          await this.#hash([{ start, end }], stop);
        };
        parts.push(turns.run(work, { signal: stop }));
      }
      // regions that several layers write to, and what is there already
      const all = Promise.all(parts);
      return [...parts, all.then(() => this.#hash(rangesOf(shared), stop))];
    });
    await file.sync();
    return {
      ...this.#digests(),
      unused: rangesOf(inUse.map((used) => 1 - used)).map(({ start, end }) => [start, end - start]),
    };
  }

  /** What has a region of its own and one source: snapshots, and layers' blobs. */
  #ownRegions(): readonly OwnRegion[] {
    const { layout, collected } = this.#prepared;
    const snapshots = this.#plan.snapshots.map((snapshot) => ({
      place: layout.placeOf.snapshot(snapshot.id),
      digest: snapshot.layer.digest,
      decode: true,
      bytes: collected.usage.get(snapshot.chainID)!.size,
      rows: () => layout.snapshotRows(snapshot),
    }));
    const blobs = this.#plan.blobs.flatMap(({ kind, kept, descriptor: { digest, size } }) => {
      if (kind !== "layer" || !kept) return [];
      const place = layout.placeOf.blob(digest)!;
      return [{ place, digest, decode: false, bytes: size, rows: () => layout.blobRows(digest) }];
    });
    return [...snapshots, ...blobs];
  }

  /** A blob goes when the last region was filled from it. */
  async #fill(
    { digest, decode, rows, bytes }: OwnRegion,
    left: Map<Digest, number>,
    signal: AbortSignal,
  ): Promise<void> {
    const { image } = this.#request;
    const blob = this.#prepared.collected.blobs.get(digest)!;
    await this.#workers.run({ t: "fill", request: { image, blob, digest, decode, rows: rows() } }, signal);
    left.set(digest, left.get(digest)! - 1);
    if (left.get(digest) === 0) await rm(blob);
    this.#written += bytes;
  }

  #report(of: number): void {
    const { fetchedBytes, trees } = this.#prepared.collected;
    this.#request.onProgress?.({ fetchedBytes, layersDone: trees.size, written: { bytes: this.#written, of } });
  }

  /** Partition table and file system with all small files; what layers bring is left open. */
  async #metadata(file: FileHandle): Promise<void> {
    const { layout, skeleton, collected } = this.#prepared;
    const { target, signal } = this.#request;
    if (target.partition !== null) {
      const gpt = encodeGpt(singlePartitionDisk(layout.ext4.size, layout.identity.diskGuid, target.partition));
      await file.write(gpt.primary, 0, gpt.primary.byteLength, 0);
      await file.write(gpt.backup, 0, gpt.backup.byteLength, gpt.backupOffset);
    }
    const records = new Map(
      this.#plan.blobs
        .filter(({ kind }) => kind !== "layer")
        .map(({ descriptor }) => [skeleton.blobs.get(descriptor.digest)!, collected.blobs.get(descriptor.digest)!]),
    );
    const content: ContentSource = ({ inode }) => {
      const bytes = skeleton.contents.get(inode);
      if (bytes !== undefined) return bytes;
      if (inode === skeleton.warm) return warmFile(layout, this.#request.hot!);
      const path = records.get(inode);
      return path === undefined ? null : readPieces(path);
    };
    await writeExt4(layout.ext4, content, fileSink(file, layout.base), { signal });
  }

  async #checkRoom(): Promise<void> {
    const { bavail, bsize } = await statfs(this.#request.work);
    const wanted = this.#prepared.layout.ext4.used.reduce((sum, { start, end }) => sum + (end - start), 0) * BLOCK;
    const { inodeTables, inodesPerGroup, journal } = this.#prepared.layout.ext4.geometry;
    // reserved for metadata, and mostly never written
    const holes = (journal.end - journal.start) * BLOCK + inodeTables.length * inodesPerGroup * 256;
    if (bavail * bsize >= wanted - holes) return;
    throw new HeadstartError("HS_DISK_FULL", {
      what: `${this.#request.image}: ${wanted - holes} bytes will be written, ${bavail * bsize} are free`,
    });
  }

  /** One element for each block of a snapshot: 1 where anything may lie. */
  #blocksInUse(): Uint8Array {
    const { layout } = this.#prepared;
    const inUse = new Uint8Array(layout.diskSize / SNAPSHOT_BLOCK);
    for (const { start, end } of layout.ext4.used) {
      const first = Math.floor((layout.base + start * BLOCK) / SNAPSHOT_BLOCK);
      inUse.fill(1, first, Math.ceil((layout.base + end * BLOCK) / SNAPSHOT_BLOCK));
    }
    if (layout.base > 0) {
      inUse[0] = 1;
      inUse[inUse.length - 1] = 1;
    }
    return inUse;
  }

  #snapshotBlocks({ startBlock, blockCount }: RegionPlace): [number, number] {
    const { base } = this.#prepared.layout;
    const at = (block: number) => (base + block * BLOCK) / SNAPSHOT_BLOCK;
    return [Math.floor(at(startBlock)), Math.ceil(at(startBlock + blockCount))];
  }

  async #hash(ranges: readonly { readonly start: number; readonly end: number }[], signal: AbortSignal): Promise<void> {
    const jobs: { start: number; end: number }[] = [];
    for (const { start, end } of ranges) {
      for (let at = start; at < end; at += HASH_BLOCKS) jobs.push({ start: at, end: Math.min(end, at + HASH_BLOCKS) });
    }
    const { image } = this.#request;
    await Promise.all(
      jobs.map(async (range) => {
        this.#hashed.push(await this.#workers.run({ t: "hash", request: { image, ranges: [range] } }, signal));
      }),
    );
  }

  #digests(): { indices: number[]; digests: string[] } {
    const found = this.#hashed.flatMap(({ indices, digests }) =>
      indices.map((index, at) => ({ index, digest: digests[at]! })),
    );
    found.sort((a, b) => a.index - b.index);
    return { indices: found.map(({ index }) => index), digests: found.map(({ digest }) => digest) };
  }
}

/** Runs of elements that are not 0. */
function rangesOf(marks: Uint8Array): { start: number; end: number }[] {
  const ranges: { start: number; end: number }[] = [];
  for (let index = 0; index < marks.length; index++) {
    if (marks[index] === 0) continue;
    const start = index;
    while (index < marks.length && marks[index] !== 0) index++;
    ranges.push({ start, end: index });
  }
  return ranges;
}

async function* readPieces(path: string): AsyncGenerator<Uint8Array, void, undefined> {
  await using file = await open(path);
  for await (const chunk of file.createReadStream({ autoClose: false })) yield chunk as Uint8Array;
}
