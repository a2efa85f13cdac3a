/**
 * Proves a volume: everything on it is what its images' digests say, and is found by a containerd that starts on it (specs/warm-volume.md 13). Reads with the readers
 * alone; nothing of a build is used but what it wrote. A rule that does not hold is a difference, what cannot be decided is counted as unproven; only what cannot be
 * read at all is thrown.
 */

import { describeError, isHeadstartError } from "../../base/errors.ts";
import { keepYoungGenerationSmall } from "../../base/heap.ts";
import { MiB } from "../../base/limits.ts";
import { FileType } from "../../erofs/file-tree.ts";
import { returnFreedMemory } from "../../linux/malloc.ts";
import { hostPlatform, parsePlatform } from "../../oci/platform.ts";
import type { Bucket } from "../bolt/ondisk.ts";
import { readBolt } from "../bolt/read.ts";
import { WARM_BYTES } from "../hot.ts";
import { provenanceBeside, readVolumeDocument, type VolumeDocument } from "../provenance.ts";
import { StoredBlobs } from "./blobs.ts";
import { checkBlocks, checkDescribed, checkMaterials, checkParameters, checkSubjects } from "./check-provenance.ts";
import { checkFileSystem, fileSystemError } from "./file-system.ts";
import { type Difference, Findings, type Unproven } from "./findings.ts";
import { checkImages } from "./graph.ts";
import { checkLayers, checkPresence } from "./layers.ts";
import { readMetaRecords } from "./meta-db.ts";
import { fileSystemOf, type OpenDirectory, type OpenDisk, openVolume } from "./open-volume.ts";
import { checkLabels } from "./selinux.ts";
import { checkSnapshots, readBackendRecords } from "./snapshots.ts";
import { OpenSources, type VerifySource } from "./sources.ts";
import {
  ACTIVE_SNAPSHOTTER,
  BACKEND_DATABASE,
  type ContainerdRoot,
  checkStore,
  findContainerdRoot,
  META_DATABASE,
  WARM_FILES,
} from "./store.ts";
import { directoryTree, ext4Tree, findPath, readAll, type StoredTree } from "./stored-tree.ts";

export interface VerifyRequest {
  readonly path: string;
  readonly sources: readonly VerifySource[];
  readonly signal: AbortSignal;
  readonly onProgress?: ((progress: VerifyProgress) => void) | undefined;
}

export interface VerifyProgress {
  /** Read and compared or hashed so far. */
  readonly bytes: number;
  readonly layers: number;
}

export interface Verification {
  readonly ok: boolean;
  readonly kind: "directory" | "ext4" | "gpt";
  /** Null: there is no document beside the volume, or it cannot be read. */
  readonly provenance: string | null;
  readonly checked: {
    readonly images: number;
    /** Names and ids. */
    readonly names: number;
    readonly blobs: number;
    readonly snapshots: number;
    /** Snapshots of which every file was compared with its layer. */
    readonly provenSnapshots: number;
    readonly files: number;
    readonly bytes: number;
    /** Blocks of a snapshot whose digest was compared. */
    readonly blocks: number;
  };
  readonly unproven: readonly Unproven[];
  /** All there are; `differences` has the first of them. */
  readonly differenceCount: number;
  readonly differences: readonly Difference[];
}

const SNAPSHOTTER = "overlayfs";
/** Databases of busy nodes with thousands of images have some 50 MB. */
const DATABASE_BYTES_MAX = 512 * MiB;

/** Throws HS_NOT_FOUND, HS_FORMAT_UNSUPPORTED, HS_LIMIT, and what sources throw. */
export async function verifyVolume(request: VerifyRequest): Promise<Verification> {
  returnFreedMemory();
  keepYoungGenerationSmall();
  const findings = new Findings();
  const document = readDocument(request.path, findings);
  const { target } = document ?? {};
  using volume = openVolume(request.path, target === "bottlerocket" ? "gpt" : target === undefined ? null : "ext4");
  return await new VolumeVerification(request, volume, document, findings).run();
}

function readDocument(volume: string, findings: Findings): VolumeDocument | null {
  const path = provenanceBeside(volume);
  if (path === null) {
    findings.open("names, ids and times", "there is no PATH.json beside the volume that says what they should be");
    return null;
  }
  try {
    return readVolumeDocument(path);
  } catch (error) {
    if (!isHeadstartError(error)) throw error;
    findings.add("provenance", path, describeError(error));
    return null;
  }
}

