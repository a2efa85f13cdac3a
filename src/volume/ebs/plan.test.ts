import assert from "node:assert/strict";
import { test } from "node:test";
import type { Digest } from "../../base/digest.ts";
import { isHeadstartError } from "../../base/errors.ts";
import { clientToken, planPush, pushTags, TAG } from "./plan.ts";

const a = "a".repeat(64);
const b = "b".repeat(64);
const input = {
  blocks: new Map([[1, a]]),
  held: new Map([[1, a]]),
  sizeBytes: 2 ** 30,
  volumeSizeGiB: 1,
  parent: undefined,
  tags: { x: "1", y: "2" },
  description: "d",
  encrypted: false,
  kmsKey: undefined,
};

test("the same plan has the same client token, and whatever EBS would make another snapshot of has another", () => {
  const token = (more: object = {}, attempt = 0) => clientToken(planPush({ ...input, ...more }), attempt);
  assert.equal(token(), token({ tags: { y: "2", x: "1" } }));
  assert.match(token(), /^headstart-[0-9a-f]{64}-0$/);
  const others = [
    token({ held: new Map([[1, b]]) }),
    token({ held: new Map([[2, a]]) }),
    token({ parent: { id: "snap-1", blocks: new Map() } }),
    token({ parent: { id: "snap-2", blocks: new Map() } }),
    token({ parent: { id: "snap-2", blocks: new Map([[9, b]]) } }),
    token({ volumeSizeGiB: 2 }),
    token({ tags: { x: "1", y: "3" } }),
    token({ description: "e" }),
    token({ encrypted: true }),
    token({ encrypted: true, kmsKey: "k" }),
    token({}, 1),
    token(),
  ];
  assert.equal(new Set(others).size, others.length);
});

const facts = {
  name: "app",
  content: `sha256:${a}` as Digest,
  sizeBytes: 5,
  images: [] as string[],
  manifest: undefined,
};

test("tags say what is in the snapshot, within EBS's limits", () => {
  const images = Array.from({ length: 40 }, (_, at) => `registry.example/team/app-${at}:1`);
  const tags = pushTags({ team: "x" }, { ...facts, images, manifest: `sha256:${b}` as Digest });
  assert.deepEqual(Object.keys(tags), ["Name", "team", TAG.volume, TAG.size, TAG.images, TAG.manifest]);
  assert.ok(tags[TAG.images]!.length <= 255);
  assert.match(tags[TAG.images]!, /^registry\.example\/team\/app-0:1 .* \+\d+$/);
  assert.equal(pushTags({ Name: "own" }, facts).Name, "own");
  assert.equal(pushTags({}, { ...facts, images: ["i".repeat(300)] })[TAG.images], "+1");
});

test("tags that EBS would refuse, or that are ours, are wrong usage", () => {
  const many = Object.fromEntries(Array.from({ length: 48 }, (_, at) => [`k${at}`, "v"]));
  for (const tags of [
    { "": "x" },
    { ["k".repeat(128)]: "x" },
    { k: "v".repeat(256) },
    { "aws:k": "v" },
    { [TAG.volume]: "v" },
    many,
  ]) {
    assert.throws(
      () => pushTags(tags, facts),
      (error) => isHeadstartError(error, "HS_USAGE"),
    );
  }
});
