/** Bootstraps that we write: read back by our strict reader, and held against those of the real tool. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { zstdDecompressSync } from "node:zlib";
import fc from "fast-check";
import { nydusBlob, nydusBootstrap, nydusVariants } from "../../../../test/suites/golden-nydus.ts";
import { layerInMemory, linesFromAddresses, linesOf } from "../../../../test/tools/nydus-in-memory.ts";
import { randomTree } from "../../../../test/tools/random-tree.ts";
import { FileTreeBuilder, FileType } from "../../../erofs/file-tree.ts";
import { bytesSource } from "../../../erofs/source.ts";
import { compareTreeLines } from "../../../erofs/tree-lines.ts";
import { readBlobTail } from "../blob-tail.ts";
import { type NydusBootstrap, readBootstrap } from "../bootstrap.ts";
import { readLayerBootstrap } from "../layer-bootstrap.ts";
import { Compressor } from "../ondisk.ts";
import { writeBootstrap, writeLayerBootstrap } from "./bootstrap.ts";
import { imageBlobs } from "./dictionary.ts";

const CHUNK = 4096;

function rewritten(golden: NydusBootstrap): Buffer {
  return Buffer.from(
    writeBootstrap({
      tree: golden.tree,
      chunkSize: golden.chunkSize,
      compressor: golden.compressor!,
      digester: golden.digester!,
      blobs: imageBlobs(golden),
      prefetch: golden.prefetch,
    }),
  );
}

const chunkTableOf = (boot: Buffer) => {
  const start = Number(boot.readBigUInt64LE(1152 + 24));
  return Buffer.from(boot.subarray(start, start + Number(boot.readBigUInt64LE(1152 + 32))));
};

/** Encrypted images are read, not written; the last one is refused by every reader. */
const variants = Object.keys(nydusVariants).filter((name) => !/^v5|encrypted|optimize/.test(name));

test("of what a golden bootstrap says, the superblocks, device slots, blob table and chunk table are written as the real tool wrote them, byte for byte", () => {
  for (const variant of variants) {
    const golden = nydusBootstrap(variant);
    const ours = rewritten(readBootstrap(golden, variant));
    assert.equal(ours.byteLength, golden.byteLength, variant);
    // up to the prefetch table: it names nids, which are given out in another order
    const end = 4096 + ours.readUInt32LE(1152 + 16);
    assert.ok(ours.subarray(0, end).equals(golden.subarray(0, end)), variant);
    assert.ok(chunkTableOf(ours).equals(chunkTableOf(golden)), variant);
  }
});

test("a golden bootstrap, written again, is the same tree with the same chunks and the same order of prefetch", () => {
  for (const variant of variants) {
    const golden = readBootstrap(nydusBootstrap(variant), variant);
    const ours = readBootstrap(rewritten(golden), variant);
    assert.deepEqual(ours.blobs, golden.blobs);
    assert.deepEqual(ours.uses, golden.uses);
    assert.deepEqual(ours.records, { ...golden.records });
    const paths = (bootstrap: NydusBootstrap) =>
      bootstrap.prefetch.map((inode) => [bootstrap.tree.type[inode], bootstrap.tree.size[inode]]);
    assert.deepEqual(paths(ours), paths(golden));
    assert.deepEqual(ours.tree.segmentAddress.toSorted(), golden.tree.segmentAddress.toSorted());
  }
});

test("random trees, with chunks of one block and of a megabyte, are read as they were written", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: 1e6 }),
      fc.integer({ min: 1, max: 250 }),
      fc.constantFrom(4096, 8192, 1 << 20),
      async (seed, entries, chunkSize) => {
        const tree = randomTree(seed, { entries });
        const { layer, data } = layerInMemory(tree, { chunkSize });
        const input = {
          tree: layer.tree,
          chunkSize,
          compressor: Compressor.none,
          digester: layer.digester,
          blobs: layer.blob === null ? [] : [layer.blob],
          prefetch: [],
        };
        const bytes = writeBootstrap(input);
        assert.ok(Buffer.from(writeBootstrap(input)).equals(bytes), "the same bytes again");
        const found = readBootstrap(bytes);
        assert.deepEqual(
          compareTreeLines(await linesFromAddresses(tree), await linesOf(found.tree, [data])),
          [],
          `seed ${seed}`,
        );
      },
    ),
    { numRuns: 30 },
  );
});

test("a layer's own bootstrap has its marks as plain files and no blob id, and is read back as the layer that it was", async () => {
  for (let seed = 1; seed <= 12; seed++) {
    const tree = randomTree(seed, { entries: 120 });
    const { layer, data } = layerInMemory(tree, { chunkSize: CHUNK, role: "upper" });
    const bytes = writeLayerBootstrap({ ...layer, compressor: Compressor.none, refId: null });
    assert.throws(() => readBootstrap(bytes), { code: "HS_FORMAT_UNSUPPORTED" });
    const id = layer.blob!.facts.id;
    const plain = readBootstrap(bytes, "plain", { id, size: data.byteLength });
    const long = layer.tree.childNameLength.some((length) => length > 251);
    assert.ok(long || !plain.tree.hasMarks || seed === 0, `seed ${seed}: no overlay marks`);
    const found = readLayerBootstrap(bytes, { id, size: data.byteLength }, "upper");
    assert.equal(found.blobs[0]!.id, id);
    assert.equal(found.blobs[0]!.features, layer.blob!.facts.features);
    // a mark keeps its owner only; the opaque mark of the root has no effect and is dropped (specs/layer.md C11)
    const lines = (await linesFromAddresses(tree)).map((line) => {
      if (line.type === "char" && line.rdev![0] === 0 && line.rdev![1] === 0) {
        const { xattrs: _, ...rest } = line;
        return { ...rest, mode: "0000", mtime_ns: "0" };
      }
      return line;
    });
    const differences = compareTreeLines(lines, await linesOf(found.tree, [data]));
    assert.deepEqual(
      differences.filter(({ path, key }) => !(path === "/" && key === "xattrs")),
      [],
      `seed ${seed}`,
    );
  }
});