class VolumeVerification {
  readonly #request: VerifyRequest;
  readonly #volume: OpenDirectory | OpenDisk;
  readonly #findings: Findings;
  readonly #document: VolumeDocument | null;
  #bytes = 0;
  #layers = 0;
  #checked = { images: 0, names: 0, blobs: 0, snapshots: 0, provenSnapshots: 0, files: 0, blocks: 0 };

  constructor(
    request: VerifyRequest,
    volume: OpenDirectory | OpenDisk,
    document: VolumeDocument | null,
    findings: Findings,
  ) {
    this.#request = request;
    this.#volume = volume;
    this.#document = document;
    this.#findings = findings;
  }

  async run(): Promise<Verification> {
    const volume = this.#volume;
    const findings = this.#findings;
    const stored = this.#tree();
    if (stored !== null) await this.#contents(stored);
    if (volume.kind === "disk" && this.#document !== null) {
      const { signal } = this.#request;
      const onBytes = (count: number) => this.#report(count);
      this.#checked.blocks = await checkBlocks(this.#document, volume, { findings, signal, onBytes });
    }
    return {
      ok: findings.count === 0,
      kind: volume.kind === "directory" ? "directory" : volume.partitioned ? "gpt" : "ext4",
      provenance: this.#document?.path ?? null,
      checked: { ...this.#checked, bytes: this.#bytes },
      unproven: findings.unproven,
      differenceCount: findings.count,
      differences: findings.differences,
    };
  }

  #tree(): StoredTree | null {
    const volume = this.#volume;
    const target = this.#document?.target;
    if (volume.kind === "directory") {
      if (target !== undefined && target !== "containerd") {
        this.#findings.differs("store", volume.path, "the layout", "a directory", target);
      }
      return directoryTree(volume.path);
    }
    if (target !== undefined && (target === "bottlerocket") !== volume.partitioned) {
      const found = volume.partitioned ? "a disk with partitions" : "a file system without partitions";
      this.#findings.differs("partition-table", volume.path, "the layout", found, target);
    }
    const reader = checkFileSystem(volume, this.#findings);
    if (reader === null) return null;
    this.#checkUuid(reader.superblock.uuid);
    try {
      return ext4Tree(reader, volume.fd, fileSystemOf(volume).base);
    } catch (error) {
      fileSystemError(error, "file system", this.#findings);
      return null;
    }
  }

  #checkUuid(uuid: Uint8Array): void {
    const wanted = this.#document?.fs?.uuid.replaceAll("-", "") ?? null;
    const found = Buffer.from(uuid).toString("hex");
    if (wanted !== null && found !== wanted)
      this.#findings.differs("file-system", "superblock", "the UUID", found, wanted);
  }

  async #contents(stored: StoredTree): Promise<void> {
    const findings = this.#findings;
    this.#checked.files = stored.tree.inodeCount;
    const root = findContainerdRoot(stored.tree);
    if (root === null) {
      findings.add("store", "/", "no root of containerd is here");
      return;
    }
    const meta = await this.#database(stored, root, META_DATABASE);
    const backend = await this.#database(stored, root, BACKEND_DATABASE);
    if (meta === null || backend === null) return;
    await this.#databases(stored, root, meta, backend);
  }

