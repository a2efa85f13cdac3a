/** Whole images from tar.gz layers: what the real tool made of the same layers, and what the strict reader finds in ours. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { expectedNydusTree, nydusBlob, nydusBootstrap, nydusVariants } from "../../../../test/suites/golden-nydus.ts";
import type { Digest } from "../../../base/digest.ts";
import { ADDRESS_SPACE, childName, type FileTree, FileType } from "../../../erofs/file-tree.ts";
import { compareTreeLines, type TreeLine, treeLines } from "../../../erofs/tree-lines.ts";
import { MEDIA_TYPES } from "../../../oci/media-types.ts";
import { type NydusBootstrap, readBootstrap } from "../bootstrap.ts";
import { chunkInfoFromFile } from "../chunk-info.ts";
import { openNydus } from "../open.ts";
import { writeBootstrap } from "./bootstrap.ts";
import { mergeLayers } from "./merge.ts";
import { buildNativeLayer, type NydusLayer } from "./native.ts";
import { NYDUS_DEFAULTS, type NydusOptions } from "./options.ts";

/** The gzip layers that the golden images were made from. */
const SOURCES = Object.values(nydusVariants["v6-zran"]!.original!);

async function build(options: Partial<NydusOptions>): Promise<NydusLayer[]> {
  const built: NydusLayer[] = [];
  for (const [index, hex] of SOURCES.entries()) {
    const stored = nydusBlob(hex)!;
    const layer = await buildNativeLayer({
      bytes: (async function* () {
        yield stored;
      })(),
      layer: { digest: `sha256:${hex}` as Digest, size: stored.byteLength, mediaType: MEDIA_TYPES.ociLayerGzip },
      role: index === 0 ? "lowest" : "upper",
      options: { ...NYDUS_DEFAULTS, ...options },
      dictionary: null,
      sink: () => {},
    });
    built.push(layer);
  }
  return built;
}

const merge = (built: readonly NydusLayer[]) => mergeLayers(built.map(({ layer }) => layer));

/** Chunks by path: [device, chunk, block], as the decoder of the golden files lists them. */
function chunksByPath({ tree, uses }: NydusBootstrap): Map<string, (readonly [number, number, number])[]> {
  const chunkOf = new Map(Array.from(uses.address, (address, use) => [address, uses.chunk[use]!]));
  const found = new Map<string, (readonly [number, number, number])[]>();
  visit(tree, 0, "", (path, inode) => {
    if (tree.type[inode] !== FileType.regular) return;
    const addresses = tree.segmentAddress.slice(tree.segmentStart[inode], tree.segmentStart[inode + 1]);
    found.set(
      path,
      Array.from(addresses, (address) => {
        const blob = Math.floor(address / ADDRESS_SPACE);
        return [blob + 1, chunkOf.get(address)!, (address - blob * ADDRESS_SPACE) / 4096] as const;
      }),
    );
  });
  return found;
}

function visit(tree: FileTree, directory: number, path: string, see: (path: string, inode: number) => void): void {
  for (let dirent = tree.childStart[directory]!; dirent < tree.childStart[directory + 1]!; dirent++) {
    const name = `${path}/${Buffer.from(childName(tree, dirent)).toString("latin1")}`;
    see(name, tree.childInode[dirent]!);
    visit(tree, tree.childInode[dirent]!, name, see);
  }
}

test("every file is made of the chunks that the real tool made it of, at the same places, with the same digests", async () => {
  for (const [variant, chunkSize] of [
    ["v6-zstd-1m", 1 << 20],
    ["v6-zstd-64k", 1 << 16],
  ] as const) {
    const built = await build({ chunkSize, digester: "blake3", batchSize: 0, compressor: "zstd" });
    const ours = readBootstrap(writeBootstrap(merge(built)));
    const golden = readBootstrap(nydusBootstrap(variant));
    const wanted = chunksByPath(golden);
    assert.ok(wanted.size > 300);
    assert.deepEqual(chunksByPath(ours), wanted, variant);
    const facts = ({ blobs }: NydusBootstrap) =>
      blobs.map(({ chunkCount, compressor, digester, features, uncompressedSize, chunkInfo }) => ({
        ...{ chunkCount, compressor, digester, features, uncompressedSize },
        size: chunkInfo!.size,
      }));
    assert.deepEqual(facts(ours), facts(golden), variant);
    const { digest, crc32, size, offset, blob, index } = ours.records;
    assert.deepEqual(
      { digest, crc32, size, offset, blob, index },
      {
        ...{ digest: golden.records.digest, crc32: golden.records.crc32, size: golden.records.size },
        ...{ offset: golden.records.offset, blob: golden.records.blob, index: golden.records.index },
      },
    );
  }
});

test("the tree is the one that nydusd showed of the real tool's image, but for what that one loses", async () => {
  const ours = readBootstrap(writeBootstrap(merge(await build({}))));
  const lines: TreeLine[] = [];
  for await (const line of treeLines(ours.tree)) lines.push(line);
  const expected = expectedNydusTree().map(({ sha256: _, ...line }) => line);
  const differences = compareTreeLines(expected, lines);
  const lost = (key: string, path: string) =>
    // fractions of seconds, the count of a hidden name, an xattr that the overlay does not show
    key === "mtime_ns" ||
    (path === "/mid/hard-2" && ["nlink", "linked_with"].includes(key)) ||
    path === "/etc/xattr-trusted";
  assert.deepEqual(
    differences.filter(({ key, path }) => !lost(key, path)),
    [],
  );
});

test("an image with every kind of chunk array opens as a mount would open it: each chunk has a digest and a unit", async () => {
  for (const options of [
    { batchSize: 0 },
    {},
    { compressor: "lz4_block" },
    { chunkSize: 4096, batchSize: 0 },
  ] as const) {
    const built = await build(options);
    const bootstrap = readBootstrap(writeBootstrap(merge(built)));
    const infos = bootstrap.blobs.map((blob) => {
      const { layer, blobMeta } = built.find(({ layer: { blob: own } }) => own?.facts.id === blob.id)!;
      return chunkInfoFromFile(blob, blobMeta!) ?? layer.blob!.chunks;
    });
    const sizes = bootstrap.blobs.map(({ id }) => built.find(({ blob }) => blob.digest === `sha256:${id}`)!.blob.size);
    const { units } = openNydus(bootstrap, infos, sizes, "image");
    assert.equal(units.pieceCount, bootstrap.uses.count);
    assert.ok(units.pieceCount > 300);
  }
});
