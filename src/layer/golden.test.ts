/** Layers of the fixture image, pulled eagerly and filled lazily by golden zTOCs, against what containerd unpacked. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, readSync, statSync } from "node:fs";
import { join } from "node:path";
import { after, test } from "node:test";
import { MemoryFetcher } from "../../test/fakes/plain-layer.ts";
import { fixtureLayers, type GoldenLayer, goldenZtocs } from "../../test/suites/golden-soci.ts";
import { LayerStores, OTHER_BOOT } from "../../test/tools/layer-stores.ts";
import { sha256 } from "../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { readFully } from "../base/files.ts";
import { FileType } from "../erofs/file-tree.ts";
import { type ErofsInode, ErofsReader } from "../erofs/read.ts";
import { sociFormat } from "../formats/soci/adapter.ts";
import { Decoders } from "./decoders.ts";
import type { BlobStream } from "./interfaces.ts";
import type { LayerImage } from "./layer-image.ts";
import type { LayerStore, LayerStoreOptions } from "./store.ts";

const decoders = new Decoders({ threads: 2 });
after(() => decoders[Symbol.asyncDispose]());

const stores = new LayerStores();

function openStore(root: string, options: Partial<LayerStoreOptions> = {}): Promise<LayerStore> {
  return stores.open(root, { fetcher: new MemoryFetcher(new Uint8Array(0)), decoders, ...options });
}

/** A blob in memory that comes in chunks; `breakAt` are offsets at which the stream breaks once each. */
function streamOf(
  layer: GoldenLayer,
  options: { chunkBytes?: number; breakAt?: number[] } = {},
): BlobStream & { opened: number[] } {
  const breakAt = [...(options.breakAt ?? [])];
  const chunkBytes = options.chunkBytes ?? 50_000;
  const opened: number[] = [];
  return {
    digest: layer.digest,
    size: layer.size,
    opened,
    async *stream(offset) {
      opened.push(offset);
      for (let at = offset; at < layer.size; at += chunkBytes) {
        if (breakAt.length > 0 && at >= breakAt[0]!) {
          breakAt.shift();
          throw new HeadstartError("HS_REGISTRY_UNAVAILABLE", { what: "the line broke" });
        }
        yield layer.bytes.subarray(at, at + chunkBytes);
      }
    },
  };
}

const instantClock = { now: () => 0, monotonic: () => 0, sleep: () => Promise.resolve() };

/** sha256 by path of all regular files, read out of the EROFS image. */
function fileDigests(layer: LayerImage): Map<string, string> {
  const { fd, size } = layer;
  const source = {
    size,
    readAt(offset: number, length: number) {
      const bytes = new Uint8Array(length);
      readFully(fd, bytes, offset);
      return bytes;
    },
  };
  const reader = new ErofsReader(source);
  const paths = new Map<number, string>([[reader.root.nid, ""]]);
  const digests = new Map<string, string>();
  const content = (inode: ErofsInode) => {
    const hash = createHash("sha256");
    let at = 0;
    for (const extent of reader.extents(inode)) {
      hash.update(new Uint8Array(extent.fileOffset - at));
      hash.update(source.readAt(extent.imageOffset, extent.length));
      at = extent.fileOffset + extent.length;
    }
    return hash.update(new Uint8Array(inode.size - at)).digest("hex");
  };
  reader.walk({
    inode() {},
    name(directory, name, inode) {
      const path = `${paths.get(directory.nid)!}/${Buffer.from(name).toString("latin1")}`;
      if (inode.type === FileType.directory) paths.set(inode.nid, path);
      if (inode.type === FileType.regular) digests.set(path, content(inode));
    },
  });
  return digests;
}

/** The same from what containerd unpacked. */
function goldenDigests(name: string): Map<string, string> {
  const text = readFileSync(join(import.meta.dirname, `../../test/golden/fixture/tree/${name}.jsonl`), "utf8");
  const entries = text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as { path: string; type: string; sha256?: string });
  return new Map(
    entries.filter((entry) => entry.sha256 !== undefined).map((entry) => [latin1(entry.path), entry.sha256!]),
  );
}

/** Bytes of a golden path: UTF-8, lone surrogates U+DC80.. are single bytes. */
function latin1(path: string): string {
  const bytes = [...path].flatMap((character) => {
    const code = character.codePointAt(0)!;
    return code >= 0xdc80 && code <= 0xdcff ? [code - 0xdc00] : [...Buffer.from(character)];
  });
  return Buffer.from(bytes).toString("latin1");
}

const sorted = (digests: Map<string, string>) => [...digests].sort(([a], [b]) => (a < b ? -1 : 1));

