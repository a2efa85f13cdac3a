import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { sha256 } from "../../../base/digest.ts";
import { MEDIA_TYPES } from "../../../oci/media-types.ts";
import { readBootstrapLayer } from "../bootstrap-layer.ts";
import { bootstrapLayerTar, compressBootstrapLayer } from "./bootstrap-layer.ts";

const INPUT = {
  bootstrap: Buffer.alloc(8192, 7),
  blobMeta: [
    { id: "b".repeat(64), bytes: Buffer.alloc(8192, 1) },
    { id: "a".repeat(64), bytes: Buffer.alloc(4096, 2) },
  ],
};

test("the layer is read as it was written, and is the same bytes each time", async () => {
  const tar = await bootstrapLayerTar(INPUT);
  const stored = await compressBootstrapLayer(tar);
  assert.ok((await bootstrapLayerTar(INPUT)).equals(tar));
  assert.ok((await compressBootstrapLayer(tar)).equals(stored));
  const descriptor = { digest: sha256(stored), size: stored.byteLength, mediaType: MEDIA_TYPES.ociLayerGzip };
  const found = await readBootstrapLayer(
    (async function* () {
      yield stored;
    })(),
    { ...descriptor, diffID: sha256(tar) },
  );
  assert.ok(Buffer.from(found.bootstrap).equals(INPUT.bootstrap));
  assert.deepEqual(
    [...found.blobMeta].map(([id, bytes]) => [id, bytes.byteLength]),
    INPUT.blobMeta.map(({ id, bytes }) => [id, bytes.byteLength]),
  );
});

test("tar(1) lists what the format names, with the modes of the real tool and no time", async () => {
  const listing = execFileSync("tar", ["--utc", "-tvf", "-"], {
    input: await bootstrapLayerTar(INPUT),
    encoding: "utf8",
  });
  assert.deepEqual(
    listing
      .trim()
      .split("\n")
      .map((line) => line.replace(/ +/g, " ")),
    [
      "drwxr-xr-x 0/0 0 1970-01-01 00:00 image/",
      "-r--r--r-- 0/0 8192 1970-01-01 00:00 image/image.boot",
      `-rw-r--r-- 0/0 8192 1970-01-01 00:00 image/${"b".repeat(64)}.blob.meta`,
      `-rw-r--r-- 0/0 4096 1970-01-01 00:00 image/${"a".repeat(64)}.blob.meta`,
    ],
  );
});
