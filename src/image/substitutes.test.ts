import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { type ChainID, chainIDs, type DiffID, type Digest, sha256 } from "../base/digest.ts";
import { FetchScheduler } from "../fetch/scheduler.ts";
import { EAGER, LayerStore } from "../layer/store.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import { packSource } from "./source.ts";
import { EMPTY_LAYER, Substitutes } from "./substitutes.ts";

const digest = (name: string): Digest => sha256(Buffer.from(name));
const identity = (name: string) => ({
  digest: digest(name),
  size: 1,
  mediaType: MEDIA_TYPES.ociLayerGzip,
  diffID: digest(`${name} unpacked`),
});
const reference = "registry.test/image:1";

async function setUp(stack: AsyncDisposableStack) {
  const directory = mkdtempSync(join(tmpdir(), "headstart-substitutes-"));
  stack.defer(() => rmSync(directory, { recursive: true, force: true }));
  const store = stack.use(
    await LayerStore.open(directory, { fetcher: new FetchScheduler(), bootId: "00000000-0000-4000-8000-000000000000" }),
  );
  const layer = (name: string) =>
    store.declare(
      { identity: identity(name), role: "upper", format: EAGER, indexDigest: null },
      packSource({ reference }),
    ).id;
  return { store, substitutes: new Substitutes(store), layer };
}

test("a snapshot may show nothing, its layer, or the layers that its row lists", async () => {
  await using stack = new AsyncDisposableStack();
  const { substitutes, layer } = await setUp(stack);
  const [a, b] = [layer("a"), layer("b")];
  const chain = chainIDs([digest("blob") as DiffID, digest("bootstrap") as DiffID])[1]!;
  const owner = { by: "manifest", digest: digest("twin") } as const;
  const options = { layers: [a, b], covers: [], owner, reference, reason: "no bootstrap" };
  const substitute = substitutes.declare(chain, options);
  assert.deepEqual(substitutes.parts(EMPTY_LAYER), []);
  assert.deepEqual(substitutes.parts(a), [a]);
  assert.deepEqual(substitutes.parts(substitute), [a, b]);
  assert.deepEqual(substitutes.substitute(substitute), { chain, layers: [a, b], owner });
  assert.equal(substitutes.substitute(a), null);
  assert.equal(substitutes.declare(chain, options), substitute);
  // one that a snapshot may name never changes its meaning
  const other = substitutes.declare(chain, { ...options, layers: [b] });
  assert.notEqual(other, substitute);
  assert.deepEqual(substitutes.parts(substitute), [a, b]);
  assert.deepEqual(substitutes.parts(other), [b]);
});

test("what a row lists lives as long as it does; an alternative as long as all that it covers", async () => {
  await using stack = new AsyncDisposableStack();
  const { substitutes, layer } = await setUp(stack);
  const [a, b, whole] = [layer("a"), layer("b"), layer("whole")];
  const owner = { by: "index", digest: digest("index") } as const;
  const substitute = substitutes.declare(digest("chain") as ChainID, {
    layers: [a],
    covers: [],
    owner,
    reference,
    reason: "",
  });
  const chain = substitutes.chainOf([a, b])!;
  assert.equal(chain, chainIDs([identity("a").diffID as DiffID, identity("b").diffID as DiffID])[1]);
  const covers = [a, b];
  const alternative = await substitutes.declareAlternative(chain, { layer: whole, owner, reference, covers });
  assert.deepEqual([...substitutes.kept(new Set([substitute]))].sort(), [a, substitute].sort());
  assert.deepEqual([...substitutes.kept(new Set([a]))], [a]);
  assert.deepEqual([...substitutes.kept(new Set([a, b]))].sort(), [a, b, whole, alternative].sort());
  assert.deepEqual([...substitutes.covered()].sort(), covers);
});

test("a chain has one alternative: another index's takes its place, and one whose layer is gone is none", async () => {
  await using stack = new AsyncDisposableStack();
  const { store, substitutes, layer } = await setUp(stack);
  const [a, first, second] = [layer("a"), layer("first"), layer("second")];
  const chain = substitutes.chainOf([a])!;
  const declare = (whole: number, index: Digest) =>
    substitutes.declareAlternative(chain, {
      layer: whole,
      owner: { by: "index", digest: index },
      reference,
      covers: [a],
    });
  await declare(first, digest("index 1"));
  assert.deepEqual(substitutes.alternative(chain)?.owner, { by: "index", digest: digest("index 1") });
  await declare(second, digest("index 2"));
  assert.deepEqual(substitutes.alternative(chain)?.layers, [second]);
  await store.remove(second);
  assert.equal(substitutes.alternative(chain), null);
  assert.equal(substitutes.chainOf([a, EMPTY_LAYER]), null);
});
