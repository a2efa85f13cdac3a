/** Golden images of the real tools: trees, chunks, chunk arrays, blob tails and contents. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import {
  chunkInfos,
  type DecodedRecord,
  decodedBlob,
  decodedBootstrap,
  expectedNydusTree,
  nydusBlob,
  nydusBootstrap,
  nydusVariants,
  storedChunkInfo,
} from "../../../test/suites/golden-nydus.ts";
import { ADDRESS_SPACE, FileType } from "../../erofs/file-tree.ts";
import { bytesSource } from "../../erofs/source.ts";
import { compareTreeLines, type TreeLine, treeLines } from "../../erofs/tree-lines.ts";
import { decoderFor } from "../all.ts";
import { pieceHash, verifyPiece } from "../piece-hash.ts";
import { readBlobTail } from "./blob-tail.ts";
import { type NydusBootstrap, readBootstrap } from "./bootstrap.ts";
import { chunkInfoFromBlob } from "./chunk-info.ts";
import { COMPRESSOR_NAMES } from "./ondisk.ts";
import { nydusUnits, prefetchUnits } from "./units.ts";

/** nydus-image refuses its bootstrap too (test/golden/nydus/README.md). */
const BROKEN = "v6-optimize";
const variants = Object.keys(nydusVariants).filter((variant) => variant !== BROKEN);
/** Variants all of whose blobs are in the repository, with the files that they hold. */
const WHOLE: Readonly<Record<string, number>> = {
  "v6-zstd-1m": 342,
  "v6-lz4-64k-sha256": 342,
  "v6-none-1m-upper-layers": 14,
  "v6-zstd-64k-notoc-upper-layers": 14,
  "v6-zstd-1m-batch": 342,
  "v6-zstd-1m-encrypted-upper-layers": 14,
  "v6-zran": 342,
  "v6-zran-multi": 342,
  "v6-chunkdict": 342,
};

async function lines(bootstrap: NydusBootstrap): Promise<TreeLine[]> {
  const found: TreeLine[] = [];
  for await (const line of treeLines(bootstrap.tree)) found.push(line);
  return found;
}

/** Inodes by path. */
function paths(bootstrap: NydusBootstrap): Map<string, number> {
  const { tree } = bootstrap;
  const found = new Map([["/", 0]]);
  const stack = [{ path: "", inode: 0 }];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    for (let dirent = tree.childStart[top.inode]!; dirent < tree.childStart[top.inode + 1]!; dirent++) {
      const start = tree.childNameOffset[dirent]!;
      const name = Buffer.from(tree.bytes.slice(start, start + tree.childNameLength[dirent]!)).toString("latin1");
      const inode = tree.childInode[dirent]!;
      found.set(`${top.path}/${name}`, inode);
      if (tree.type[inode] === FileType.directory) stack.push({ path: `${top.path}/${name}`, inode });
    }
  }
  return found;
}

/** The decoder's paths are text with surrogateescape; ours here have one char a byte. */
const latin = (path: string) =>
  path
    .split(/([\udc80-\udcff])/u)
    .map((part) =>
      /^[\udc80-\udcff]$/u.test(part)
        ? String.fromCharCode(part.charCodeAt(0) & 0xff)
        : Buffer.from(part).toString("latin1"),
    )
    .join("");

test("the tree of every golden image is the one that nydusd showed", async () => {
  const expected = expectedNydusTree().map(({ sha256: _, ...line }) => line);
  for (const variant of variants) {
    const got = await lines(readBootstrap(nydusBootstrap(variant), variant));
    if (variant.endsWith("-upper-layers")) {
      // nydusd's listing is of all layers; the decoder's is of these
      assert.deepEqual(got.map((line) => line.path).toSorted(), Object.keys(decodedBootstrap(variant).tree).toSorted());
      continue;
    }
    const special = new Set(variant.endsWith("-nospecial") ? ["/box/loop", "/box/null", "/box/pipe"] : []);
    const wanted = expected.filter((line) => !special.has(line.path));
    assert.deepEqual(compareTreeLines(wanted, got), [], variant);
  }
});

test("whiteouts of layers that have nothing below stay plain files, as the image has them", async () => {
  const got = await lines(readBootstrap(nydusBootstrap("v6-none-1m-upper-layers")));
  assert.ok(got.some((line) => /\/\.wh\./.test(line.path) && line.type === "reg"));
});

