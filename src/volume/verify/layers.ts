/**
 * Every snapshot against the layer that it was unpacked from: from the volume's own blobs, or from a source where those were left out. Depth first, so that only one
 * chain's trees are in memory at a time.
 */

import type { ChainID, Digest } from "../../base/digest.ts";
import { describeError, isHeadstartError } from "../../base/errors.ts";
import type { FileTree } from "../../erofs/file-tree.ts";
import { type ReadLayer, readLayerTree } from "../../formats/tar/read-layer.ts";
import type { Descriptor } from "../../oci/descriptor.ts";
import { snapshotUsage } from "../usage.ts";
import type { StoredBlobs } from "./blobs.ts";
import { compareLayer } from "./compare-layer.ts";
import type { Findings } from "./findings.ts";
import type { Chain } from "./graph.ts";
import type { BackendRecord } from "./snapshots.ts";
import { BACKEND, type ContainerdRoot } from "./store.ts";
import { findPath, type StoredTree } from "./stored-tree.ts";

/** A layer's blob from elsewhere, whole; its reader checks the digest. */
export type LayerSource = (layer: Descriptor) => AsyncIterable<Uint8Array> | null;

export interface LayerOptions {
  readonly stored: StoredTree;
  readonly root: ContainerdRoot;
  readonly blobs: StoredBlobs;
  readonly elsewhere: LayerSource;
  readonly findings: Findings;
  readonly clock: readonly bigint[] | null;
  readonly signal: AbortSignal;
  readonly onBytes: (count: number) => void;
  readonly onLayer: () => void;
}

/** Trees of the layers below, lowest first; null where one of them could not be read. */
type Lowers = readonly FileTree[] | null;

/** How many snapshots were proven. */
export async function checkLayers(
  chains: ReadonlyMap<ChainID, Chain>,
  snapshots: ReadonlyMap<ChainID, BackendRecord>,
  options: LayerOptions,
): Promise<number> {
  const children = new Map<ChainID | null, Chain[]>();
  for (const chain of chains.values()) {
    const known = children.get(chain.parent);
    if (known === undefined) children.set(chain.parent, [chain]);
    else known.push(chain);
  }
  const stack: { chain: Chain; lowers: Lowers }[] = [];
  const push = (parent: ChainID | null, lowers: Lowers) => {
    for (const chain of children.get(parent) ?? []) stack.push({ chain, lowers });
  };
  push(null, []);
  let proven = 0;
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    options.signal.throwIfAborted();
    const { chain, lowers } = top;
    const layer = await readChainLayer(chain, lowers, options);
    if (layer !== null && (await checkSnapshot(chain, layer, lowers, snapshots.get(chain.chainID), options))) proven++;
    options.onLayer();
    push(chain.chainID, lowers === null || layer === null ? null : [...lowers, layer.tree]);
  }
  return proven;
}

async function readChainLayer(chain: Chain, lowers: Lowers, options: LayerOptions): Promise<ReadLayer | null> {
  const { blobs, elsewhere, findings, signal } = options;
  const own = chain.layers.find((layer) => blobs.has(layer.digest));
  const layer = own ?? chain.layers[0]!;
  const stream = own === undefined ? elsewhere(layer) : blobs.stream(own.digest);
  if (stream === null) {
    findings.open("layers", "their blobs are not on the volume: name their image with --source");
    return null;
  }
  const { digest, size, mediaType } = layer;
  const { role, diffID } = chain;
  try {
    const read = await readLayerTree(abortable(stream, signal), {
      ...{ digest, size, mediaType, role, diffID },
      hashContents: true,
      ...(role === "upper" && lowers !== null ? { lowers } : {}),
    });
    if (own !== undefined) blobs.judged(digest, true);
    return read;
  } catch (error) {
    signal.throwIfAborted();
    if (own === undefined && !isHeadstartError(error, "HS_DIGEST_MISMATCH", "HS_SIZE_MISMATCH", "HS_LAYER_REFUSED")) {
      throw error;
    }
    if (own !== undefined) blobs.judged(digest, !isHeadstartError(error, "HS_DIGEST_MISMATCH", "HS_SIZE_MISMATCH"));
    findings.add("blob", `blob ${digest}`, describeError(error));
    findings.open("layers", "their blobs are not right");
    return null;
  }
}

