import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { after, test } from "node:test";
import { MemoryFetcher, makePlainLayer, noise, type PlainFile, type PlainLayer } from "../../test/fakes/plain-layer.ts";
import { BOOT, LayerStores, OTHER_BOOT } from "../../test/tools/layer-stores.ts";
import { onSync } from "../../test/tools/syncs.ts";
import { sha256 } from "../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { BLOCK_SIZE } from "../erofs/placement.ts";
import { layoutLazy } from "../erofs/write.ts";
import { Decoders } from "./decoders.ts";
import type { LayerImage } from "./layer-image.ts";
import type { LayerStore, LayerStoreOptions } from "./store.ts";

const SIZES = [0, 1, 511, 512, 4095, 4096, 4097, 300_000, 65_536, 70_000, 17, 4096, 1_000_000, 3, 8192];
const FILES: readonly PlainFile[] = SIZES.map((size, index) => ({
  name: `file-${String(index).padStart(2, "0")}`,
  data: noise(size, index + 1),
}));

const decoders = new Decoders({
  threads: 2,
  entry: new URL("../../test/fakes/plain-decode.worker.ts", import.meta.url),
});
after(() => decoders[Symbol.asyncDispose]());

const stores = new LayerStores();

function openStore(
  root: string,
  plain: PlainLayer,
  fetcher: MemoryFetcher,
  options: Partial<LayerStoreOptions> = {},
): Promise<LayerStore> {
  return stores.open(root, { fetcher, decoders, openLazy: () => plain.lazy, ...options });
}

function create(store: LayerStore, plain: PlainLayer): Promise<LayerImage> {
  return store.createLazy({
    identity: plain.identity,
    role: "lowest",
    format: "plain",
    lazy: plain.lazy,
    indexBytes: plain.indexBytes,
    source: { reference: "example.test/plain" },
  });
}

/** Where a file's data lie in the layer file. */
function placeOf(plain: PlainLayer, index: number): { start: number; end: number } {
  const { placement } = layoutLazy(plain.lazy.tree, { uuid: new Uint8Array(16) });
  const row = placement.address.indexOf(plain.addresses[index]!);
  const start = placement.fileOffset[row]!;
  return { start, end: start + placement.length[row]! };
}

function bytesAt(layer: LayerImage, start: number, end: number): Uint8Array {
  const bytes = new Uint8Array(end - start);
  assert.equal(readSync(layer.fd, bytes, 0, bytes.byteLength, start), bytes.byteLength);
  return bytes;
}

async function assertFile(layer: LayerImage, plain: PlainLayer, index: number): Promise<void> {
  const { data, name } = plain.files[index]!;
  if (data.byteLength === 0) return;
  const { start, end } = placeOf(plain, index);
  await layer.ensure({ start, end });
  assert.ok(Buffer.compare(bytesAt(layer, start, end), data) === 0, name);
  const padded = Math.ceil(end / BLOCK_SIZE) * BLOCK_SIZE;
  assert.ok(
    bytesAt(layer, end, padded).every((byte) => byte === 0),
    `padding of ${name}`,
  );
}

test("every file of a lazy layer reads right, and only the units that it needs are fetched", async () => {
  const plain = makePlainLayer(FILES);
  const fetcher = new MemoryFetcher(plain.blob);
  const store = await openStore(stores.newRoot(), plain, fetcher);
  const layer = await create(store, plain);
  assert.equal(layer.state.t, "lazy");
  assert.equal(fetcher.calls.length, 0);
  assert.ok(layer.fillMap.has(0), "metadata can be read at once");
  await assertFile(layer, plain, 1);
  assert.equal(fetcher.calls.length, 1);
  for (let index = 0; index < FILES.length; index++) await assertFile(layer, plain, index);
  assert.equal(fetcher.calls.length, new Set(fetcher.calls.map((call) => call.start)).size);
});

test("fifty readers that come at once cause each unit to be fetched and decoded once", async () => {
  const plain = makePlainLayer(FILES);
  const fetcher = new MemoryFetcher(plain.blob);
  fetcher.onFetch = () => new Promise((resolve) => setTimeout(resolve, 5));
  const store = await openStore(stores.newRoot(), plain, fetcher);
  const layer = await create(store, plain);
  const indexes = Array.from({ length: 50 }, (_, reader) => reader % FILES.length);
  await Promise.all(indexes.map((index) => assertFile(layer, plain, index)));
  assert.equal(fetcher.calls.length, new Set(fetcher.calls.map((call) => call.start)).size);
  assert.ok(layer.fillMap.hasAll(0, layer.fillMap.length));
});

