/** Tar-splits that lie, and how they are read. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { convertNative, inPieces } from "../../../../test/tools/nydus-layer.ts";
import { Writer } from "../../../base/bytes.ts";
import { sha256 } from "../../../base/digest.ts";
import { writeTar } from "../../../sandbox/tar-writer.ts";
import { pieceHash } from "../../piece-hash.ts";
import { nydusInvalid } from "../ondisk.ts";
import { TAR_SPLIT_MAGIC, TarSplitRecord } from "../tar-split.ts";
import { type ChunkSource, unpackTar } from "./reverse.ts";
import { StoredChunks } from "./stored-chunks.ts";

const CHUNKS = [Buffer.from("first chunk"), Buffer.from("second"), Buffer.from("third")];
const OTHER = "ab".repeat(32);
const SOURCE: ChunkSource = {
  async read(blob, chunk) {
    const bytes = blob === OTHER ? Buffer.from("of another blob") : CHUNKS[chunk];
    if (bytes === undefined) throw nydusInvalid("test", `chunk ${chunk}`);
    return bytes;
  },
};

/** A part with these records and, unless it is given, an end that fits `tar`. */
function part(write: (content: Writer) => void, tar: string, end?: (content: Writer) => void): Buffer {
  const content = new Writer();
  content.put(TAR_SPLIT_MAGIC);
  write(content);
  if (end !== undefined) end(content);
  else
    content
      .u8(TarSplitRecord.end)
      .u8(tar.length)
      .put(Buffer.from(sha256(Buffer.from(tar)).slice(7), "hex"));
  return zstdCompressSync(content.finish());
}

async function unpack(bytes: Uint8Array, source = SOURCE): Promise<string> {
  let text = "";
  for await (const piece of unpackTar(inPieces(bytes, 7), source, "test"))
    text += Buffer.from(piece).toString("latin1");
  return text;
}

const literal = (content: Writer, text: string) =>
  content.u8(TarSplitRecord.literal).u8(text.length).put(Buffer.from(text));
const slice = (content: Writer, ...numbers: number[]) => {
  content.u8(TarSplitRecord.slice);
  for (const number of numbers) content.u8(number);
};

test("literals, runs, slices and chunks of other blobs make up the tar", async () => {
  const tar = "<first chunkcond>of another<third>";
  const bytes = part((content) => {
    literal(content, "<");
    content.u8(TarSplitRecord.run).u8(1);
    slice(content, 0, 1, 2, 4);
    literal(content, ">");
    content.u8(TarSplitRecord.blob).put(Buffer.from(OTHER, "hex"));
    slice(content, 1, 5, 0, 10);
    literal(content, "<");
    // from the one behind the highest that was named
    content.u8(TarSplitRecord.run).u8(1);
    literal(content, ">");
  }, tar);
  assert.equal(await unpack(bytes), tar);
});

test("a part may come in any number of frames", async () => {
  const content = new Writer();
  literal(content, "ab");
  const end = part(() => {}, "ab");
  const magic = zstdCompressSync(TAR_SPLIT_MAGIC);
  // the end alone, without the magic in front
  const rest = new Writer();
  rest
    .u8(TarSplitRecord.end)
    .u8(2)
    .put(Buffer.from(sha256(Buffer.from("ab")).slice(7), "hex"));
  const frames = [magic, zstdCompressSync(content.finish()), zstdCompressSync(rest.finish())];
  assert.equal(await unpack(Buffer.concat(frames)), "ab");
  await assert.rejects(unpack(end), { code: "HS_NYDUS_INVALID" });
});

test("each lie is a typed error", async () => {
  const lies: Record<string, Buffer> = {
    "no zstd": Buffer.from("this is no zstd frame at all"),
    "no bytes": Buffer.alloc(0),
    "another magic": zstdCompressSync(Buffer.from("HSTARSP2....")),
    "no end": part(
      (content) => literal(content, "ab"),
      "ab",
      () => {},
    ),
    "a cut frame": part((content) => literal(content, "ab"), "ab").subarray(0, 20),
    "a literal that is cut": part(
      (content) => content.u8(TarSplitRecord.literal).u8(200),
      "",
      () => {},
    ),
    "a literal of 2^53 bytes": part(
      (content) => content.u8(TarSplitRecord.literal).put(Buffer.from("ffffffffffffff0f", "hex")),
      "",
      () => {},
    ),
    "a number beyond 2^53": part(
      (content) => content.u8(TarSplitRecord.run).put(Buffer.from("ffffffffffffffff01", "hex")),
      "",
    ),
    "an endless number": part((content) => content.u8(TarSplitRecord.run).put(Buffer.alloc(1000, 0x80)), ""),
    "a run of more chunks than there are": part((content) => content.u8(TarSplitRecord.run).u8(4), ""),
    "a chunk that there is not": part((content) => slice(content, 0, 7, 0, 1), ""),
    "a slice beyond its chunk": part((content) => slice(content, 0, 1, 3, 4), ""),
    "a blob without a name": part((content) => slice(content, 1, 0, 0, 1), ""),
    "a record of no kind": part((content) => content.u8(9), ""),
    "another size": part((content) => literal(content, "ab"), "abc"),
    "another digest": part((content) => literal(content, "ab"), "ac"),
    "bytes behind the end": part(
      (content) => literal(content, "a"),
      "a",
      (content) => {
        content
          .u8(TarSplitRecord.end)
          .u8(1)
          .put(Buffer.from(sha256(Buffer.from("a")).slice(7), "hex"))
          .u8(0);
      },
    ),
    "too many blobs": part((content) => {
      for (let blob = 0; blob < 255; blob++) content.u8(TarSplitRecord.blob).zeros(32);
    }, ""),
  };
  for (const [name, bytes] of Object.entries(lies))
    await assert.rejects(unpack(bytes), { code: "HS_NYDUS_INVALID" }, name);
});

test("leaving early closes the part", async () => {
  let closed = false;
  const bytes = part((content) => {
    literal(content, "a");
    literal(content, "b");
  }, "ab");
  const source = (async function* () {
    try {
      yield* inPieces(bytes, 30);
    } finally {
      closed = true;
    }
  })();
  for await (const _ of unpackTar(source, SOURCE, "test")) break;
  assert.ok(closed);
});

test("a stored chunk whose bytes are not those of its digest is never given out", async () => {
  const { layer, bytes, tail } = await convertNative(
    gzipSync(
      writeTar([
        { path: "a", data: "hello ".repeat(1000) },
        { path: "b", data: "world" },
      ]),
    ),
  );
  const { chunks, facts } = layer.blob!;
  const dataSize = tail.parts[0]!.size;
  const open = async (stored: Uint8Array, digests: Uint8Array) =>
    new StoredChunks({
      blob: { ...facts, dataSize },
      info: chunks,
      digests,
      digest: await pieceHash(facts.digester),
      read: async (start, end) => stored.subarray(start, end),
    });
  const sound = await open(bytes, chunks.digest);
  assert.equal(Buffer.from(await sound.read(1)).toString(), "world");
  await assert.rejects(sound.read(2), { code: "HS_NYDUS_INVALID" });
  const other = Uint8Array.from(chunks.digest);
  other[40]! ^= 1;
  const wrong = await open(bytes, other);
  assert.equal((await wrong.read(0)).byteLength, 6000);
  await assert.rejects(wrong.read(1), { code: "HS_NYDUS_INVALID" });
  const damaged = Buffer.from(bytes);
  damaged.fill(0xff, 0, dataSize);
  await assert.rejects((await open(damaged, chunks.digest)).read(0), { code: "HS_UNIT_DECODE" });
});
