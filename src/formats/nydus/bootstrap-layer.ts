/**
 * The layer that carries the bootstrap: a `tar.gz` with `image/image.boot` and, in RAFS v6, a `<blob>.blob.meta` for each blob (specs/nydus.md 1.1). Only these
 * names are read; whatever else a caller put beside is left alone. Everything in it is bound by the manifest.
 */

import type { Digest } from "../../base/digest.ts";
import { HeadstartError } from "../../base/errors.ts";
import { readLayerTree } from "../tar/read-layer.ts";
import type { TarEntry } from "../tar/records.ts";
import { CI_HEADER_SIZE, NYDUS_LIMITS, nydusInvalid } from "./ondisk.ts";

export interface BootstrapLayer {
  readonly bootstrap: Uint8Array;
  /** `.blob.meta` files by the hex digest in their name. */
  readonly blobMeta: ReadonlyMap<string, Uint8Array>;
}

const BOOT = "image/image.boot";
const META = /^image\/([0-9a-f]{64})\.blob\.meta$/;
/** All files together: what is held in memory. */
const BYTES_MAX = 2 * NYDUS_LIMITS.bootstrapBytes;

/** Verifies the layer's digest, size and diffID. Throws HS_NYDUS_INVALID, HS_LIMIT and what reading a layer throws. */
export async function readBootstrapLayer(
  source: AsyncIterable<Uint8Array>,
  layer: { readonly digest: Digest; readonly size: number; readonly mediaType: string; readonly diffID: Digest },
): Promise<BootstrapLayer> {
  const what = `bootstrap layer ${layer.digest}`;
  const files = new Map<string, { entry: number; chunks: Uint8Array[]; size: number }>();
  let total = 0;
  await readLayerTree(source, {
    ...layer,
    role: "upper",
    onData(entry, chunk) {
      const name = nameOf(entry);
      if (name !== BOOT && !META.test(name)) return;
      let file = files.get(name);
      if (file === undefined) {
        file = { entry: entry.number, chunks: [], size: 0 };
        files.set(name, file);
      }
      if (file.entry !== entry.number) throw nydusInvalid(what, `${name} is in it twice`);
      file.size += chunk.byteLength;
      total += chunk.byteLength;
      const limit = name === BOOT ? NYDUS_LIMITS.bootstrapBytes : NYDUS_LIMITS.chunkInfoBytes + 2 * CI_HEADER_SIZE;
      if (file.size > limit || total > BYTES_MAX || files.size > NYDUS_LIMITS.blobs + 1)
        throw new HeadstartError("HS_LIMIT", { what: `${what}: ${name} is too large` });
      file.chunks.push(Uint8Array.from(chunk));
    },
  });
  const boot = files.get(BOOT);
  if (boot === undefined) throw nydusInvalid(what, `${BOOT} is missing`);
  const blobMeta = new Map<string, Uint8Array>();
  for (const [name, file] of files) {
    const id = META.exec(name)?.[1];
    if (id !== undefined) blobMeta.set(id, Buffer.concat(file.chunks));
  }
  return { bootstrap: Buffer.concat(boot.chunks), blobMeta };
}

function nameOf(entry: TarEntry): string {
  return Buffer.from(entry.name).toString("latin1").replace(/^\.\//, "");
}