test("wrong bytes are fetched again from another source, and a reader never sees them", async () => {
  const plain = makePlainLayer(FILES);
  const fetcher = new MemoryFetcher(plain.blob);
  fetcher.onFetch = (call, bytes) => {
    if (call.attempt < 2) bytes[100]! ^= 1;
  };
  const store = await openStore(stores.newRoot(), plain, fetcher);
  const layer = await create(store, plain);
  await assertFile(layer, plain, 7);
  assert.deepEqual(
    fetcher.calls.filter((call) => call.start === fetcher.calls[0]!.start).map((call) => call.attempt),
    [0, 1, 2],
  );
});

test("bytes that are wrong every time are an error for their range only, the unit stays a hole and is tried again later", async () => {
  const plain = makePlainLayer(FILES);
  const fetcher = new MemoryFetcher(plain.blob);
  const bad = 3 * 65_536;
  fetcher.onFetch = (call, bytes) => {
    if (call.start === bad) bytes[0]! ^= 0xff;
  };
  const store = await openStore(stores.newRoot(), plain, fetcher);
  const layer = await create(store, plain);
  const { start, end } = placeOf(plain, 7);
  await assert.rejects(layer.ensure({ start, end }), (error) => isHeadstartError(error, "HS_UNIT_DIGEST"));
  assert.ok(!layer.fillMap.hasAll(Math.floor(start / BLOCK_SIZE), Math.ceil(end / BLOCK_SIZE)));
  assert.equal(layer.state.t, "lazy");
  await assertFile(layer, plain, 1);
  fetcher.onFetch = () => {};
  await assertFile(layer, plain, 7);
});

test("a table of contents that lies about a file is found before one of its bytes can be read, also in the middle", async () => {
  const plain = makePlainLayer(FILES, { lies: new Set(["file-12"]) });
  const failures: HeadstartError[] = [];
  const store = await openStore(stores.newRoot(), plain, new MemoryFetcher(plain.blob), {
    onIndexFailure: (_, error) => failures.push(error),
  });
  const layer = await create(store, plain);
  const { start, end } = placeOf(plain, 12);
  await assert.rejects(layer.ensure({ start: start + 500_000, end: start + 504_096 }), (error) =>
    isHeadstartError(error, "HS_INDEX_MISMATCH"),
  );
  for (let block = Math.floor(start / BLOCK_SIZE); block < Math.ceil(end / BLOCK_SIZE); block++) {
    assert.ok(!layer.fillMap.has(block), `block ${block}`);
  }
  assert.equal(layer.state.t, "broken");
  assert.equal(failures.length, 1);
  await assertFile(layer, plain, 7);
});

test("a reader that gives up leaves the others waiting, and the last one to leave ends the request", async () => {
  const plain = makePlainLayer(FILES);
  const fetcher = new MemoryFetcher(plain.blob);
  let aborted = 0;
  fetcher.onFetch = (_, __, signal) =>
    new Promise((_resolve, reject) => {
      signal?.addEventListener("abort", () => {
        aborted++;
        reject(signal.reason);
      });
    });
  const store = await openStore(stores.newRoot(), plain, fetcher);
  const layer = await create(store, plain);
  const [first, second] = [new AbortController(), new AbortController()];
  const { start, end } = placeOf(plain, 1);
  const waits = [first, second].map((controller) => layer.ensure({ start, end }, { signal: controller.signal }));
  const results = Promise.allSettled(waits);
  first.abort(new Error("first leaves"));
  await assert.rejects(waits[0]!, /first leaves/);
  assert.equal(aborted, 0);
  second.abort(new Error("second leaves"));
  await assert.rejects(waits[1]!, /second leaves/);
  await results;
  assert.equal(aborted, 1);
  fetcher.onFetch = () => {};
  await assertFile(layer, plain, 1);
});

