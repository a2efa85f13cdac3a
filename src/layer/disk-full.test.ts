/** A file system that is full, for real: a small tmpfs that is made larger later. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readdirSync, readSync, rmdirSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { MemoryFetcher, makePlainLayer, noise } from "../../test/fakes/plain-layer.ts";
import { isHeadstartError } from "../base/errors.ts";
import { Decoders } from "./decoders.ts";
import { LayerStore } from "./store.ts";

const BOOT = "11111111-2222-3333-4444-555555555555";
const skip = process.getuid?.() === 0 ? false : "only root may mount";

const decoders = new Decoders({
  threads: 1,
  entry: new URL("../../test/fakes/plain-decode.worker.ts", import.meta.url),
});
after(() => decoders[Symbol.asyncDispose]());

async function onTmpfs(
  size: string,
  work: (root: string, resize: (size: string) => void) => Promise<void>,
): Promise<void> {
  const root = mkdtempSync(join(tmpdir(), "layer-full-"));
  execFileSync("mount", ["-t", "tmpfs", "-o", `size=${size},mode=0700`, "tmpfs", root]);
  try {
    await work(root, (larger) => execFileSync("mount", ["-o", `remount,size=${larger}`, root]));
  } finally {
    execFileSync("umount", [root]);
    rmdirSync(root);
  }
}

const plain = makePlainLayer([1, 2, 3, 4].map((seed) => ({ name: `file-${seed}`, data: noise(1_500_000, seed) })));

test(
  "a full disk ends an eager pull clearly, leaves nothing of it, and the next pull works once there is room",
  { skip },
  () =>
    onTmpfs("4m", async (root, resize) => {
      await using store = await LayerStore.open(root, {
        fetcher: new MemoryFetcher(plain.blob),
        decoders,
        bootId: BOOT,
      });
      const identity = { ...plain.identity, mediaType: "application/vnd.oci.image.layer.v1.tar" };
      const blob = {
        digest: identity.digest,
        size: identity.size,
        async *stream(offset: number) {
          for (let at = offset; at < plain.blob.byteLength; at += 65_536) yield plain.blob.subarray(at, at + 65_536);
        },
      };
      const first = await store.createEager({ identity, role: "lowest", blob, source: {} });
      await assert.rejects(first.done, (error) => isHeadstartError(error, "HS_DISK_FULL"));
      assert.deepEqual(readdirSync(join(root, "layers")), []);
      assert.equal(store.row(first.layer.id)!.state.t, "opening");
      resize("32m");
      const second = await store.createEager({ identity, role: "lowest", blob, source: {} });
      await second.done;
      assert.equal(second.layer.id, first.layer.id);
      assert.ok(second.layer.isComplete);
    }),
);

test("a full disk fails the reads of holes only, and they work once there is room", { skip }, () =>
  onTmpfs("3m", async (root, resize) => {
    const fetcher = new MemoryFetcher(plain.blob);
    await using store = await LayerStore.open(root, { fetcher, decoders, bootId: BOOT, openLazy: () => plain.lazy });
    const { identity, lazy, indexBytes } = plain;
    const options = { identity, role: "lowest", format: "plain", lazy, indexBytes, source: {} } as const;
    const layer = await store.createLazy(options);
    await assert.rejects(layer.ensure({ start: 0, end: layer.size }), (error) =>
      isHeadstartError(error, "HS_DISK_FULL"),
    );
    const filled = layer.statistics().unitsFilled;
    assert.ok(filled > 0 && filled < lazy.units.unitCount);
    assert.equal(layer.state.t, "lazy");
    // units that were fetched before the first failed are still being tried: none is once each block has been asked for
    const blocks = Array.from({ length: layer.size / 4096 }, (_, block) => block * 4096);
    await Promise.allSettled(blocks.map((start) => layer.ensure({ start, end: start + 4096 })));
    resize("32m");
    await layer.ensure({ start: 0, end: layer.size });
    const data = new Uint8Array(1_500_000);
    const images = [1, 2, 3, 4].map((seed) => noise(1_500_000, seed));
    // the data of four files of one size lie behind the metadata, each on a block
    const place = Math.ceil(data.byteLength / 4096) * 4096;
    const start = layer.size - 4 * place;
    for (const [index, image] of images.entries()) {
      readSync(layer.fd, data, 0, data.byteLength, start + index * place);
      assert.equal(Buffer.compare(data, image), 0);
    }
    layer.startBackground();
    await layer.whenComplete();
  }),
);

test("the background fill waits on a disk so full that not even its state can be noted, and goes on", { skip }, () =>
  onTmpfs("9m", async (root, resize) => {
    await using store = await LayerStore.open(root, {
      fetcher: new MemoryFetcher(plain.blob),
      decoders,
      bootId: BOOT,
      openLazy: () => plain.lazy,
    });
    const { identity, lazy, indexBytes } = plain;
    const key = { identity, role: "lowest", format: "plain" } as const;
    const layer = await store.createLazy({ ...key, lazy, indexBytes, source: {} });
    for (const size of [65_536, 4096]) {
      const more = openSync(join(root, `ballast-${size}`), "w");
      assert.throws(() => {
        for (;;) writeSync(more, new Uint8Array(size));
      }, /ENOSPC/);
      closeSync(more);
    }
    assert.throws(() => store.declare({ ...key, role: "upper", indexDigest: null }, {}), /disk is full/);
    layer.startBackground();
    while (layer.trouble === null) await new Promise((resolve) => setImmediate(resolve));
    assert.match(layer.trouble, /HS_DISK_FULL/);
    assert.equal(layer.isComplete, false);
    resize("32m");
    await layer.whenComplete();
    await layer.whenIdle();
    assert.equal(store.row(layer.id)!.state.t, "sealed");
  }),
);

test("a layer that cannot even be begun on a full disk leaves nothing behind", { skip }, () =>
  onTmpfs("200k", async (root, resize) => {
    await using store = await LayerStore.open(root, {
      fetcher: new MemoryFetcher(plain.blob),
      decoders,
      bootId: BOOT,
      openLazy: () => plain.lazy,
    });
    const { identity, lazy } = plain;
    const options = {
      identity,
      role: "lowest",
      format: "plain",
      lazy,
      indexBytes: new Uint8Array(400_000),
      source: {},
    } as const;
    await assert.rejects(store.createLazy(options), (error) => isHeadstartError(error, "HS_DISK_FULL"));
    assert.deepEqual(readdirSync(join(root, "layers")), []);
    resize("32m");
    assert.equal((await store.createLazy(options)).state.t, "lazy");
  }),
);
