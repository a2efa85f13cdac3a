/**
 * A volume against what its build said of it (PATH.json): the images and layers that it names, the files and blocks whose digests it gives, and whether everything on the
 * volume is among the inputs.
 */

import { createHash } from "node:crypto";
import type { ChainID, Digest } from "../../base/digest.ts";
import { MiB } from "../../base/limits.ts";
import { formatPlatform, normalizePlatform } from "../../oci/platform.ts";
import { BLOCK_BYTES } from "../ebs/blocks.ts";
import type { DescribedImage, VolumeDocument } from "../provenance.ts";
import { diskBlocks } from "./disk-blocks.ts";
import type { Findings } from "./findings.ts";
import type { ImageGraph, StoredImage } from "./graph.ts";
import type { ImageRecord } from "./meta-db.ts";
import { PINNED } from "./names.ts";
import type { OpenDisk } from "./open-volume.ts";
import type { BackendRecord } from "./snapshots.ts";
import { type ContainerdRoot, META_DATABASE } from "./store.ts";
import { findPath, hashContent, type StoredTree } from "./stored-tree.ts";

/** What the databases and blobs say, as found. */
export interface FoundContents {
  readonly records: readonly ImageRecord[];
  readonly graph: ImageGraph;
  readonly snapshots: ReadonlyMap<ChainID, BackendRecord>;
}

export function checkDescribed(document: VolumeDocument, found: FoundContents, findings: Findings): void {
  const names = new Map<string, Digest>();
  const configs = new Set<string>();
  const snapshots = new Set<Digest>();
  for (const image of document.images) {
    const place = `image ${image.refs[0] ?? image.digest}`;
    for (const ref of image.refs) names.set(ref, image.digest);
    configs.add(image.config);
    const stored = found.graph.images.get(image.digest)?.find((each) => each.manifest === image.manifest);
    if (stored === undefined) {
      findings.add("image", place, `the manifest ${image.manifest} of ${image.digest} is not on the volume`);
      continue;
    }
    checkImage(image, stored, place, document, found, findings);
    for (const layer of image.layers) snapshots.add(layer.chainID);
  }
  for (const record of found.records) {
    const isKnown = names.get(record.name) === record.target.digest || configs.has(record.name);
    if (!isKnown) findings.add("image", record.place, "the build gave no image this name");
    const wanted = document.options.pinned ? "pinned" : undefined;
    const pinned = record.labels.get(PINNED);
    if (pinned !== wanted) findings.differs("image", record.place, PINNED, pinned, wanted);
  }
  const there = new Set(found.records.map((record) => record.name));
  for (const name of [...names.keys(), ...configs]) {
    if (!there.has(name)) findings.add("image", `meta.db/v1/k8s.io/images/${name}`, "missing");
  }
  for (const chainID of found.graph.chains.keys()) {
    if (!snapshots.has(chainID)) findings.add("image", `snapshot ${chainID}`, "the build put no such layer here");
  }
}

function checkImage(
  image: DescribedImage,
  stored: StoredImage,
  place: string,
  document: VolumeDocument,
  { snapshots }: FoundContents,
  findings: Findings,
): void {
  if (stored.config !== image.config)
    findings.differs("image", place, "the configuration", stored.config, image.config);
  const platform = formatPlatform(normalizePlatform(stored.platform));
  const architecture = (text: string) => text.split("/").slice(0, 2).join("/");
  if (stored.platform.architecture !== "" && architecture(platform) !== architecture(document.platform)) {
    findings.differs("image", place, "the platform", platform, document.platform);
  }
  if (stored.layers.length !== image.layers.length) {
    findings.differs("image", place, "the number of layers", stored.layers.length, image.layers.length);
    return;
  }
  for (const [index, layer] of image.layers.entries()) {
    const own = stored.layers[index]!;
    const where = `${place}, layer ${index}`;
    if (own.descriptor.digest !== layer.digest) {
      findings.differs("image", where, "the digest", own.descriptor.digest, layer.digest);
    }
    if (own.chainID !== layer.chainID) findings.differs("image", where, "the chain", own.chainID, layer.chainID);
    const record = snapshots.get(layer.chainID as ChainID);
    if (record === undefined) continue;
    if (record.id !== layer.snapshotId)
      findings.differs("snapshot", record.place, "the id", record.id, layer.snapshotId);
    if (record.name !== layer.backendName) {
      findings.differs("snapshot", record.place, "the name", record.name, layer.backendName);
    }
    if (layer.files !== null && record.inodes !== layer.files) {
      findings.differs("snapshot", `${record.place}/inodes`, "the number of inodes", record.inodes, layer.files);
    }
    if (layer.bytes !== null && record.size !== layer.bytes) {
      findings.differs("snapshot", `${record.place}/size`, "the size", record.size, layer.bytes);
    }
  }
}

