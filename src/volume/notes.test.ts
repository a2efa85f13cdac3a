import assert from "node:assert/strict";
import { test } from "node:test";
import { sha256 } from "../base/digest.ts";
import { planNotes } from "./notes.ts";
import { makePlan, type ResolvedImage } from "./plan.ts";

const descriptor = {
  mediaType: "application/vnd.oci.image.manifest.v1+json",
  digest: sha256(Buffer.from("x")),
  size: 1,
};

function plan(names: readonly string[], blobs = true) {
  const image: ResolvedImage = {
    source: "oci:x",
    names,
    target: descriptor,
    indexes: [],
    manifest: descriptor,
    config: { ...descriptor, digest: sha256(Buffer.from("config")) },
    layers: [],
    created: 0,
    repository: null,
  };
  const platform = { os: "linux", architecture: "amd64" };
  return makePlan([image], { platform, snapshotter: "overlayfs", pinned: true, blobs });
}

test("the pause image is missed on AL2023 and not wanted on Bottlerocket", () => {
  const [without, with_] = [plan(["host/app:1"]), plan(["registry.k8s.io/pause:3.9"])];
  assert.match(planNotes(without, "al2023").join(), /No pause image/);
  assert.deepEqual(planNotes(with_, "al2023"), []);
  assert.match(planNotes(with_, "bottlerocket").join(), /registry\.k8s\.io\/pause:3\.9/);
  for (const layout of ["bottlerocket", "containerd"]) assert.deepEqual(planNotes(without, layout), []);
});

test("dropped blobs are spoken of, whatever the layout", () => {
  for (const layout of ["bottlerocket", "containerd"]) {
    assert.match(planNotes(plan(["host/app:1"], false), layout).join(), /another snapshotter than overlayfs/);
  }
});
