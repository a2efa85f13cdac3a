import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { gunzipSync } from "node:zlib";
import { PROJECT } from "../base/project.ts";
import { inspectRoot } from "./inspect.ts";
import { ContainerdPaths } from "./layout/containerd.ts";

const GOLDEN = join(PROJECT, "test/golden/volume/containerd-1.6.20");
const root = mkdtempSync(join(tmpdir(), "headstart-inspect-"));
after(() => rmSync(root, { recursive: true }));

test("the root that a containerd left is read: images, blobs, snapshots, and the snapshotter's own records", () => {
  for (const [name, path] of [
    ["meta.db", ContainerdPaths.metaDatabase],
    ["metadata.db", ContainerdPaths.snapshotDatabase],
  ] as const) {
    mkdirSync(dirname(join(root, path)));
    writeFileSync(join(root, path), gunzipSync(readFileSync(join(GOLDEN, `${name}.gz`))));
  }
  const { schemaVersion, namespaces, overlayfs } = inspectRoot(root);
  assert.equal(schemaVersion, 3);
  const [namespace, ...others] = namespaces;
  assert.deepEqual([namespace!.name, others], ["k8s.io", []]);
  assert.deepEqual(
    namespace!.images.map(({ name, size, pinned }) => [name.slice(0, 24), size, pinned]),
    [
      ["docker.io/library/tiny:1", 555, true],
      ["sha256:88228eb6ed0682a16", 555, false],
    ],
  );
  assert.deepEqual(
    namespace!.blobs.map((blob) => blob.size),
    [210, 555, 444, 590],
  );
  assert.deepEqual(
    overlayfs.map(({ id, kind, inodes, size }) => ({ id, kind, inodes, size })),
    [
      { id: 1, kind: "committed", inodes: 16, size: 53_248 },
      { id: 2, kind: "committed", inodes: 7, size: 24_576 },
    ],
  );
  assert.equal(overlayfs[1]!.parent, overlayfs[0]!.name);
  assert.deepEqual(
    namespace!.snapshots.map((snapshot) => snapshot.name).sort(),
    overlayfs.map((snapshot) => snapshot.name).sort(),
  );
});

test("a folder that is no root of containerd is said to be none", () => {
  assert.throws(() => inspectRoot(join(root, "nothing")), { code: "HS_NOT_FOUND" });
});