async function* abortable(stream: AsyncIterable<Uint8Array>, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  for await (const piece of stream) {
    signal.throwIfAborted();
    yield piece;
  }
}

/** False when there is nothing to compare with. */
async function checkSnapshot(
  chain: Chain,
  layer: ReadLayer,
  lowers: Lowers,
  record: BackendRecord | undefined,
  options: LayerOptions,
): Promise<boolean> {
  const { stored, root, findings, clock, onBytes } = options;
  // that it is missing has been said
  if (record === undefined) return false;
  const path = `${BACKEND}/snapshots/${record.id}/fs`;
  const inode = findPath(stored.tree, root.inode, path);
  if (inode === null) return false;
  const place = `${root.path === "" ? "" : `/${root.path}`}/${path}`;
  await compareLayer({
    expected: layer.tree,
    sha256: (own) => layer.contentSha256(own),
    impliedKnown: chain.role === "lowest" || lowers !== null,
    ...{ stored, root: inode, place, findings, clock, onBytes },
  });
  checkUsage(layer.tree, inode, record, options);
  return true;
}

/** As built, or as stat counts what is there. */
function checkUsage(expected: FileTree, inode: number, record: BackendRecord, options: LayerOptions): void {
  const { stored, findings, clock } = options;
  const usage = snapshotUsage(expected);
  if (record.inodes !== usage.inodes) {
    findings.differs("snapshot", `${record.place}/inodes`, "the number of inodes", record.inodes, usage.inodes);
  }
  if (record.size === usage.size || (clock === null && record.size === allocated(stored, inode))) return;
  findings.differs("snapshot", `${record.place}/size`, "the size", record.size, usage.size);
}

/** Bytes of the blocks of everything below a directory, itself included, each inode once. */
function allocated(stored: StoredTree, directory: number): number {
  const { tree } = stored;
  const seen = new Set([directory]);
  const stack = [directory];
  let bytes = stored.allocated(directory);
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    for (let dirent = tree.childStart[top]!; dirent < tree.childStart[top + 1]!; dirent++) {
      const inode = tree.childInode[dirent]!;
      if (seen.has(inode)) continue;
      seen.add(inode);
      bytes += stored.allocated(inode);
      stack.push(inode);
    }
  }
  return bytes;
}

/** Blobs that should lie in the content store: all of them, or, where layers were left out, all but those. */
export function checkPresence(
  records: ReadonlyMap<Digest, { readonly place: string; readonly size: number | null }>,
  layers: ReadonlySet<Digest>,
  blobs: StoredBlobs,
  options: { readonly findings: Findings; readonly layersKept: boolean | null },
): void {
  const { findings } = options;
  const isThere = (digest: Digest) => blobs.has(digest) || records.has(digest);
  const kept = options.layersKept ?? [...layers].some(isThere);
  for (const digest of layers) {
    if (kept && !isThere(digest)) findings.add("blob", `blob ${digest}`, "a layer's blob is missing");
    if (!kept && isThere(digest)) findings.add("blob", `blob ${digest}`, "is here, though layers' blobs were left out");
  }
  if (!kept && layers.size > 0) findings.open("blobs of layers", "the volume was built without them", layers.size);
  for (const [digest, { place, size }] of records) {
    const stored = blobs.size(digest);
    if (stored === null) findings.add("blob", place, "there is no such file in the content store");
    else if (size !== null && size !== stored) findings.differs("blob", `${place}/size`, "the size", size, stored);
  }
  for (const digest of blobs.digests) {
    if (!records.has(digest)) findings.add("blob", `blob ${digest}`, "meta.db does not know it");
  }
}
