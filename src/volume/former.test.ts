import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import fc from "fast-check";
import { type ChainID, type DiffID, sha256 } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { type FormerVolume, numberAfter, readFormer } from "./former.ts";
import type { NumberedLayer } from "./plan.ts";

const directory = mkdtempSync(join(tmpdir(), "headstart-former-"));
after(() => rmSync(directory, { recursive: true }));

const digest = (text: string) => sha256(Buffer.from(text));

/** Layers as "chain/diff", the first one lowest. */
function manifestOf(layers: readonly string[], sequence = layers.length) {
  return {
    schema: "headstart.volume/1",
    target: "bottlerocket",
    platform: "linux/amd64",
    snapshotter: "overlayfs",
    plan: digest("plan"),
    size: 2 ** 30,
    snapshotSequence: sequence,
    options: { time: 1 },
    fs: { uuid: "0".repeat(32), hashSeed: "1".repeat(32), inodesPerGroup: 8192 },
    regions: {},
    blocks: { linear: Buffer.alloc(32).toString("base64") },
    images: [
      {
        layers: layers.map((layer, index) => ({
          snapshotId: index + 1,
          chainID: digest(layer.split("/")[0]!),
          diffID: digest(layer.split("/")[1]!),
          digest: digest(layer),
          region: [index * 128, 128],
          inodes: [index, 1],
        })),
      },
    ],
  };
}

function former(layers: readonly string[], sequence?: number): FormerVolume {
  const path = join(directory, "manifest.json");
  writeFileSync(path, JSON.stringify(manifestOf(layers, sequence)));
  return readFormer(path);
}

const wanted = (layers: readonly string[]): NumberedLayer[] =>
  layers.map((layer, index) => ({
    chainID: digest(layer.split("/")[0]!) as ChainID,
    diffID: digest(layer.split("/")[1]!) as DiffID,
    role: index === 0 ? "lowest" : "upper",
  }));

test("a layer keeps its number by its chain, else by its content; new numbers were never used", () => {
  const before = former(["A/a", "B/b", "C/c"], 7);
  assert.deepEqual(numberAfter(before, wanted(["A/a", "B/b", "C/c"])), { ids: [1, 2, 3], sequence: 7 });
  assert.deepEqual(numberAfter(before, wanted(["A/a", "X/x", "Y/c"])), { ids: [1, 8, 3], sequence: 8 });
  assert.deepEqual(numberAfter(before, wanted(["A/a", "Y/c"])), { ids: [1, 3], sequence: 7 });
  assert.deepEqual(numberAfter(before, wanted(["X/x", "Y/a"])), { ids: [8, 1], sequence: 8 });
});

test("one content twice in a chain has two numbers, and the same chain goes first", () => {
  const before = former(["A/a", "B/e", "C/e"]);
  assert.deepEqual(numberAfter(before, wanted(["A/a", "C/e", "X/e"])), { ids: [1, 3, 2], sequence: 3 });
  assert.deepEqual(numberAfter(before, wanted(["A/a", "X/e", "Y/e", "Z/e"])), { ids: [1, 2, 3, 4], sequence: 4 });
});

test("no two layers ever get one number", () => {
  const layer = fc.tuple(fc.integer({ min: 0, max: 5 }), fc.integer({ min: 0, max: 3 })).map(([a, b]) => `${a}/${b}`);
  const layers = fc.uniqueArray(layer, { maxLength: 8, selector: (each) => each.split("/")[0] });
  fc.assert(
    fc.property(layers, layers, fc.nat(5), (had, has, more) => {
      const before = { ...former(had.length === 0 ? ["x/x"] : had), sequence: Math.max(1, had.length) + more };
      const { ids, sequence } = numberAfter(before, wanted(has));
      assert.equal(new Set(ids).size, has.length);
      assert.ok(ids.every((id) => id >= 1 && id <= sequence));
      assert.ok(sequence >= before.sequence);
    }),
    { numRuns: 200 },
  );
});

test("a manifest that anybody may have changed is read or refused, never believed halfway", () => {
  const path = join(directory, "changed.json");
  const values = fc.oneof(fc.constant(null), fc.constant(-1), fc.constant("x"), fc.constant([]), fc.constant(2 ** 53));
  const keys = [
    "schema",
    "target",
    "size",
    "snapshotSequence",
    "options.time",
    "fs.uuid",
    "fs.inodesPerGroup",
    "images",
    "images.0.layers",
    "images.0.layers.0.snapshotId",
    "images.0.layers.0.region",
    "images.0.layers.0.inodes",
    "regions",
    "blocks.linear",
  ];
  former(["A/a", "B/b"]);
  fc.assert(
    fc.property(fc.constantFrom(...keys), values, (key, value) => {
      const manifest: Record<string, unknown> = manifestOf(["A/a", "B/b"]);
      const parts = key.split(".");
      const last = parts.pop()!;
      const owner = parts.reduce<Record<string, unknown>>((at, part) => at[part] as Record<string, unknown>, manifest);
      owner[last] = value;
      writeFileSync(path, JSON.stringify(manifest));
      try {
        const read = readFormer(path);
        assert.equal(read.size % 2 ** 30, 0);
        assert.ok(read.layers.every(({ id }) => id >= 1 && id <= read.sequence));
      } catch (error) {
        assert.ok(error instanceof HeadstartError && error.code === "HS_MALFORMED", String(error));
      }
    }),
    { numRuns: 300 },
  );
});