test("a read that nothing answers ends at its deadline", async () => {
  const plain = makePlainLayer(FILES);
  const fetcher = new MemoryFetcher(plain.blob);
  fetcher.onFetch = (_, __, signal) =>
    new Promise((_resolve, reject) => signal?.addEventListener("abort", () => reject(signal.reason)));
  const store = await openStore(stores.newRoot(), plain, fetcher, { deadlineMs: 30 });
  const layer = await create(store, plain);
  await assert.rejects(layer.ensure(placeOf(plain, 1)), (error) => isHeadstartError(error, "HS_FILL_TIMEOUT"));
});

test("what was filled is still filled after the store was closed and opened again in the same boot", async () => {
  const plain = makePlainLayer(FILES);
  const root = stores.newRoot();
  const store = await openStore(root, plain, new MemoryFetcher(plain.blob));
  const { id } = await create(store, plain);
  await assertFile(await store.get(id), plain, 12);
  await stores.close(store);

  const fetcher = new MemoryFetcher(plain.blob);
  const again = await (await openStore(root, plain, fetcher)).get(id);
  await assertFile(again, plain, 12);
  assert.equal(fetcher.calls.length, 0);
  await assertFile(again, plain, 7);
  assert.ok(fetcher.calls.length > 0);
});

test("after a reboot nothing that was not sealed is believed", async () => {
  const plain = makePlainLayer(FILES);
  const root = stores.newRoot();
  const store = await openStore(root, plain, new MemoryFetcher(plain.blob));
  const { id } = await create(store, plain);
  await assertFile(await store.get(id), plain, 12);
  await stores.close(store);

  const fetcher = new MemoryFetcher(plain.blob);
  const again = await (await openStore(root, plain, fetcher, { bootId: OTHER_BOOT })).get(id);
  assert.equal(again.statistics().unitsFilled, 0);
  await assertFile(again, plain, 12);
  assert.ok(fetcher.calls.length > 0);
});

test("a damaged index or placement breaks that layer alone, with a reason", async () => {
  const plain = makePlainLayer(FILES);
  const root = stores.newRoot();
  const store = await openStore(root, plain, new MemoryFetcher(plain.blob));
  const { id } = await create(store, plain);
  await stores.close(store);
  const { truncateSync } = await import("node:fs");
  truncateSync(join(root, "layers", String(id), "placement"), 100);
  const again = await openStore(root, plain, new MemoryFetcher(plain.blob));
  await assert.rejects(again.get(id), (error) => isHeadstartError(error, "HS_LAYER_BROKEN"));
  assert.equal(again.list()[0]!.state.t, "broken");
  const anew = await create(again, plain);
  assert.notEqual(anew.id, id);
  await assertFile(anew, plain, 7);
});

test("the background fill completes, verifies and seals a layer, which then needs nothing but its file", async () => {
  const plain = makePlainLayer(FILES);
  const root = stores.newRoot();
  const fetcher = new MemoryFetcher(plain.blob);
  const store = await openStore(root, plain, fetcher);
  const layer = await create(store, plain);
  layer.startBackground();
  layer.startBackground();
  await layer.whenComplete();
  assert.equal(layer.state.t, "sealed");
  assert.equal(fetcher.calls.length, plain.lazy.units.unitCount);
  await layer.close();
  assert.deepEqual(readdirSync(join(root, "layers", String(layer.id))).toSorted(), ["image", "tree"]);
  assert.equal(statSync(layer.path).mode & 0o777, 0o400);
  await stores.close(store);

  const again = await (await openStore(root, plain, fetcher, { bootId: OTHER_BOOT })).get(layer.id);
  assert.equal(again.state.t, "sealed");
  for (let index = 0; index < FILES.length; index++) await assertFile(again, plain, index);
  assert.equal(fetcher.calls.length, plain.lazy.units.unitCount);
});

test("a layer that the disk does not take is broken, however it came: a second attempt to sync it would prove nothing", async (t) => {
  const plain = makePlainLayer(FILES);
  const store = await openStore(stores.newRoot(), plain, new MemoryFetcher(plain.blob));
  const refused = new Set<string>();
  await onSync(t, async (path, sync) => {
    if (!path.endsWith("/image") || refused.has(path)) return await sync();
    refused.add(path);
    throw Object.assign(new Error("a test"), { code: "EIO" });
  });
  const lazy = await create(store, plain);
  lazy.startBackground();
  await assert.rejects(lazy.whenComplete(), (error) => isHeadstartError(error, "HS_LAYER_BROKEN"));
  const identity = { ...plain.identity, mediaType: "application/vnd.oci.image.layer.v1.tar" };
  const blob = {
    digest: identity.digest,
    size: identity.size,
    async *stream() {
      yield plain.blob;
    },
  };
  const eager = await store.createEager({ identity, role: "lowest", blob, source: {} });
  await eager.done;
  await eager.layer.close();
  assert.deepEqual(
    store.list().map(({ state }) => state.t),
    ["broken", "broken"],
  );
  assert.equal(store.findUsable(identity, "lowest"), null);
});