  async #database(stored: StoredTree, root: ContainerdRoot, name: string): Promise<Bucket | null> {
    const place = `${root.path === "" ? "" : `/${root.path}`}/${name}`;
    const inode = findPath(stored.tree, root.inode, name);
    if (inode === null || stored.tree.type[inode] !== FileType.regular) {
      this.#findings.add("database", place, "there is no such file");
      return null;
    }
    try {
      return readBolt(await readAll(stored, inode, DATABASE_BYTES_MAX, place), place).root;
    } catch (error) {
      if (!isHeadstartError(error)) throw error;
      this.#findings.add("database", place, describeError(error));
      return null;
    }
  }

  async #databases(stored: StoredTree, root: ContainerdRoot, meta: Bucket, backendRoot: Bucket): Promise<void> {
    const findings = this.#findings;
    const document = this.#document;
    const exact = document !== null;
    const time = document === null ? null : BigInt(document.options.time) * 1_000_000_000n;
    const snapshotter = document?.snapshotter ?? SNAPSHOTTER;
    const { signal } = this.#request;
    const onBytes = (count: number) => this.#report(count);
    const options = { findings, snapshotter, time, exact, sequence: document?.snapshotSequence ?? null };
    const blobs = new StoredBlobs(stored, root.inode, findings, onBytes);
    const records = readMetaRecords(meta, options);
    const backend = readBackendRecords(backendRoot, options);
    checkStore(stored, root, { records: records.blobs, snapshots: backend }, { findings, exact, time });
    // in a directory labels are the host's
    if (this.#volume.kind === "disk") checkLabels(stored.tree, root, document?.options.selinux ?? null, findings);
    await this.#checkActive(stored, snapshotter);
    if (document !== null && this.#volume.kind === "disk") await this.#checkWarm(stored, root, document);
    const graph = await checkImages(records, blobs, { findings, snapshotter, exact });
    const snapshots = checkSnapshots(records, backend, graph.chains, findings);
    const layersKept = document?.options.blobs ?? null;
    checkPresence(records.blobs, graph.layers, blobs, { findings, layersKept });
    if (document !== null) checkDescribed(document, { records: records.images, graph, snapshots }, findings);

    const platform = document === null ? this.#platform(graph.images) : parsePlatform(document.platform);
    await using sources = await OpenSources.open(this.#request.sources, platform, signal);
    sources.check(records.images, graph, findings);
    this.#checked = {
      ...this.#checked,
      images: graph.images.size,
      names: records.images.length,
      blobs: [...blobs.digests].length,
      snapshots: backend.length,
    };
    this.#checked.provenSnapshots = await checkLayers(graph.chains, snapshots, {
      ...{ stored, root, blobs, findings, signal, onBytes },
      elsewhere: sources.layer,
      clock: time === null ? null : [0n, time],
      onLayer: () => {
        this.#layers++;
        this.#report(0);
      },
    });
    await blobs.checkRest(graph.sizes);
    if (document !== null) {
      checkParameters(document, findings);
      checkMaterials(document, blobs.digests, findings);
      const disk = this.#volume.kind === "disk" ? this.#volume : null;
      await checkSubjects(document, { stored, root, disk }, findings);
    }
  }

  /** Where nothing else says it: that of the images. */
  #platform(
    images: ReadonlyMap<
      string,
      readonly { readonly platform: { readonly os: string; readonly architecture: string } }[]
    >,
  ) {
    const found = [...images.values()].flat()[0]?.platform;
    return found === undefined || found.architecture === ""
      ? hostPlatform()
      : parsePlatform(`${found.os}/${found.architecture}`);
  }

  async #checkActive(stored: StoredTree, snapshotter: string): Promise<void> {
    await this.#checkText(stored, ACTIVE_SNAPSHOTTER, `ACTIVE_SNAPSHOTTER=${snapshotter}\n`);
  }

  /** What the volume itself says of its hot files. */
  async #checkWarm(stored: StoredTree, root: ContainerdRoot, { hot, fs }: VolumeDocument): Promise<void> {
    const path = root.path === "" ? WARM_FILES.al2023 : WARM_FILES.bottlerocket;
    const isThere = findPath(stored.tree, 0, path) !== null;
    if (isThere !== (hot !== null)) {
      this.#findings.add("store", `/${path}`, isThere ? "is here, though no files were hot" : "missing");
    }
    if (hot === null) return;
    const start = hot.length === 0 ? 0 : hot.start - (fs?.offset ?? 0);
    const text = JSON.stringify({ schema: "headstart.warm/1", region: [start, hot.length], source: hot.source });
    await this.#checkText(stored, path, `${text.padEnd(WARM_BYTES - 1)}\n`);
  }

  /** That a file is there is another question (store.ts). */
  async #checkText(stored: StoredTree, path: string, wanted: string): Promise<void> {
    const inode = findPath(stored.tree, 0, path);
    if (inode === null || stored.tree.type[inode] !== FileType.regular) return;
    const found =
      stored.tree.size[inode] === wanted.length
        ? Buffer.from(await readAll(stored, inode, wanted.length, path)).toString()
        : `a file of ${stored.tree.size[inode]} bytes`;
    if (found !== wanted) this.#findings.differs("store", `/${path}`, "its text", found.trimEnd(), wanted.trimEnd());
  }

  #report(bytes: number): void {
    this.#bytes += bytes;
    this.#request.onProgress?.({ bytes: this.#bytes, layers: this.#layers });
  }
}