for (const variant of ["tar", "gogz", "multigz", "fnamegz", "pigz", "zstd", "multizstd"]) {
  test(`layers of ${variant} are pulled eagerly to what containerd unpacks`, async () => {
    const store = await openStore(stores.newRoot());
    const layers = fixtureLayers(variant);
    const pulls = await Promise.all(
      layers.map((identity, number) =>
        store.createEager({ identity, role: number === 0 ? "lowest" : "upper", blob: streamOf(identity), source: {} }),
      ),
    );
    await Promise.all(pulls.map(({ done }) => done));
    for (const [number, { layer }] of pulls.entries()) {
      assert.ok(layer.isComplete);
      assert.deepEqual(sorted(fileDigests(layer)), sorted(goldenDigests(`layer-${number}`)), `layer ${number}`);
    }
  });
}

test("layers with golden zTOCs fill lazily to the same files, and their eager and lazy trees are equal", async () => {
  for (const golden of goldenZtocs().filter(({ name }) => /^(tar|gogz|multigz|fnamegz|pigz)\//.test(name))) {
    if (golden.spanSize !== 262_144 && golden.variant !== "gogz") continue;
    const identity = fixtureLayers(golden.variant)[golden.layerNumber]!;
    const role = golden.layerNumber === 0 ? "lowest" : "upper";
    const fetcher = new MemoryFetcher(identity.bytes);
    const store = await openStore(stores.newRoot(), { fetcher });
    const lazy = sociFormat.openLayer({ identity, role, table: golden.bytes, extras: [] });
    const layer = await store.createLazy({
      identity,
      role,
      format: "soci",
      indexBytes: golden.bytes,
      source: {},
    });
    await layer.ensure({ start: 0, end: layer.size });
    assert.deepEqual(sorted(fileDigests(layer)), sorted(goldenDigests(`layer-${golden.layerNumber}`)), golden.name);
    layer.startBackground();
    await layer.whenComplete();
    assert.equal(fetcher.calls.length, lazy.units.unitCount, golden.name);
    const eager = await store.createEager({ identity, role, blob: streamOf(identity), source: {} });
    await eager.done;
    assert.deepEqual(await eager.layer.tree(), await layer.tree(), golden.name);
  }
});

test("an eager pull goes on where its stream broke", async () => {
  const [identity] = fixtureLayers("gogz") as [GoldenLayer];
  const store = await openStore(stores.newRoot(), { clock: instantClock });
  const blob = streamOf(identity, { breakAt: [100_000, 100_000, 400_000] });
  const { done, layer } = await store.createEager({ identity, role: "lowest", blob, source: {} });
  await done;
  assert.deepEqual(blob.opened, [0, 100_000, 100_000, 400_000]);
  assert.deepEqual(sorted(fileDigests(layer)), sorted(goldenDigests("layer-0")));
});

test("wrong bytes, too few and too many of them never become a layer, and the next pull works under the same id", async () => {
  const [identity] = fixtureLayers("gogz") as [GoldenLayer];
  const root = stores.newRoot();
  const store = await openStore(root, { clock: instantClock });
  const flipped = Buffer.from(identity.bytes);
  flipped[300_000]! ^= 1;
  const short = { ...identity, bytes: identity.bytes.subarray(0, -1), size: identity.size - 1 };
  const long = { ...identity, bytes: Buffer.concat([identity.bytes, Buffer.alloc(9)]), size: identity.size + 9 };
  const cases = [
    [streamOf({ ...identity, bytes: flipped }), "HS_DIGEST_MISMATCH"],
    [streamOf(short), "HS_DIGEST_MISMATCH"],
    [{ ...streamOf(short), size: identity.size }, "HS_SIZE_MISMATCH"],
    [{ ...streamOf(long), size: identity.size }, "HS_SIZE_MISMATCH"],
  ] as const;
  let id = 0;
  for (const [blob, code] of cases) {
    const { layer, done } = await store.createEager({ identity, role: "lowest", blob, source: {} });
    await assert.rejects(done, (error) => isHeadstartError(error, code), code);
    assert.ok(id === 0 || layer.id === id);
    id = layer.id;
    assert.deepEqual(readdirSync(join(root, "layers")), []);
    const row = store.row(id)!;
    assert.ok(row.state.t === "opening" && row.state.reason !== undefined);
    await assert.rejects(store.get(id), (error) => isHeadstartError(error, "HS_LAYER_STATE"));
  }
  const { layer, done } = await store.createEager({ identity, role: "lowest", blob: streamOf(identity), source: {} });
  await done;
  assert.equal(layer.id, id);
  assert.deepEqual(sorted(fileDigests(layer)), sorted(goldenDigests("layer-0")));
});

test("a layer that is not what its diffID says, or that containerd refuses, is broken for good", async () => {
  const [identity] = fixtureLayers("gogz") as [GoldenLayer];
  const [refused] = fixtureLayers("odd-contiguous") as [GoldenLayer];
  const store = await openStore(stores.newRoot());
  const cases = [
    [{ ...identity, diffID: sha256(Buffer.from("other")) as GoldenLayer["diffID"] }, "HS_DIFFID_MISMATCH"],
    [refused, "HS_LAYER_REFUSED"],
  ] as const;
  for (const [wrong, code] of cases) {
    const { layer, done } = await store.createEager({
      identity: wrong,
      role: "lowest",
      blob: streamOf(wrong),
      source: {},
    });
    await assert.rejects(done, (error) => isHeadstartError(error, code));
    assert.equal(layer.state.t, "broken");
  }
});

test("two images that pull one layer at once pull it once", async () => {
  const [identity] = fixtureLayers("gogz") as [GoldenLayer];
  const store = await openStore(stores.newRoot());
  const blobs = [streamOf(identity), streamOf(identity)];
  const pulls = await Promise.all(
    blobs.map((blob) => store.createEager({ identity, role: "lowest", blob, source: {} })),
  );
  await Promise.all(pulls.map(({ done }) => done));
  assert.equal(pulls[0]!.layer, pulls[1]!.layer);
  assert.equal(blobs.flatMap(({ opened }) => opened).length, 1);
});

test("a closed store ends a pull that hangs, and the next start pulls again", async () => {
  const [identity] = fixtureLayers("gogz") as [GoldenLayer];
  const root = stores.newRoot();
  const store = await openStore(root);
  const hanging: BlobStream = {
    digest: identity.digest,
    size: identity.size,
    async *stream(_, { signal }) {
      yield identity.bytes.subarray(0, 100_000);
      await new Promise((_resolve, reject) => signal?.addEventListener("abort", () => reject(signal.reason)));
    },
  };
  const { done, layer } = await store.createEager({ identity, role: "lowest", blob: hanging, source: {} });
  const ended = assert.rejects(done, (error) => isHeadstartError(error, "HS_CANCELED"));
  await new Promise((resolve) => setTimeout(resolve, 50));
  await stores.close(store);
  await ended;
  const again = await openStore(root);
  const pull = await again.createEager({ identity, role: "lowest", blob: streamOf(identity), source: {} });
  await pull.done;
  assert.equal(pull.layer.id, layer.id);
});

test("a sealed eager layer is there after a reboot, one that was not synced is not believed", async () => {
  const [first, second] = fixtureLayers("gogz") as [GoldenLayer, GoldenLayer];
  const root = stores.newRoot();
  const store = await openStore(root);
  const pulls = [
    await store.createEager({ identity: first, role: "lowest", blob: streamOf(first), source: {} }),
    await store.createEager({ identity: second, role: "upper", blob: streamOf(second), source: {} }),
  ];
  for (const { done } of pulls) await done;
  await stores.close(store);
  for (const { layer } of pulls) assert.equal(layer.state.t, "sealed");
  const { DatabaseSync } = await import("node:sqlite");
  const db = new DatabaseSync(join(root, "layers.db"));
  db.exec(`UPDATE layers SET state = 'syncing' WHERE id = ${pulls[1]!.layer.id}`);
  db.close();
  const again = await openStore(root, { bootId: OTHER_BOOT });
  const layer = await again.get(pulls[0]!.layer.id);
  assert.deepEqual(sorted(fileDigests(layer)), sorted(goldenDigests("layer-0")));
  assert.equal(again.row(pulls[1]!.layer.id)!.state.t, "opening");
});

test("a layer file says nothing about who made it: the same layer gives the same bytes", async () => {
  const [identity] = fixtureLayers("multigz") as [GoldenLayer];
  const images: Buffer[] = [];
  for (const chunkBytes of [1000, 65_536, 1_000_000]) {
    const store = await openStore(stores.newRoot());
    const { layer, done } = await store.createEager({
      identity,
      role: "lowest",
      blob: streamOf(identity, { chunkBytes }),
      source: {},
    });
    await done;
    const bytes = Buffer.alloc(layer.size);
    assert.equal(readSync(layer.fd, bytes), statSync(layer.path).size);
    images.push(bytes);
  }
  assert.ok(images[0]!.equals(images[1]!) && images[0]!.equals(images[2]!));
});