test("a pull that fails while not even that can be noted is told to all who wait, and begins anew afterwards", async () => {
  const plain = makePlainLayer(FILES);
  const store = await openStore(stores.newRoot(), plain, new MemoryFetcher(plain.blob));
  const identity = { ...plain.identity, mediaType: "application/vnd.oci.image.layer.v1.tar" };
  const pull = (bytes: Uint8Array) =>
    store.createEager({
      identity,
      role: "lowest",
      source: {},
      blob: {
        digest: identity.digest,
        size: identity.size,
        async *stream() {
          yield bytes;
        },
      },
    });
  {
    using db = new DatabaseSync(join(store.root, "layers.db"));
    db.exec(
      "CREATE TRIGGER full BEFORE UPDATE OF state ON layers WHEN NEW.state = 'opening' BEGIN SELECT RAISE(FAIL, 'full'); END",
    );
    const { layer, done } = await pull(new Uint8Array(identity.size));
    const waiter = assert.rejects(layer.whenComplete());
    await assert.rejects(done);
    await waiter;
    db.exec("DROP TRIGGER full");
  }
  assert.equal(store.list()[0]!.state.t, "pulling");
  const { layer, done } = await pull(plain.blob);
  await done;
  assert.equal(layer.isComplete, true);
});

test("a sealed layer of which a file is lost, as after a removal that a power loss undid in part, is made anew", async () => {
  const plain = makePlainLayer(FILES);
  for (const name of ["image", "tree"]) {
    const root = stores.newRoot();
    const store = await openStore(root, plain, new MemoryFetcher(plain.blob));
    const layer = await create(store, plain);
    layer.startBackground();
    await layer.whenComplete();
    await stores.close(store);
    rmSync(join(root, "layers", String(layer.id), name));
    const again = await openStore(root, plain, new MemoryFetcher(plain.blob));
    assert.equal(again.findUsable(plain.identity, "lowest"), null);
    const anew = await create(again, plain);
    assert.notEqual(anew.id, layer.id);
    await anew.tree();
  }
});

test("a layer whose whole is not what its diffID says is not sealed", async () => {
  const plain = makePlainLayer(FILES, { diffID: sha256(Buffer.from("something else")) });
  const store = await openStore(stores.newRoot(), plain, new MemoryFetcher(plain.blob));
  const layer = await create(store, plain);
  layer.startBackground();
  await assert.rejects(layer.whenComplete(), (error) => isHeadstartError(error, "HS_LAYER_BROKEN"));
  assert.equal(layer.state.t === "broken" && layer.state.code, "HS_DIFFID_MISMATCH");
});

test("zeros behind the end of the archive that the index does not count do not hinder the seal", async () => {
  const padded = Buffer.concat([makePlainLayer(FILES).blob, new Uint8Array(9 * 1024)]);
  const plain = makePlainLayer(FILES, { diffID: sha256(padded) });
  const store = await openStore(stores.newRoot(), plain, new MemoryFetcher(plain.blob));
  const layer = await create(store, plain);
  layer.startBackground();
  await layer.whenComplete();
});

test("the background fill waits out a registry that is away, and demand goes on meanwhile", async () => {
  const plain = makePlainLayer(FILES);
  const fetcher = new MemoryFetcher(plain.blob);
  let away = true;
  fetcher.onFetch = () => {
    if (away) throw new HeadstartError("HS_REGISTRY_UNAVAILABLE", { what: "a test" });
  };
  const pauses: number[] = [];
  const clock = {
    now: () => 0,
    monotonic: () => 0,
    sleep: (ms: number) => {
      pauses.push(ms);
      if (pauses.length === 3) away = false;
      return Promise.resolve();
    },
  };
  const store = await openStore(stores.newRoot(), plain, fetcher, { clock });
  const layer = await create(store, plain);
  layer.startBackground();
  await layer.whenComplete();
  assert.deepEqual(pauses, [1000, 2000, 4000]);
});