test("blob tables and the chunks of every file are what an independent decoder read", () => {
  for (const variant of variants) {
    const bootstrap = readBootstrap(nydusBootstrap(variant), variant);
    const decoded = decodedBootstrap(variant);
    const inodes = paths(bootstrap);
    if (bootstrap.version === 6) {
      assert.deepEqual(
        bootstrap.blobs.map((blob) => ({
          id: blob.id,
          chunk_count: blob.chunkCount,
          features_raw: blob.features,
          compressed_size: blob.compressedSize,
          uncompressed_size: blob.uncompressedSize,
          ci_offset: blob.chunkInfo!.offset,
          ci_csize: blob.chunkInfo!.compressedSize,
          ci_usize: blob.chunkInfo!.size,
          compressor: COMPRESSOR_NAMES[blob.compressor],
          digester: blob.digester,
        })),
        decoded.blobs.map((blob) => ({
          id: blob.id,
          chunk_count: blob.chunk_count,
          features_raw: blob.features_raw,
          compressed_size: blob.compressed_size,
          uncompressed_size: blob.uncompressed_size,
          ci_offset: blob.ci_offset,
          ci_csize: blob.ci_csize,
          ci_usize: blob.ci_usize,
          compressor: blob.compressor,
          digester: blob.digester,
        })),
      );
    }
    let files = 0;
    for (const [path, entry] of Object.entries(decoded.tree)) {
      if (entry.chunks === undefined) continue;
      files++;
      const inode = inodes.get(latin(path));
      assert.notEqual(inode, undefined, path);
      assert.deepEqual(chunksOf(bootstrap, inode!), entry.chunks.map(oneChunk), `${variant}: ${path}`);
    }
    assert.ok(files > 5, variant);
    assert.ok(!bootstrap.uses.record.includes(-1), `${variant}: every chunk has a digest`);
  }
});

interface OneChunk {
  readonly blob: number;
  readonly chunk: number;
  readonly offset: number;
  readonly digest?: string;
}

function oneChunk(chunk: readonly [number, number, number] | DecodedRecord): OneChunk {
  if (!("digest" in chunk)) return { blob: chunk[0] - 1, chunk: chunk[1], offset: chunk[2] * 4096 };
  return { blob: chunk.blob, chunk: chunk.index, offset: chunk.u_off, digest: chunk.digest };
}

function chunksOf(bootstrap: NydusBootstrap, inode: number): OneChunk[] {
  const { tree, uses, records } = bootstrap;
  const found: OneChunk[] = [];
  for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++) {
    const address = tree.segmentAddress[segment]!;
    const use = uses.address.indexOf(address);
    const record = uses.record[use]!;
    const blob = Math.floor(address / ADDRESS_SPACE);
    found.push({
      blob,
      chunk: uses.chunk[use]!,
      offset: address - blob * ADDRESS_SPACE,
      ...(bootstrap.version === 5 && {
        digest: Buffer.from(records.digest.subarray(record * 32, record * 32 + 32)).toString("hex"),
      }),
    });
  }
  return found;
}

test("chunk arrays, contexts, blob parts and tables of contents are what an independent decoder read", () => {
  let arrays = 0;
  for (const variant of variants) {
    const bootstrap = readBootstrap(nydusBootstrap(variant), variant);
    for (const [layer, id] of Object.entries(nydusVariants[variant]!.layers)) {
      const decoded = decodedBlob(variant, layer);
      const bytes = nydusBlob(id);
      if (decoded === null || bytes === null) continue;
      const tail = readBlobTail(bytesSource(bytes), variant);
      const parts = decoded.parts.map(({ name, start, size }) => ({ name, start, size }));
      assert.deepEqual([...tail.parts], parts, `${variant}: ${layer}`);
      assert.equal(tail.headSize, 0);
      assert.equal(tail.tocDigest, decoded.toc_digest ?? null);
      assert.deepEqual(
        tail.toc?.map((entry) => [entry.name, entry.sha256, entry.storedOffset, entry.storedSize, entry.size]),
        decoded.toc?.map((entry) => [entry.name, entry.sha256, entry.c_off, entry.c_size, entry.u_size]),
      );
      const blob = bootstrap.blobs.find((one) => (one.metaBlob?.id ?? one.id) === id);
      if (blob === undefined || decoded.ci === undefined || decoded.ci === "encrypted" || blob.chunkInfo === null)
        continue;
      const info = chunkInfoFromBlob(blob, storedChunkInfo(blob)!);
      const inContext = (chunk: number) => (info.flags[chunk]! & 6) !== 0;
      assert.deepEqual(
        Array.from({ length: info.count }, (_, chunk) => ({
          u_off: info.offset[chunk],
          u_size: info.size[chunk],
          flags: info.flags[chunk],
          c_off: info.storedOffset[chunk],
          c_size: info.storedSize[chunk],
          ...(inContext(chunk) && { ctx: info.context[chunk], ctx_off: info.contextOffset[chunk] }),
        })),
        decoded.ci.chunks.map(({ u_off, u_size, flags, c_off, c_size, ctx, ctx_off }) => ({
          u_off,
          u_size,
          flags,
          c_off,
          c_size,
          ...((flags & 6) !== 0 && { ctx, ctx_off }),
        })),
        `${variant}: ${layer}`,
      );
      assert.equal(info.restarts?.count ?? info.batches?.count ?? 0, decoded.ci.contexts.length);
      arrays++;
    }
  }
  assert.equal(arrays, 21);
});

