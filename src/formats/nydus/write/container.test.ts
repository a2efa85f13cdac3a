/** Parts, headers and the table of contents, as the reader of blobs sees them. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { sha256 } from "../../../base/digest.ts";
import { bytesSource } from "../../../erofs/source.ts";
import { readHeader } from "../../tar/header.ts";
import { readBlobTail } from "../blob-tail.ts";
import { BlobContainer } from "./container.ts";

function collect(): { readonly parts: Uint8Array[]; readonly container: BlobContainer } {
  const parts: Uint8Array[] = [];
  return { parts, container: new BlobContainer((bytes) => void parts.push(bytes)) };
}

test("parts are found from the end, with their digests", async () => {
  const { parts, container } = collect();
  await container.part("blob.digest", Buffer.from("stored"), Buffer.from("plain bytes"), "none");
  await container.part("image.boot", Buffer.from("x"), Buffer.from("y"), "zstd");
  const finished = await container.finish();
  const blob = Buffer.concat(parts);
  assert.equal(finished.digest, sha256(blob));
  assert.equal(finished.size, blob.byteLength);
  const tail = readBlobTail(bytesSource(blob));
  assert.deepEqual(
    tail.parts.map(({ name, start, size }) => [name, start, size]),
    [
      ["blob.digest", 0, 6],
      ["image.boot", 518, 1],
      ["rafs.blob.toc", 1031, 256],
    ],
  );
  const digest = (text: string) => createHash("sha256").update(text).digest("hex");
  assert.deepEqual(tail.toc, [
    {
      name: "blob.digest",
      compression: "none",
      sha256: digest("plain bytes"),
      storedOffset: 0,
      storedSize: 6,
      size: 11,
    },
    { name: "image.boot", compression: "zstd", sha256: digest("y"), storedOffset: 518, storedSize: 1, size: 1 },
  ]);
  assert.equal(finished.tocSize, 256 + 512);
  assert.equal(finished.tocDigest, tail.tocDigest);
});

test("a part of more than 8 GiB has a size that tar readers understand", async () => {
  for (const size of [0, 1, 0o77777777777, 0o77777777777 + 1, 2 ** 40]) {
    const { parts, container } = collect();
    await container.header("image.blob", size);
    const header = readHeader(Buffer.concat(parts));
    assert.ok(typeof header !== "string");
    assert.equal(Number(header.size), size);
    assert.equal(Buffer.from(header.name).toString(), "image.blob");
  }
});
