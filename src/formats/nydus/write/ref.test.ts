/** Refs to layers against the real tool's contexts, the strict reader, and the rules of nydusd's decoder. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { constants, gunzipSync, gzipSync, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import fc from "fast-check";
import { decodedBlob, nydusBlob, nydusVariants } from "../../../../test/suites/golden-nydus.ts";
import { fixtureLayers } from "../../../../test/suites/golden-soci.ts";
import { contentsOf, convertRef, sourceContents } from "../../../../test/tools/nydus-layer.ts";
import { RawInflate, Z_OK, Z_STREAM_END, Z_SYNC_FLUSH } from "../../../linux/zlib.ts";
import { type TarEntry, writeTar } from "../../../sandbox/tar-writer.ts";
import { gzipHeaderLength } from "../../gzip/member.ts";
import { readBootstrap } from "../bootstrap.ts";
import { chunkInfoFromFile } from "../chunk-info.ts";
import { writeBootstrap } from "./bootstrap.ts";
import type { WrittenRestartPoints } from "./chunk-array.ts";
import { mergeLayers } from "./merge.ts";
import type { NydusLayer } from "./native.ts";

function restartsOf({ layer }: NydusLayer): WrittenRestartPoints | null {
  return (layer.blob?.chunks.restarts ?? null) as WrittenRestartPoints | null;
}

/**
 * As nydusd's ZranDecoder does it, with what it refuses: the range must decode to exactly the context's size, and where a deflate stream ends in it, the trailer, the next header and some of the
 * next stream must be there, even when no more output is wanted.
 */
function nydusdDecodes(layer: Uint8Array, points: WrittenRestartPoints, context: number): Uint8Array {
  const start = points.storedOffset[context]!;
  const input = layer.subarray(start, start + points.storedSize[context]!);
  assert.equal(input.byteLength, points.storedSize[context], "the range lies inside the layer");
  const output = new Uint8Array(points.size[context]!);
  using inflate = new RawInflate();
  const bits = points.bits[context]!;
  if (bits > 0) inflate.prime(bits, points.byte[context]! >> (8 - bits));
  const dictionary = points.dictionaryStart[context]!;
  inflate.setDictionary(points.dictionaries.subarray(dictionary, dictionary + points.dictionarySize[context]!));
  let position = 0;
  let produced = 0;
  for (;;) {
    inflate.setInput(input.subarray(position));
    inflate.setOutput(output.subarray(produced));
    const result = inflate.run(Z_SYNC_FLUSH);
    position += inflate.consumed;
    produced += inflate.produced;
    if (result === Z_OK) {
      assert.equal(produced, output.byteLength, "the range decodes to all of the context");
      return output;
    }
    assert.equal(result, Z_STREAM_END, `the decoder goes on in context ${context}`);
    assert.ok(input.byteLength - position >= 8, "the input has a complete gzip trailer");
    position += 8;
    const header = gzipHeaderLength(input, position);
    assert.ok(header > 0, "the header of the next member is there");
    position += header;
    inflate.reset();
  }
}

async function checkRef(stored: Uint8Array, chunkSize = 1_048_576): Promise<NydusLayer> {
  const ref = await convertRef(stored, { chunkSize });
  const { blob } = ref.layer;
  const stores = new Map(blob === null ? [] : [[blob.facts.id, { data: stored, meta: ref.bytes }]]);
  const { sha256 } = await contentsOf(ref.layer, stores);
  assert.deepEqual([...sha256.values()].sort(), await sourceContents(stored));
  const points = restartsOf(ref);
  if (points !== null) {
    const tar = gunzipSync(stored);
    assert.ok(points.count <= blob!.chunks.count);
    for (let context = 0; context < points.count; context++) {
      const plain = points.outOffset[context]!;
      const want = tar.subarray(plain, plain + points.size[context]!);
      assert.equal(Buffer.compare(nydusdDecodes(stored, points, context), want), 0, `context ${context}`);
    }
    nydusdReadsNeighbours(points, blob!.chunks.context);
  }
  return ref;
}