test("contents are those that nydusd gave, each chunk verified by its digest", async () => {
  for (const [variant, fileCount] of Object.entries(WHOLE)) {
    const bootstrap = readBootstrap(nydusBootstrap(variant), variant);
    const present = bootstrap.blobs.map((blob) => nydusBlob(blob.id)!);
    const sizes = present.map((blob) => blob.byteLength);
    const { units, decode } = nydusUnits(bootstrap, chunkInfos(bootstrap), sizes, variant);
    const decoder = decoderFor(decode, units);
    const digest = await pieceHash(units.pieceDigestAlgorithm!);
    const decoded = new Map<number, Uint8Array>();
    const pieces = new Map<number, Uint8Array>();
    for (let piece = 0; piece < units.pieceCount; piece++) {
      const unit = units.pieceUnit[piece]!;
      if (!decoded.has(unit)) {
        const stored = present[units.unitBlob[unit]!]!.subarray(units.unitStart[unit]!, units.unitEnd[unit]!);
        decoded.set(unit, Uint8Array.from(decoder.decode(unit, stored)));
      }
      const start = units.pieceOffset[piece]!;
      const bytes = decoded.get(unit)!.subarray(start, start + units.pieceLength[piece]!);
      verifyPiece(units, piece, bytes, digest, variant);
      pieces.set(units.pieceAddress[piece]!, bytes);
    }
    const { tree } = bootstrap;
    let files = 0;
    const wanted = decodedBootstrap(variant).tree;
    const checked = new Set<number>();
    for (const [path, inode] of paths(bootstrap)) {
      const entry = Object.entries(wanted).find(([name]) => latin(name) === path)?.[1];
      if (tree.type[inode] !== FileType.regular || checked.has(inode) || entry?.sha256 === undefined) continue;
      const hash = createHash("sha256");
      for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++)
        hash.update(pieces.get(tree.segmentAddress[segment]!)!);
      assert.equal(hash.digest("hex"), entry.sha256, `${variant}: ${path}`);
      checked.add(inode);
      files++;
    }
    assert.equal(files, fileCount, variant);
  }
});

test("the prefetch table names the units of its files, a directory all that is in it", () => {
  const bootstrap = readBootstrap(nydusBootstrap("v6-zstd-1m-prefetch"));
  const inodes = paths(bootstrap);
  const decoded = decodedBootstrap("v6-zstd-1m-prefetch");
  assert.deepEqual(
    bootstrap.prefetch,
    decoded.prefetch.map(({ path }) => inodes.get(path)),
  );
  const whole = readBootstrap(nydusBootstrap("v6-zstd-1m"));
  const { units } = nydusUnits(whole, chunkInfos(whole), [1e9, 1e9, 1e9], "v6-zstd-1m");
  const inEtc = [...paths(whole)].filter(([path]) => path.startsWith("/etc/")).map(([, inode]) => inode);
  const addresses = new Set(
    inEtc.flatMap((inode) => [
      ...whole.tree.segmentAddress.slice(whole.tree.segmentStart[inode], whole.tree.segmentStart[inode + 1]),
    ]),
  );
  const found = prefetchUnits({ ...whole, prefetch: [paths(whole).get("/etc")!] }, units);
  assert.equal(found.length, addresses.size);
});

test("the image that nydus-image refuses is refused", () => {
  assert.throws(() => readBootstrap(nydusBootstrap(BROKEN)), { code: "HS_NYDUS_INVALID" });
});
