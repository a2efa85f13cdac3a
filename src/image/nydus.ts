/**
 * A Nydus image as it is mounted: bootstrap layer fetched and verified, chunk arrays of all blobs, and every blob that holds data asked for once, so that what is missing is known
 * before containerd is told that the image is here (specs/nydus.md N26, N29).
 */

import { type Digest, digestHex } from "../base/digest.ts";
import { describeError, HeadstartError } from "../base/errors.ts";
import { Limit } from "../base/limit.ts";
import type { MergedImage } from "../formats/format.ts";
import type { NydusBootstrap } from "../formats/nydus/bootstrap.ts";
import type { ChunkInfo } from "../formats/nydus/chunk-info.ts";
import { blobDescriptors } from "../formats/nydus/manifest.ts";
import { NYDUS_ANNOTATIONS } from "../formats/nydus/ondisk.ts";
import { openChunkInfo } from "../formats/nydus/open.ts";
import { annotation, type Descriptor } from "../oci/descriptor.ts";
import type { LoadedImage } from "../oci/manifest.ts";
import type { ImageReader } from "../oci/store.ts";
import { openNydusImage } from "./look-nydus.ts";
import { PROBE_BYTES } from "./source.ts";

/** `format` of rows whose layer file is a whole Nydus image. */
export const NYDUS = "nydus";

/** Requests at once. */
const PARALLEL = 8;

/** Where the heavy part is done, in threads: a LayerStore. */
export interface NydusParser {
  readBootstrap(bytes: Uint8Array, what: string): Promise<NydusBootstrap>;
  mergeNydus(
    bootstrap: NydusBootstrap,
    infos: readonly (ChunkInfo | null)[],
    sizes: readonly number[],
    what: string,
  ): Promise<MergedImage>;
}

/**
 * Throws HS_NYDUS_INVALID and others for what is not sound, HS_BLOB_NOT_FOUND and HS_SIZE_MISMATCH for a blob that is not there as the bootstrap says, HS_REGISTRY_*. `reader` may have the
 * manifest at hand; blobs are the registry's.
 */
export async function openNydus(
  reader: ImageReader,
  loaded: LoadedImage,
  signal: AbortSignal | undefined,
  parser: NydusParser,
): Promise<MergedImage> {
  const limit = new Limit(PARALLEL);
  const probes = new Map<Digest, Promise<void>>();
  const probe = (blob: Descriptor) => {
    const known = probes.get(blob.digest) ?? limit.run(() => readFirst(reader, blob, signal));
    probes.set(blob.digest, known);
    known.catch(() => {});
    return known;
  };
  // native blobs are known from the manifest: they are asked for while the bootstrap comes
  for (const layer of loaded.layers.slice(0, -1))
    if (annotation(layer, NYDUS_ANNOTATIONS.ref) === undefined) void probe(layer);
  const parts = await openNydusImage(reader, loaded, signal, (bytes, what) => parser.readBootstrap(bytes, what));
  const stored = parts.bootstrap.blobs.map((blob) => ({ blob, ...blobDescriptors(blob, parts.storedSize) }));
  const infos = await Promise.all(
    stored.map(async ({ blob, data, meta }) => {
      try {
        await probe(data);
      } catch (cause) {
        signal?.throwIfAborted();
        const kind = blob.isRef ? "original layer" : "blob";
        throw new HeadstartError("HS_NYDUS_UNUSABLE", {
          what: `${parts.what}: ${kind} ${data.digest} cannot be read as ${data.size} bytes: ${describeError(cause)}`,
          cause,
        });
      }
      const beside = parts.blobMeta.get(digestHex(meta.digest));
      return await limit.run(() =>
        openChunkInfo(blob, beside, (start, end) => reader.openBlob(meta).readRange(start, end, { signal })),
      );
    }),
  );
  const sizes = stored.map(({ data }) => data.size);
  return await parser.mergeNydus(parts.bootstrap, infos, sizes, parts.what);
}

async function readFirst(reader: ImageReader, blob: Descriptor, signal: AbortSignal | undefined): Promise<void> {
  await reader.openBlob(blob).readRange(0, Math.min(PROBE_BYTES, blob.size), { signal });
}