test("two images that share a layer get the same one; as a lowest and as an upper layer it is not the same", async () => {
  const plain = makePlainLayer(FILES);
  const store = await openStore(stores.newRoot(), plain, new MemoryFetcher(plain.blob));
  const [first, second] = await Promise.all([create(store, plain), create(store, plain)]);
  assert.equal(first, second);
  const upper = await store.createLazy({
    identity: plain.identity,
    role: "upper",
    format: "plain",
    lazy: plain.lazy,
    indexBytes: plain.indexBytes,
    source: {},
  });
  assert.notEqual(upper.id, first.id);
});

test("a removed layer leaves no file, and its id is not used again", async () => {
  const plain = makePlainLayer(FILES);
  const root = stores.newRoot();
  const store = await openStore(root, plain, new MemoryFetcher(plain.blob));
  const { id } = await create(store, plain);
  assert.ok(store.list()[0]!.diskBytes > 0);
  await store.remove(id);
  await store.remove(id);
  assert.deepEqual(readdirSync(join(root, "layers")), []);
  assert.ok((await create(store, plain)).id > id);
});

function killedAt(point: string, root: string, how: "lazy" | "eager"): void {
  const child = join(import.meta.dirname, "../../test/fakes/plain-fill.ts");
  const result = spawnSync(process.execPath, [child, root, BOOT, how], {
    env: { ...process.env, HEADSTART_FAILPOINTS: point },
    encoding: "utf8",
    timeout: 30_000,
  });
  assert.equal(result.signal, "SIGKILL", `${point}: ${result.stderr}`);
}

test("a process that is killed while it fills loses nothing that it had filled, and shows nothing that it had not", async () => {
  const plain = makePlainLayer(FILES);
  const units = plain.lazy.units.unitCount;
  for (const [point, least, most] of [
    ["layer:unit-bit=4*exit", 1, units - 1],
    ["layer:data-write=9*exit", 1, units - 1],
    ["layer:sealed=exit", units, units],
  ] as const) {
    const root = stores.newRoot();
    killedAt(point, root, "lazy");
    const fetcher = new MemoryFetcher(plain.blob);
    const store = await openStore(root, plain, fetcher);
    const layer = await store.get(store.list()[0]!.id);
    assert.equal(layer.state.t, "lazy");
    const before = layer.statistics().unitsFilled;
    assert.ok(before >= least && before <= most, `${before} units after ${point}`);
    for (let index = 0; index < FILES.length; index++) await assertFile(layer, plain, index);
    layer.startBackground();
    await layer.whenComplete();
    assert.equal(fetcher.calls.length, units - before);
  }
});

test("a pull that is killed begins anew under the same id; one that was complete is believed", async () => {
  const plain = makePlainLayer(FILES);
  const identity = { ...plain.identity, mediaType: "application/vnd.oci.image.layer.v1.tar" };
  const blob = {
    digest: identity.digest,
    size: identity.size,
    async *stream(offset: number) {
      yield plain.blob.subarray(offset);
    },
  };
  for (const [point, state] of [
    ["layer:eager-write=exit", "opening"],
    ["layer:eager-metadata=exit", "opening"],
    ["layer:sealed=exit", "syncing"],
  ] as const) {
    const root = stores.newRoot();
    killedAt(point, root, "eager");
    const store = await openStore(root, plain, new MemoryFetcher(plain.blob));
    const [row] = store.list();
    assert.equal(row!.state.t, state);
    assert.equal(existsSync(join(root, "layers", String(row!.id))), state === "syncing");
    const { layer, done } = await store.createEager({ identity, role: "lowest", blob, source: {} });
    await done;
    assert.equal(layer.id, row!.id);
    const image = bytesAt(layer, 0, layer.size);
    const other = await openStore(stores.newRoot(), plain, new MemoryFetcher(plain.blob));
    const pull = await other.createEager({ identity, role: "lowest", blob, source: {} });
    await pull.done;
    assert.equal(Buffer.compare(image, bytesAt(pull.layer, 0, pull.layer.size)), 0);
  }
});
