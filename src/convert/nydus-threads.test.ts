/** Layers that are converted in threads: the same as here, and what goes wrong on either side. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { convertNative, convertRef, inPieces, LAYER_TYPE, tarOf } from "../../test/tools/nydus-layer.ts";
import { sha256 } from "../base/digest.ts";
import { writeBootstrap } from "../formats/nydus/write/bootstrap.ts";
import { openDictionary } from "../formats/nydus/write/dictionary.ts";
import { mergeLayers } from "../formats/nydus/write/merge.ts";
import { NYDUS_DEFAULTS } from "../formats/nydus/write/options.ts";
import { writeTar } from "../sandbox/tar-writer.ts";
import { NydusThreads } from "./nydus-threads.ts";

/** Noise of a hash: too large, and stays too large, to be converted without a thread. */
const DATA = Buffer.concat(Array.from({ length: 50_000 }, (_, at) => createHash("sha512").update(`${at}`).digest()));
const TAR = writeTar([{ path: "data", data: DATA }, { path: "small", data: "small" }, { path: "etc/" }]);
const STORED = gzipSync(TAR, { level: 1 });

function input(stored: Uint8Array, sink: (bytes: Uint8Array) => void | Promise<void>) {
  return {
    bytes: inPieces(stored),
    layer: { digest: sha256(STORED), size: STORED.byteLength, mediaType: LAYER_TYPE },
    role: "lowest" as const,
    options: NYDUS_DEFAULTS,
    dictionary: null,
    sink,
  };
}

test("a thread makes the same blob and the same layer", async () => {
  assert.ok(STORED.byteLength > 3_000_000);
  await using threads = new NydusThreads();
  for (const kind of ["native", "ref"] as const) {
    const here = kind === "native" ? await convertNative(STORED) : await convertRef(STORED);
    const parts: Uint8Array[] = [];
    const taken: number[] = [];
    const made = await threads[kind]({
      ...input(STORED, (bytes) => void parts.push(bytes)),
      onProgress: (bytes) => taken.push(bytes),
    });
    const bytes = Buffer.concat(parts);
    assert.ok(bytes.equals(here.bytes));
    assert.deepEqual(made.blob, here.blob);
    assert.equal(made.diffID, sha256(TAR));
    assert.deepEqual(made.layer.blob!.facts, here.layer.blob!.facts);
    assert.ok(Buffer.from(writeBootstrap(mergeLayers([made.layer]))).equals(writeBootstrap(mergeLayers([here.layer]))));
    assert.equal(taken.at(-1), STORED.byteLength);
  }
});

test("a dictionary goes along, and its blobs are those that were given", async () => {
  await using threads = new NydusThreads();
  const base = await convertNative(STORED);
  const dictionary = openDictionary(writeBootstrap(mergeLayers([base.layer])), NYDUS_DEFAULTS);
  const parts: Uint8Array[] = [];
  const made = await threads.native({ ...input(STORED, (bytes) => void parts.push(bytes)), dictionary });
  assert.equal(made.layer.blob, null);
  assert.equal(made.layer.dictionary[0], dictionary.blobs[0]);
  const again = { ...made, bytes: Buffer.concat(parts), tail: (await convertNative(STORED, {}, { dictionary })).tail };
  assert.ok((await tarOf(again, [base])).equals(TAR));
});

test("what the source or the sink throws, or the thread finds, is what the caller gets", async () => {
  await using threads = new NydusThreads();
  const changed = Buffer.from(STORED);
  changed[1000]! ^= 1;
  await assert.rejects(threads.native(input(changed, () => {})), { code: "HS_DIGEST_MISMATCH" });
  await assert.rejects(threads.ref(input(STORED.subarray(1), () => {})), { code: "HS_SIZE_MISMATCH" });
  const hungUp = new Error("the registry hung up");
  await assert.rejects(threads.native(input(STORED, () => Promise.reject(hungUp))), hungUp);
  const broken = (async function* () {
    yield STORED.subarray(0, 1_000_000);
    throw hungUp;
  })();
  await assert.rejects(threads.ref({ ...input(STORED, () => {}), bytes: broken }), hungUp);
  // the threads are as good as before
  await threads.native(input(STORED, () => {}));
});

test("a conversion that is canceled ends", async () => {
  await using threads = new NydusThreads();
  const controller = new AbortController();
  const endless = (async function* () {
    yield STORED.subarray(0, 100_000);
    controller.abort(new Error("enough"));
    await new Promise((resolve) => setTimeout(resolve, 20));
    yield STORED.subarray(100_000);
  })();
  const canceled = threads.native({ ...input(STORED, () => {}), bytes: endless, signal: controller.signal });
  await assert.rejects(canceled, /enough/);
});