/** nydusd fetches neighbouring chunks at once, from the start of the first one's context to the end of the last one's, and wants all contexts between in it. */
function nydusdReadsNeighbours(points: WrittenRestartPoints, contextOf: Uint32Array): void {
  let end = 0;
  for (let context = 0; context < points.count; context++) {
    const start = points.storedOffset[context]!;
    assert.ok(
      context === 0 || start > points.storedOffset[context - 1]!,
      `context ${context} begins behind its neighbour`,
    );
    assert.ok(
      start + points.storedSize[context]! >= end,
      `context ${context} ends where its neighbour does, or behind`,
    );
    end = start + points.storedSize[context]!;
  }
  const met = [...new Set(contextOf)];
  assert.deepEqual(
    met,
    Array.from({ length: points.count }, (_, context) => context),
    "chunks meet contexts in order",
  );
}

test("contexts and chunks are those of the real tool", async () => {
  for (const variant of ["v6-zran", "v6-zran-multi"]) {
    const { layers, original } = nydusVariants[variant]!;
    for (const layer of Object.keys(layers)) {
      const ref = await convertRef(nydusBlob(original![layer]!)!, { role: "upper" });
      const decoded = decodedBlob(variant, layer)!.ci;
      assert.ok(decoded !== undefined && decoded !== "encrypted");
      const { chunks, facts } = ref.layer.blob!;
      const points = restartsOf(ref)!;
      assert.deepEqual(
        decoded.contexts.map(({ in_len: _, ...context }) => context),
        Array.from({ length: points.count }, (_, context) => ({
          in_off: points.storedOffset[context],
          out_off: points.outOffset[context],
          dict_off: points.dictionaryStart[context],
          out_len: points.size[context],
          dict_size: points.dictionarySize[context],
          byte: points.byte[context],
          bits: points.bits[context],
        })),
      );
      // another zlib may have taken a word of input more when it has given the last byte
      for (const [context, { in_len }] of decoded.contexts.entries()) {
        const more = points.storedSize[context]! - in_len!;
        assert.ok(more >= 0 && more < 8, `${more} bytes more`);
      }
      assert.deepEqual(
        decoded.chunks.map(({ u_off, u_size, flags, c_off, ctx, ctx_off }) => [
          u_off,
          u_size,
          flags,
          c_off,
          ctx,
          ctx_off,
        ]),
        Array.from({ length: chunks.count }, (_, chunk) => [
          chunks.offset[chunk],
          chunks.size[chunk],
          chunks.flags[chunk],
          chunks.storedOffset[chunk],
          chunks.context[chunk],
          chunks.contextOffset[chunk],
        ]),
      );
      assert.equal(facts.features, 0x7000_003d);
      assert.equal(facts.id, original![layer]);
      assert.deepEqual(facts.metaBlob, { id: ref.blob.digest.slice(7), size: ref.blob.size });
      assert.deepEqual(
        ref.tail.parts.map(({ name }) => name),
        ["blob.meta", "blob.digest", "image.boot", "rafs.blob.toc"],
      );
    }
  }
});

test("the fixture's layers can be read through their refs, however they were compressed", async () => {
  for (const variant of ["gogz", "pigz", "multigz", "fnamegz", "dotgz", "tar"])
    for (const { bytes } of fixtureLayers(variant))
      for (const chunkSize of [65_536, 1_048_576]) await checkRef(bytes, chunkSize);
});

test("a ref to a plain tar names ranges of the layer, and no restart points", async () => {
  const { bytes } = fixtureLayers("tar")[0]!;
  const { layer } = await checkRef(bytes);
  assert.equal(layer.blob!.facts.features, 0x7000_0035);
  assert.equal(layer.blob!.chunks.restarts, null);
  await assert.rejects(convertRef(bytes, { chunkSize: 16 * 1024 * 1024 }), { code: "HS_USAGE" });
});

test("a zstd layer is refused by name", async () => {
  const { bytes, digest } = fixtureLayers("zstd")[0]!;
  await assert.rejects(convertRef(bytes), (error: Error & { code?: string }) => {
    assert.equal(error.code, "HS_FORMAT_UNSUPPORTED");
    assert.ok(error.message.includes(digest));
    return true;
  });
  await assert.rejects(convertRef(zstdCompressSync(Buffer.alloc(1024)), { pieces: 3 }), {
    code: "HS_FORMAT_UNSUPPORTED",
  });
});

/** A gzip member. */
const member = (bytes: Uint8Array, level = 6) => gzipSync(bytes, { level });
const noise = (length: number, seed = 1) =>
  Buffer.from(Uint8Array.from({ length }, (_, at) => Math.imul(at + seed * 7919, 2_654_435_761) >>> 24));

