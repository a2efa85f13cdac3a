import assert from "node:assert/strict";
import { test } from "node:test";
import { chainIDs, sha256 } from "../base/digest.ts";
import { explainProblems, namespaceOf, readExtraction } from "./labels.ts";

const digest = (text: string) => sha256(Buffer.from(text));
const target = digest("target");
const P = "containerd.io/snapshot/";
const complete = {
  "containerd.io/snapshot.ref": target,
  [`${P}cri.image-ref`]: "docker.io/library/redis:7",
  [`${P}cri.manifest-digest`]: digest("manifest"),
  [`${P}cri.layer-digest`]: digest("layer"),
  [`${P}cri.image-layers`]: `${digest("layer")},${digest("next")}`,
};
const read = (labels: Record<string, string>, parent = "", namespace: string | null = "k8s.io") =>
  readExtraction({ key: `k8s.io/12/extract-1 ${target}`, parent, labels, namespace });

test("without the target's label it is a container's own snapshot", () => {
  assert.deepEqual(read({ [`${P}cri.image-ref`]: "x" }), { kind: "none" });
});

test("complete labels become a request", () => {
  assert.deepEqual(read(complete), {
    kind: "request",
    offer: {
      namespace: "k8s.io",
      target,
      reference: "docker.io/library/redis:7",
      manifestDigest: digest("manifest"),
      layerDigest: digest("layer"),
    },
    problems: [],
  });
});

test("missing labels are null, and the reason says what to set", () => {
  const extraction = read({ "containerd.io/snapshot.ref": target });
  assert.ok(extraction.kind === "request");
  assert.deepEqual(
    [extraction.offer.reference, extraction.offer.manifestDigest, extraction.offer.layerDigest],
    [null, null, null],
  );
  assert.match(explainProblems(extraction.problems), /disable_snapshot_annotations = false/);
});

test("malformed labels are dropped by name", () => {
  const extraction = read({ ...complete, [`${P}cri.manifest-digest`]: "sha256:xyz", [`${P}cri.image-ref`]: "a b\n" });
  assert.ok(extraction.kind === "request");
  assert.equal(extraction.offer.manifestDigest, null);
  assert.equal(extraction.offer.reference, null);
  assert.match(explainProblems(extraction.problems), /cri\.image-ref is not a reference.*cri\.manifest-digest is not/);
});

test("a target that is no digest, and labels that contradict each other, are refused", () => {
  assert.equal(read({ ...complete, "containerd.io/snapshot.ref": "latest" }).kind, "refused");
  assert.equal(read({ ...complete, [`${P}cri.image-layers`]: digest("other") }).kind, "refused");
});

test("diffID and parent chainID must make the target", () => {
  const [lower, upper] = chainIDs([digest("a"), digest("b")]);
  const labels = { ...complete, "containerd.io/snapshot.ref": upper!, [`${P}diff-id`]: digest("b") };
  assert.equal(read({ ...labels, [`${P}parent-chain-id`]: lower! }, "parent").kind, "request");
  assert.equal(read({ ...labels, [`${P}parent-chain-id`]: digest("c") }, "parent").kind, "refused");
  assert.equal(read({ ...labels, [`${P}diff-id`]: "b" }, "parent").kind, "refused");
  assert.equal(
    read({ ...complete, "containerd.io/snapshot.ref": lower!, [`${P}diff-id`]: digest("a") }).kind,
    "request",
  );
});

test("a layer that is prepared without its parent (rebase) is refused", () => {
  const extraction = read({ ...complete, [`${P}parent-chain-id`]: digest("below") });
  assert.ok(extraction.kind === "refused");
  assert.match(extraction.reason, /rebase/);
});

test("the namespace comes from the header, else from containerd's backend key", () => {
  assert.equal(namespaceOf({ namespace: "a", key: "b/1/key" }), "a");
  assert.equal(namespaceOf({ namespace: null, key: "moby/31/some key" }), "moby");
  assert.equal(namespaceOf({ namespace: null, key: "/tmp/work/key" }), null);
  assert.equal(namespaceOf({ namespace: null, key: "key" }), null);
});

test("labels named like members of Object are only labels", () => {
  assert.deepEqual(read({ constructor: "x", __proto__: "y" }), { kind: "none" });
});
