import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { directory, file, wholeTar } from "../../test/tar-bytes.ts";
import { type TreeLine, treeLines } from "../erofs/tree-lines.ts";
import { openLayout } from "../oci/layout.ts";
import { layerOfTar, writeImage } from "../sandbox/image-builder.ts";
import { lookInto } from "./look.ts";

async function lines(...tars: Uint8Array[]): Promise<Map<string, TreeLine>> {
  const layout = await mkdtemp(join(tmpdir(), "headstart-look-"));
  try {
    await writeImage(
      layout,
      tars.map((bytes) => layerOfTar(Buffer.from(bytes), { createdBy: "test" })),
      { name: "image" },
    );
    const looked = await lookInto(await openLayout(layout, { tag: "image" }, "test"), { hashContents: true });
    const found = new Map<string, TreeLine>();
    for await (const line of treeLines(looked.merged.tree)) found.set(line.path, line);
    return found;
  } finally {
    await rm(layout, { recursive: true });
  }
}

test("a file in a directory that its layer only implies gets the default ACL that the directory has below", async () => {
  const entries = ["01000700ffffffff", "02000500e8030000", "04000500ffffffff", "10000700ffffffff", "20000500ffffffff"];
  const acl = Buffer.from(`02000000${entries.join("")}`, "hex");
  const low = wholeTar(directory("d", { xattrs: { "system.posix_acl_default": acl } }));
  const implied = await lines(low, wholeTar(file("d/f", "x")));
  assert.ok(implied.get("/d/f")?.xattrs?.["system.posix_acl_access"]);
  assert.equal(implied.get("/d")?.xattrs?.["system.posix_acl_default"], acl.toString("hex"));
  // a directory entry of the layer's own takes nothing from below
  const given = await lines(low, wholeTar(directory("d"), file("d/f", "x")));
  assert.equal(given.get("/d/f")?.xattrs, undefined);
});
