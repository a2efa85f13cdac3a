import assert from "node:assert/strict";
import { closeSync, fstatSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { noise } from "../../test/fakes/plain-layer.ts";
import { readFully } from "../base/files.ts";
import { FileTreeBuilder, FileType } from "../erofs/file-tree.ts";
import { BLOCK_SIZE } from "../erofs/placement.ts";
import { layoutEager } from "../erofs/write.ts";
import { EagerWriter, type StoredPiece } from "./eager-writer.ts";

const attributes = { mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 };

/** Pieces of a sparse file as (hole before, length), empty ones too. */
const pieces = fc.array(fc.tuple(fc.constantFrom(0, 1, 4096, 5000, 40_000), fc.nat(9000)), { maxLength: 5 });
const files = fc.array(
  fc.oneof(
    fc.record({
      length: fc.oneof(fc.nat(9000), fc.constantFrom(4095, 4096, 4097, 5_000_000)),
      sparse: fc.constant(null),
    }),
    fc.record({ length: fc.constant(0), sparse: pieces }),
  ),
  { minLength: 1, maxLength: 12 },
);

test("files of a stream, sparse ones too, lie where the tree's segments say, and all else is zeros", async () => {
  const path = join(tmpdir(), `eager-writer-test-${process.pid}`);
  await fc.assert(
    fc.asyncProperty(files, fc.integer({ min: 1, max: 70_000 }), async (wanted, chunkBytes) => {
      const fd = openSync(path, "w+");
      try {
        const writer = new EagerWriter(fd);
        const builder = new FileTreeBuilder(attributes);
        const contents: Uint8Array[] = [];
        let address = 512;
        for (const [index, { length, sparse }] of wanted.entries()) {
          const map: StoredPiece[] = [];
          let size = 0;
          for (const [hole, bytes] of sparse ?? [[0, length]]) {
            map.push({ offset: size + hole, length: bytes });
            size += hole + bytes;
          }
          const stored = noise(
            map.reduce((sum, piece) => sum + piece.length, 0),
            index + 1,
          );
          const content = new Uint8Array(size);
          const segments: { fileOffset: number; length: number; address: number }[] = [];
          let at = 0;
          for (const piece of map) {
            content.set(stored.subarray(at, at + piece.length), piece.offset);
            if (piece.length > 0)
              segments.push({ fileOffset: piece.offset, length: piece.length, address: address + at });
            at += piece.length;
          }
          if (stored.byteLength > 0) writer.begin({ address, size, pieces: sparse === null ? null : map });
          for (let from = 0; from < stored.byteLength; from += chunkBytes)
            writer.data(stored.subarray(from, from + chunkBytes));
          if (index % 2 === 1) await writer.ready();
          builder.addName(
            0,
            Buffer.from(`${index}`),
            builder.addInode({ ...attributes, type: FileType.regular, size, segments }),
          );
          contents.push(content);
          address += Math.ceil(stored.byteLength / 512) * 512 + 512;
        }
        await writer.finish();
        const tree = builder.finish();
        const places = writer.placesOf(tree);
        const layout = layoutEager(tree, places, writer.dataEnd, { uuid: new Uint8Array(16) });
        assert.ok(fstatSync(fd).size <= layout.metadataRange.start);
        const image = new Uint8Array(layout.metadataRange.start);
        readFully(fd, image, 0);
        for (const [index, content] of contents.entries()) {
          if (content.byteLength === 0) continue;
          const place = places[index + 1]!;
          assert.equal(Buffer.compare(image.subarray(place, place + content.byteLength), content), 0, `file ${index}`);
          image.fill(0, place, place + Math.ceil(content.byteLength / BLOCK_SIZE) * BLOCK_SIZE);
        }
        assert.ok(image.every((byte) => byte === 0));
      } finally {
        closeSync(fd);
      }
    }),
    { numRuns: 50, interruptAfterTimeLimit: 10_000 },
  );
  rmSync(path, { force: true });
});

test("a write that fails is what the writer throws from then on, and nothing is under way once it has settled", async () => {
  const path = join(tmpdir(), `eager-writer-test-${process.pid}`);
  const fd = openSync(path, "w+");
  const readOnly = openSync(path, "r");
  try {
    const writer = new EagerWriter(readOnly);
    writer.begin({ address: 512, size: 20_000_000, pieces: null });
    // more than all buffers hold: some of it is written at once
    assert.throws(() => writer.data(noise(20_000_000, 1)), { code: "EBADF" });
    await assert.rejects(writer.ready(), { code: "EBADF" });
    await assert.rejects(writer.finish(), { code: "EBADF" });
    await writer.settled();

    const short = new EagerWriter(readOnly);
    short.begin({ address: 512, size: 5000, pieces: null });
    short.data(noise(5000, 1));
    await assert.rejects(short.finish(), { code: "EBADF" });
    await short.settled();
  } finally {
    closeSync(readOnly);
    closeSync(fd);
    rmSync(path, { force: true });
  }
});