/** Cuts a tar as eStargz does: each file's data a member of their own. */
function memberPerFile(files: readonly { readonly path: string; readonly data: Buffer }[]): Buffer[] {
  const members: Buffer[] = [];
  for (const file of files) {
    const one = writeTar([file]).subarray(0, -1024);
    members.push(one.subarray(0, 512), file.data, one.subarray(512 + file.data.byteLength));
  }
  return members.filter((bytes) => bytes.byteLength > 0);
}

test("files that end with their gzip member reach into the next one that has data", async () => {
  // sizes that are whole blocks have no padding behind: header, data, header follow each other
  const files = [512, 1024, 700, 512, 65_536].map((size, index) => ({ path: `f${index}`, data: noise(size, index) }));
  const pieces = [...memberPerFile(files), Buffer.alloc(1024)];
  await checkRef(Buffer.concat(pieces.map((bytes) => member(bytes))));
  // empty members between, a long name in a header, zeros behind
  const named = (bytes: Uint8Array) => {
    const plain = member(bytes);
    return Buffer.concat([
      plain.subarray(0, 3),
      Buffer.from([8]),
      plain.subarray(4, 10),
      Buffer.from(`${"n".repeat(200)}\0`),
      plain.subarray(10),
    ]);
  };
  const empty = member(Buffer.alloc(0));
  const odd = pieces.flatMap((bytes) => [named(bytes), empty, empty]);
  await checkRef(Buffer.concat([...odd, Buffer.alloc(100)]));
  // stored blocks
  await checkRef(Buffer.concat(pieces.map((bytes) => member(bytes, 0))));
  // a context of its own that has less of its member than the one before took of it
  const tiny = writeTar([{ path: "b", data: "0", mode: 0, mtime: 0 }]);
  const { layer } = await checkRef(
    Buffer.concat([...pieces.slice(0, 2), tiny].map((bytes) => member(bytes))),
    2_097_152,
  );
  assert.equal(layer.blob!.chunks.restarts!.count, 2);
});

test("a layer whose last bytes are a file's is refused: nydusd cannot decode it", async () => {
  const tar = writeTar([{ path: "a", data: noise(1024) }]).subarray(0, -1024);
  await assert.rejects(convertRef(member(tar)), { code: "HS_NYDUS_LIMIT" });
  await assert.rejects(convertRef(Buffer.concat([member(tar), member(Buffer.alloc(0))])), { code: "HS_NYDUS_LIMIT" });
  await checkRef(tar);
});

test("a deflate block that decodes to more than nydusd takes is refused, unless it is the same over and over", async () => {
  const data = Buffer.alloc(18 * 1024 * 1024);
  const inOneBlock = (path: string) => {
    const tar = writeTar([{ path, data }]);
    const stored = Buffer.concat([gzipSync("").subarray(0, 10), oneBlock(tar), trailer(tar)]);
    assert.equal(Buffer.compare(gunzipSync(stored), tar), 0);
    return stored;
  };
  await checkRef(inOneBlock("zeros"));
  for (let at = 0; at < data.length; at += 1024 * 1024) data[at] = at >> 20;
  await assert.rejects(convertRef(inOneBlock("others")), { code: "HS_NYDUS_LIMIT" });
});

/** One deflate block with fixed codes (RFC 1951 3.2.6), runs as matches at distance 1: no compressor makes such long ones. */
function oneBlock(plain: Uint8Array): Buffer {
  const bytes = Buffer.alloc(plain.byteLength / 16);
  let length = 0;
  // the last block, fixed codes
  let held = 0b011;
  let count = 3;
  const put = (value: number, bits: number) => {
    for (let bit = bits - 1; bit >= 0; bit--) {
      held |= ((value >> bit) & 1) << count++;
      if (count < 8) continue;
      bytes[length++] = held;
      held = 0;
      count = 0;
    }
  };
  for (let at = 0; at < plain.byteLength; ) {
    let run = 0;
    while (at > 0 && run < 258 && plain[at + run] === plain[at - 1]) run++;
    if (run === 258) {
      // length code 285, distance code 0
      put(0xc5, 8);
      put(0, 5);
      at += 258;
    } else {
      const literal = plain[at++]!;
      if (literal < 144) put(0x30 + literal, 8);
      else put(0x190 + literal - 144, 9);
    }
  }
  put(0, 7);
  bytes[length++] = held;
  return bytes.subarray(0, length);
}

function trailer(plain: Uint8Array): Buffer {
  return gzipSync(plain).subarray(-8);
}

