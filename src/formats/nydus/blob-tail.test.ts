/** The end of a blob, with and without a table of contents, and ends that make no sense (specs/nydus.md N15, N16). */

import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { nydusBlob, nydusVariants } from "../../../test/suites/golden-nydus.ts";
import { HeadstartError } from "../../base/errors.ts";
import { bytesSource } from "../../erofs/source.ts";
import { looksLikeBlob, readBlobTail, readToc, TOC_TAIL_BYTES, tocOfTail } from "./blob-tail.ts";

const blob = (variant: string, layer = "layer-1") => Buffer.from(nydusBlob(nydusVariants[variant]!.layers[layer]!)!);
const tail = (bytes: Uint8Array) => readBlobTail(bytesSource(bytes), "here");

test("blobs of builders with and without a table of contents are walked from the end", () => {
  const names = (bytes: Uint8Array) => tail(bytes).parts.map((part) => part.name);
  assert.deepEqual(names(blob("v6-zstd-1m")), [
    "image.blob",
    "blob.meta",
    "blob.digest",
    "image.boot",
    "rafs.blob.toc",
  ]);
  assert.deepEqual(names(blob("v6-zstd-64k-notoc-upper-layers")), ["image.blob", "blob.meta", "image.boot"]);
  assert.deepEqual(names(blob("v6-zran")), ["blob.meta", "blob.digest", "image.boot", "rafs.blob.toc"]);
  assert.equal(tail(blob("v6-zstd-64k-notoc-upper-layers")).toc, null);
});

test("data before the first header are the head of an old blob", () => {
  const bytes = Buffer.concat([Buffer.alloc(777, 0xaa), blob("v6-zstd-1m")]);
  const found = tail(bytes);
  assert.equal(found.headSize, 777);
  // its offsets are those of the blob without the head, but they still lie inside
  assert.equal(found.toc?.length, 5);
});

test("a table of contents that is not sound is not used, the headers are", () => {
  const good = blob("v6-zstd-1m");
  const { start } = tail(good).parts.at(-1)!;
  for (const [name, change] of Object.entries<(bytes: Buffer) => void>({
    "unknown flags": (bytes) => void bytes.writeUInt32LE(3, start),
    "no name": (bytes) => void bytes.fill(0, start + 8, start + 24),
    "a name with a NUL inside": (bytes) => void bytes.writeUInt8(0, start + 10),
    "a part beyond the blob": (bytes) => void bytes.writeBigUInt64LE(2n ** 40n, start + 56),
    "a size beyond 2^53": (bytes) => void bytes.writeBigUInt64LE(2n ** 60n, start + 64),
  })) {
    const bytes = Buffer.from(good);
    change(bytes);
    const found = tail(bytes);
    assert.equal(found.toc, null, name);
    assert.match(found.tocProblem!, /HS_/, name);
    assert.equal(found.parts.length, 5, name);
  }
  assert.throws(() => readToc(Buffer.alloc(129), 1000, "here"), { code: "HS_NYDUS_INVALID" });
  assert.throws(() => readToc(Buffer.alloc(128 * 29), 1000, "here"), { code: "HS_NYDUS_INVALID" });
});

test("an end that is no header, or one whose part is larger than the rest, is refused", () => {
  const good = blob("v6-zstd-1m");
  const badSize = Buffer.from(good);
  // the octal size of the last header, its checksum made to fit
  badSize.write("77777777777\0", good.length - 512 + 124, "latin1");
  badSize.fill(0x20, good.length - 512 + 148, good.length - 512 + 156);
  const sum = badSize.subarray(good.length - 512).reduce((total, byte) => total + byte, 0);
  badSize.write(`${sum.toString(8).padStart(6, "0")}\0 `, good.length - 512 + 148, "latin1");
  for (const bytes of [Buffer.alloc(0), Buffer.alloc(100), Buffer.alloc(4096), Buffer.alloc(4096, 0xff), badSize]) {
    assert.throws(() => tail(bytes), { code: "HS_NYDUS_INVALID" });
    assert.equal(looksLikeBlob(bytesSource(bytes)), false);
  }
  assert.equal(looksLikeBlob(bytesSource(good)), true);
});

test("whatever bytes of a blob's end change, it is read or refused by a typed error", () => {
  const good = blob("v6-zstd-1m");
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.integer({ min: 0, max: 2047 }), fc.integer({ min: 0, max: 255 })), { maxLength: 6 }),
      fc.integer({ min: 0, max: 3 }),
      (patches, cut) => {
        const bytes = Buffer.from(good.subarray(0, good.length - cut * 512));
        for (const [back, value] of patches) bytes[bytes.length - 1 - back] = value;
        try {
          tail(bytes);
        } catch (error) {
          if (!(error instanceof HeadstartError) || error.code === "HS_INTERNAL") throw error;
        }
      },
    ),
    { numRuns: 200 },
  );
});

test("the last bytes of a blob are enough for its table of contents, whatever they are", () => {
  const end = (bytes: Uint8Array) => bytes.subarray(Math.max(0, bytes.byteLength - TOC_TAIL_BYTES));
  for (const variant of ["v6-zstd-1m", "v6-zran", "v6-zstd-1m-batch"]) {
    const bytes = blob(variant);
    assert.deepEqual(tocOfTail(end(bytes), bytes.byteLength, "here"), tail(bytes).toc);
  }
  // the bootstrap that ends an old blob is longer than what is looked at
  const old = blob("v6-zstd-64k-notoc-upper-layers");
  assert.equal(tocOfTail(end(old), old.byteLength, "here"), null);
  const good = Uint8Array.from(end(blob("v6-zstd-1m")));
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 600 }), fc.nat(good.byteLength - 1), fc.nat(255), (bytes, at, value) => {
      const damaged = Uint8Array.from(good);
      damaged[at] = value;
      for (const some of [bytes, damaged]) {
        try {
          tocOfTail(some, 20_000, "here");
        } catch (error) {
          assert.ok(error instanceof HeadstartError && error.kind === "corrupt", String(error));
        }
      }
    }),
  );
});