test("the bootstraps that the real tool put into its blobs are read, and written again with the same tables", () => {
  let count = 0;
  for (const variant of variants) {
    for (const id of Object.values(nydusVariants[variant]!.layers)) {
      const blob = nydusBlob(id);
      if (blob === null) continue;
      const boot = bootstrapIn(blob);
      const golden = readBootstrap(boot, variant, { id, size: blob.byteLength });
      const [own, ...dictionary] = imageBlobs(golden);
      const ours = Buffer.from(
        writeLayerBootstrap({
          tree: golden.tree,
          chunkSize: golden.chunkSize,
          compressor: golden.compressor!,
          digester: golden.digester!,
          blob: own!,
          refId: own!.facts.metaBlob === null ? null : own!.facts.id,
          dictionary,
        }),
      );
      const end = 4096 + ours.readUInt32LE(1152 + 16);
      assert.ok(ours.subarray(0, end).equals(boot.subarray(0, end)), `${variant}: ${id}`);
      const marks = readLayerBootstrap(ours, { id, size: blob.byteLength }, "upper").tree;
      assert.equal(
        marks.hasMarks,
        names(golden).some((name) => name.startsWith(".wh.")),
        `${variant}: ${id}`,
      );
      count++;
    }
  }
  assert.ok(count >= 20, `${count} blobs`);
});

/** The part `image.boot`, plain. */
function bootstrapIn(blob: Buffer): Buffer {
  const tail = readBlobTail(bytesSource(blob));
  const part = tail.parts.find(({ name }) => name === "image.boot")!;
  const stored = blob.subarray(part.start, part.start + part.size);
  const compressed = tail.toc?.find(({ name }) => name === "image.boot")?.compression === "zstd";
  return compressed ? zstdDecompressSync(stored) : stored;
}

function names({ tree }: NydusBootstrap): string[] {
  return Array.from(tree.childNameOffset, (at, index) =>
    Buffer.from(tree.bytes.slice(at, at + tree.childNameLength[index]!)).toString("latin1"),
  );
}

test("what the format cannot hold is refused by a typed error", () => {
  const { layer } = layerInMemory(randomTree(3, { entries: 30 }), { chunkSize: CHUNK });
  const input = {
    tree: layer.tree,
    chunkSize: CHUNK,
    compressor: Compressor.none,
    digester: layer.digester,
    prefetch: [],
  };
  const blob = layer.blob!;
  const many = Array.from({ length: 255 }, () => blob);
  assert.throws(() => writeBootstrap({ ...input, blobs: many }), { code: "HS_NYDUS_LIMIT", message: /255 layers/ });
  const huge = { ...blob, facts: { ...blob.facts, uncompressedSize: 2 ** 44 } };
  assert.throws(() => writeBootstrap({ ...input, blobs: [blob, huge] }), { code: "HS_NYDUS_LIMIT" });
  assert.throws(() => writeBootstrap({ ...input, blobs: [] }), { code: "HS_INTERNAL", message: /no chunk of/ });
  assert.throws(() => writeBootstrap({ ...input, chunkSize: 8192, blobs: [blob] }), { code: "HS_INTERNAL" });
});

test("a layer without data has no blob, and its bootstrap is an image all the same", async () => {
  const root = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 };
  const builder = new FileTreeBuilder(root);
  builder.addName(0, Buffer.from("empty"), builder.addInode({ ...root, type: FileType.regular }));
  const tree = builder.finish();
  const { layer } = layerInMemory(tree, { chunkSize: 1 << 20 });
  assert.equal(layer.blob, null);
  const bytes = writeLayerBootstrap({ ...layer, compressor: Compressor.zstd, refId: null });
  const found = readLayerBootstrap(bytes, { id: "a".repeat(64), size: 1000 }, "lowest");
  assert.deepEqual(found.blobs, []);
  assert.deepEqual(await linesOf(found.tree, []), await linesFromAddresses(tree));
});

test("a file whose chunks lie behind each other is one mapping for the kernel", () => {
  const root = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 };
  const builder = new FileTreeBuilder(root);
  const file = (name: string, size: number, address: number) => {
    const segments = [{ fileOffset: 0, length: size, address }];
    builder.addName(0, Buffer.from(name), builder.addInode({ ...root, type: FileType.regular, size, segments }));
  };
  file("a", 5 * CHUNK + 1, 1);
  file("b", 2 * CHUNK, 1);
  const { layer } = layerInMemory(builder.finish(), { chunkSize: CHUNK });
  const input = {
    tree: layer.tree,
    chunkSize: CHUNK,
    compressor: Compressor.none,
    digester: layer.digester,
    blobs: [layer.blob!],
    prefetch: [],
  };
  const bytes = Buffer.from(writeBootstrap(input));
  const formats = new Map<number, number>();
  const meta = bytes.readUInt32LE(1024 + 40) * 4096;
  for (let at = meta + 128 * 32; formats.size < 2; at += 32) {
    if ((bytes.readUInt16LE(at + 4) & 0o170000) === 0o100000)
      formats.set(Number(bytes.readBigUInt64LE(at + 8)), bytes.readUInt32LE(at + 16));
  }
  // six blocks are mapped as eight; the second file's chunks are the first one's
  assert.deepEqual(
    [...formats],
    [
      [5 * CHUNK + 1, 0x23],
      [2 * CHUNK, 0x21],
    ],
  );
});
