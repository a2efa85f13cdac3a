import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { sha256 } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import type { BlobHandle } from "../oci/store.ts";
import { verified } from "../oci/verify.ts";
import { fetchBlob } from "./fetch.ts";

const directory = mkdtempSync(join(tmpdir(), "headstart-fetch-"));
after(() => rmSync(directory, { recursive: true }));
const path = join(directory, "blob");
const signal = new AbortController().signal;
const GOOD = Buffer.from("the right bytes");
const BAD = Buffer.from("the wrong bytes");

/** A blob of several sources: what each of them sends. */
function blob(...sources: (Buffer | Error)[]): BlobHandle {
  const descriptor = { mediaType: "x", digest: sha256(GOOD), size: GOOD.byteLength };
  async function* send(attempt: number): AsyncGenerator<Uint8Array> {
    const sent = sources[attempt % sources.length]!;
    if (sent instanceof Error) throw sent;
    yield sent.subarray(0, 5);
    yield sent.subarray(5);
  }
  const absent = () => assert.fail("not asked for");
  return {
    descriptor,
    what: "blob",
    sourceCount: sources.length,
    stream: (_offset, options) => verified(send(options?.attempt ?? 0), descriptor, "blob"),
    readRange: absent,
    readAll: absent,
  };
}

test("wrong bytes of one source are asked for again from the next", async () => {
  let bytes = 0;
  const onBytes = (count: number) => {
    bytes += count;
  };
  await fetchBlob(blob(BAD, GOOD), path, { signal, onBytes });
  assert.deepEqual(readFileSync(path), GOOD);
  assert.equal(bytes, GOOD.byteLength + BAD.byteLength);
});

test("wrong bytes of every source are an error, and so is a source that fails", async () => {
  await assert.rejects(fetchBlob(blob(BAD, BAD), path, { signal }), { code: "HS_DIGEST_MISMATCH" });
  const broken = new HeadstartError("HS_REGISTRY_UNAVAILABLE", { what: "gone" });
  await assert.rejects(fetchBlob(blob(broken, GOOD), path, { signal }), { code: "HS_REGISTRY_UNAVAILABLE" });
});