/** Everything that came from outside has to be named among the inputs. */
export function checkMaterials(document: VolumeDocument, blobs: Iterable<Digest>, findings: Findings): void {
  const { statement, path } = document;
  if (statement === null) return;
  for (const digest of blobs) {
    if (!statement.materials.has(digest))
      findings.add("provenance", path, `the blob ${digest} is not among the inputs`);
  }
  for (const image of document.images) {
    for (const digest of [image.digest, image.manifest, image.config, ...image.layers.map((layer) => layer.digest)]) {
      if (!statement.materials.has(digest)) findings.add("provenance", path, `${digest} is not among the inputs`);
    }
  }
}

/** What was asked for, and what came out. */
export function checkParameters(
  { statement, path, target, platform, options }: VolumeDocument,
  findings: Findings,
): void {
  if (statement === null) return;
  const made = { layout: target, platform, blobs: options.blobs ? "keep" : "drop", pin: options.pinned };
  for (const [name, value] of Object.entries(made)) {
    const asked = statement.parameters[name as keyof typeof made];
    if (asked !== value) findings.differs("provenance", path, `the parameter ${name}`, asked, value);
  }
}

/** Digest of a disk: sha256 over the sha256 of those of its blocks that are not zeros. */
const BLOCKS_DIGEST = "sha256Blocks512KiB";
/** Databases are smaller; a file of holes may claim any size. */
const SUBJECT_BYTES_MAX = 1024 * MiB;

/** Files of the volume that the statement gives digests of. Subjects are named by their path on the volume or in containerd's root. */
export async function checkSubjects(
  document: VolumeDocument,
  volume: {
    readonly stored: StoredTree;
    readonly root: ContainerdRoot;
    readonly disk: OpenDisk | null;
  },
  findings: Findings,
): Promise<void> {
  const { stored, root, disk } = volume;
  const { statement } = document;
  if (statement === null) return;
  let databases = 0;
  for (const { name, digest } of statement.subjects) {
    const inode = findPath(stored.tree, root.inode, name) ?? findPath(stored.tree, 0, name);
    const wanted = digest.sha256;
    if (digest[BLOCKS_DIGEST] !== undefined && document.blocks !== null) {
      // the sum over its blocks, which checkBlocks compares with the disk's
      const sum = Buffer.from(document.blocks.linear ?? "", "base64").toString("hex");
      if (sum !== digest[BLOCKS_DIGEST])
        findings.differs("provenance", document.path, `the subject ${name}`, digest[BLOCKS_DIGEST], sum);
    } else if (wanted === undefined) {
      findings.open("subjects of the provenance", "only sha256 is compared");
    } else if (inode !== null && stored.tree.size[inode]! <= SUBJECT_BYTES_MAX) {
      if (name.endsWith(META_DATABASE)) databases++;
      const got = await hashContent(stored, inode, "sha256");
      if (got !== wanted) findings.differs("provenance", `/${name}`, "its sha256", got, wanted);
    } else findings.add("provenance", document.path, `its subject ${name} is not on the volume`);
  }
  if (databases === 0 && disk === null)
    findings.add("provenance", document.path, "it gives no digest of the databases");
}

/** Every block of a disk: those that the manifest lists have that digest, the others are zeros. */
export async function checkBlocks(
  document: VolumeDocument,
  disk: OpenDisk,
  options: { readonly findings: Findings; readonly signal: AbortSignal; readonly onBytes: (count: number) => void },
): Promise<number> {
  const { findings } = options;
  const { blocks, size, path } = document;
  if (size !== null && size !== disk.disk.size) {
    findings.differs("provenance", disk.path, "the size of the disk", disk.disk.size, size);
  }
  if (blocks === null) return 0;
  if (blocks.size !== BLOCK_BYTES) {
    findings.differs("provenance", path, "the size of blocks", blocks.size, BLOCK_BYTES);
    return 0;
  }
  const linear = createHash("sha256");
  const count = Math.ceil(disk.disk.size / BLOCK_BYTES);
  for await (const { index, digest } of diskBlocks(disk, options)) {
    const wanted = blocks.sha256.get(index) ?? null;
    const found = digest?.toString("hex") ?? null;
    if (digest !== null && wanted !== null) linear.update(digest);
    if (found === wanted) continue;
    if (wanted === null && blocks.unused.some(([first, length]) => index >= first && index < first + length)) {
      findings.open("blocks that nothing lies in", "they hold what an earlier volume left");
    } else
      findings.differs(
        "provenance",
        blockPlace(index),
        "its sha256",
        found ?? "that of zeros",
        wanted ?? "that of zeros",
      );
  }
  const beyond = [...blocks.sha256.keys()].filter((index) => index >= count);
  if (beyond.length > 0) findings.add("provenance", path, `${beyond.length} blocks lie beyond the end of the disk`);
  const sum = linear.digest("base64");
  if (blocks.linear !== null && blocks.linear !== sum) {
    findings.differs("provenance", path, "the checksum over all blocks", sum, blocks.linear);
  }
  return count;
}

function blockPlace(index: number): string {
  return `block ${index} (byte ${index * BLOCK_BYTES})`;
}