test("a sparse file is refused", async () => {
  const pax = {
    "GNU.sparse.numblocks": "1",
    "GNU.sparse.map": "5,10",
    "GNU.sparse.size": "100",
    "GNU.sparse.major": "0",
    "GNU.sparse.minor": "1",
  };
  await assert.rejects(convertRef(gzipSync(writeTar([{ path: "sparse", data: noise(10), pax }]))), {
    code: "HS_NYDUS_LIMIT",
  });
});

test("a layer without files of bytes is only a tree", async () => {
  const ref = await checkRef(gzipSync(writeTar([{ path: "etc/" }, { path: "etc/empty", data: "" }])));
  assert.equal(ref.layer.blob, null);
});

test("the same file again takes no context of its own", async () => {
  const data = noise(1_048_576);
  const files = Array.from({ length: 12 }, (_, index) => ({ path: `f${index}`, data }));
  const { layer } = await checkRef(gzipSync(writeTar(files)));
  assert.equal(layer.blob!.chunks.count, 1);
});

test("contexts begin at every bit phase", async () => {
  // with chunks of 2 MiB every file has a context of its own if a block has begun, and such small blocks always have
  const files = Array.from({ length: 60 }, (_, index) => ({
    path: `f${index}`,
    data: Buffer.from(Array.from({ length: 300 }, (_, word) => ` ${(word * word * (index + 3)) % 977}`).join("")),
  }));
  const ref = await checkRef(gzipSync(writeTar(files), { memLevel: 1 }), 2_097_152);
  const { count, bits } = restartsOf(ref)!;
  assert.ok(count > 50, `${count} contexts`);
  assert.deepEqual([...new Set(bits)].sort(), [0, 1, 2, 3, 4, 5, 6, 7]);
});

test("random layers can be read through their refs", async () => {
  const data = fc
    .tuple(fc.integer({ min: 0, max: 200_000 }), fc.integer({ min: 1, max: 1000 }), fc.integer({ min: 0, max: 2 }))
    .map(([length, seed, kind]) =>
      kind === 0
        ? Buffer.alloc(length)
        : kind === 1
          ? noise(length, seed)
          : Buffer.from("text of a layer, ".repeat(length / 17)),
    );
  const entry: fc.Arbitrary<TarEntry> = fc.oneof(
    fc.record({ path: fc.stringMatching(/^[a-z]{1,4}$/), data }),
    fc.record({ path: fc.stringMatching(/^dir\/[a-z]{1,4}$/), data, xattrs: fc.constant({ "user.name": "value" }) }),
  );
  await fc.assert(
    fc.asyncProperty(
      fc.array(entry, { maxLength: 12 }),
      fc.integer({ min: 1, max: 9 }),
      fc.constantFrom(constants.Z_DEFAULT_STRATEGY, constants.Z_HUFFMAN_ONLY, constants.Z_RLE, constants.Z_FIXED),
      fc.integer({ min: 1, max: 4 }),
      fc.constantFrom(4096, 65_536, 1_048_576, 2_097_152),
      async (entries, level, strategy, members, chunkSize) => {
        const tar = writeTar(entries);
        const size = Math.ceil(tar.byteLength / members);
        const parts = Array.from({ length: members }, (_, part) =>
          gzipSync(tar.subarray(part * size, (part + 1) * size), { level, strategy, memLevel: 2 }),
        );
        await checkRef(Buffer.concat(parts), chunkSize);
      },
    ),
    { numRuns: 25 },
  );
});

test("a ref whose chunks are compressed, but lie in no context, is one to an eStargz layer, which is not supported", async () => {
  const { layer, bytes } = await convertRef(fixtureLayers("tar")[1]!.bytes);
  const { facts } = layer.blob!;
  const blob = readBootstrap(writeBootstrap(mergeLayers([layer]))).blobs[0]!;
  const { offset, compressedSize } = facts.chunkInfo;
  const array = zstdDecompressSync(bytes.subarray(offset, offset + compressedSize));
  // the flags of the first chunk
  array[7]! |= 1;
  const file = Buffer.concat([
    array,
    Buffer.alloc(4096 - (array.byteLength % 4096)),
    bytes.subarray(offset + compressedSize, offset + compressedSize + 4096),
  ]);
  assert.throws(() => chunkInfoFromFile(blob, file), { code: "HS_FORMAT_UNSUPPORTED" });
});
