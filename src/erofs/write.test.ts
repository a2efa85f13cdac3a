import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { FileTreeBuilder, FileType } from "./file-tree.ts";
import { layoutLazy } from "./write.ts";

const bytes = (text: string) => Buffer.from(text);

test("the worked example of the specification comes out byte for byte", () => {
  const root = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 0 };
  const builder = new FileTreeBuilder(root);
  const hello = builder.addInode({
    type: FileType.regular,
    mode: 0o644,
    uid: 1000,
    gid: 1000,
    mtimeSeconds: 1_700_000_123,
    mtimeNanoseconds: 42,
    size: 13,
    segments: [{ fileOffset: 0, length: 13, address: 512 }],
  });
  const link = builder.addInode({ ...root, type: FileType.symlink, mode: 0o777, target: bytes("hello.txt") });
  builder.addName(0, bytes("link"), link);
  builder.addName(0, bytes("hello.txt"), hello);
  const layout = layoutLazy(builder.finish(), { uuid: Buffer.from("00112233445566778899aabbccddeeff", "hex") });
  assert.equal(layout.size, 8192);
  const image = new Uint8Array(layout.size);
  for (const part of layout.parts) image.set(part.bytes, part.offset);
  assert.deepEqual([...layout.placement.fileOffset], [4096]);
  image.set(bytes("hello, erofs\n"), layout.placement.fileOffset[0]);
  assert.equal(Buffer.from(image.subarray(1024, 1032)).toString("hex"), "e2e1f5e03889e64b");
  assert.equal(
    createHash("sha256").update(image).digest("hex"),
    "bf9b88afcd5088d7ae33fdef553eaad8aa8a7b8c56bd66bb72044a42906fb354",
  );
});
