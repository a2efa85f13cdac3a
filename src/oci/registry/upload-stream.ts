/**
 * Pushing one blob whose digest only its end will tell (distribution-spec, "Pushing a blob in chunks"): a session of PATCHes, closed under the digest that it turned out to have.
 *
 *   the first piece is the last   its digest is known before anything is sent: pushed as any blob, and not where it is
 *   PATCHes are refused           by registries that take a blob only whole: the first or the second of them, never a later one. Both are still at hand then; they and the rest go into
 *                                 a file under TMPDIR, which is pushed when it is whole
 *   else                          a piece is in memory until the registry has it
 */

import { createReadStream } from "node:fs";
import { mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { MiB } from "../../base/limits.ts";
import type { BlobSource, StoredBlob } from "../store.ts";
import { DigestingStream } from "../verify.ts";
import { pieces, Upload, type UploadOptions, type UploadParts } from "./upload.ts";

type PushWhole = (stored: StoredBlob, source: BlobSource) => Promise<void>;

/** What says that PATCH, or another one at a place further on, is not known here. */
const REFUSALS: ReadonlySet<unknown> = new Set([400, 404, 405, 411, 413, 415, 416, 501]);
/** After so many pieces a registry that takes them has shown it. */
const PROOF = 2;

/** `pushWhole` pushes a blob that is all there. A piece is sent again where it got lost; the whole cannot be. */
export async function pushStream(
  parts: UploadParts,
  chunks: AsyncIterable<Uint8Array>,
  options: UploadOptions,
  pushWhole: PushWhole,
): Promise<StoredBlob> {
  const upload = new Upload(parts, "pushing a blob", options);
  const digesting = new DigestingStream(chunks);
  const rest = digesting[Symbol.asyncIterator]();
  try {
    const held: Uint8Array[] = [];
    for (let length = 0; length < upload.chunkBytes(); ) {
      const { done, value } = await rest.next();
      if (done === true) {
        await pushWhole(digesting.stored, Buffer.concat(held));
        return digesting.stored;
      }
      held.push(value);
      length += value.byteLength;
    }
    const session = await upload.open();
    if (session === "stored")
      throw new HeadstartError("HS_REGISTRY_PROTOCOL", { what: `${upload.what}: stored before anything was sent` });
    const all = pieces(follow(held, rest), upload.chunkBytes(session));
    const kept: Uint8Array[] = [];
    let { url } = session;
    let offset = 0;
    for (let count = 0; ; count++) {
      const { done, value } = await all.next();
      if (done === true) break;
      if (count < PROOF) kept.push(value);
      try {
        url = await upload.sendChunk(url, value, offset);
      } catch (error) {
        if (count >= PROOF || !isHeadstartError(error) || !REFUSALS.has(error.details.status)) throw error;
        await spool(kept, all, (source) => pushWhole(digesting.stored, source));
        return digesting.stored;
      }
      if (count + 1 === PROOF) kept.length = 0;
      offset += value.byteLength;
      await setImmediate(); // lets other work in between pieces that come from memory
    }
    await upload.close(url, digesting.stored.digest);
    return digesting.stored;
  } finally {
    await rest.return(undefined);
  }
}

async function* follow(
  held: Uint8Array[],
  rest: AsyncGenerator<Uint8Array, void, undefined>,
): AsyncGenerator<Uint8Array, void, undefined> {
  // given out one by one, so that what was sent is not held longer
  while (held.length > 0) yield held.shift()!;
  yield* rest;
}

async function spool(
  kept: readonly Uint8Array[],
  rest: AsyncIterable<Uint8Array>,
  push: (source: BlobSource) => Promise<void>,
): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), "headstart-upload-"));
  try {
    const path = join(directory, "blob");
    {
      await using file = await open(path, "wx", 0o600);
      for (const piece of kept) await file.writeFile(piece);
      for await (const piece of rest) await file.writeFile(piece);
    }
    await push(() => createReadStream(path, { highWaterMark: MiB }));
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
