/**
 * Where `--chunk-dict` comes from: another Nydus image, or a bootstrap whose blobs are in the destination already. The blobs that a conversion refers to become layers of the new image,
 * so they must be in its repository.
 */

import { type Digest, digestHex } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { readBootstrapLayer } from "../formats/nydus/bootstrap-layer.ts";
import { decompress } from "../formats/nydus/chunk-info.ts";
import { isNydusManifest, readNydusManifest } from "../formats/nydus/manifest.ts";
import { alignBlock, CI_HEADER_SIZE, NYDUS_MEDIA_TYPES } from "../formats/nydus/ondisk.ts";
import type { BlobFacts } from "../formats/nydus/write/model.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { LoadedImage } from "../oci/manifest.ts";
import type { BlobSizes, ImageReader } from "../oci/store.ts";

/** The chunk array of a dictionary's blob as it stands beside a bootstrap: taken over, else out of the blob. `read` gives bytes [start, end) of that. */
export async function chunkArrayFile(
  { id, chunkInfo }: BlobFacts,
  beside: Uint8Array | undefined,
  read: (start: number, end: number) => Promise<Uint8Array>,
): Promise<Uint8Array> {
  // the header alone: the peer's tools leave the arrays of lz4 images in the blobs
  if (beside !== undefined && beside.byteLength > CI_HEADER_SIZE) return beside;
  const { offset, compressedSize, size, compressor } = chunkInfo;
  const stored = await read(offset, offset + compressedSize + CI_HEADER_SIZE);
  const file = new Uint8Array(alignBlock(size) + CI_HEADER_SIZE);
  file.set(decompress(compressor, stored.subarray(0, compressedSize), size, `chunk array of blob ${id}`));
  file.set(stored.subarray(compressedSize), file.byteLength - CI_HEADER_SIZE);
  return file;
}

export interface DictionarySource {
  readonly what: string;
  readonly bootstrap: Uint8Array;
  /** Chunk arrays that the bootstrap's layer has beside it, by the hex digest of the blob. */
  readonly blobMeta: ReadonlyMap<string, Uint8Array>;
  readonly reader: Pick<ImageReader, "openBlob">;
  /** The stored blob. Throws HS_BLOB_NOT_FOUND. */
  describe(id: string): Promise<Descriptor>;
}

/** Throws HS_USAGE for what is no Nydus image. */
export async function dictionaryOfImage(
  reader: ImageReader,
  image: LoadedImage,
  signal?: AbortSignal,
): Promise<DictionarySource> {
  const what = `chunk dictionary ${reader.what}`;
  if (!isNydusManifest(image.manifest)) throw new HeadstartError("HS_USAGE", { what: `${what}: no Nydus image` });
  const manifest = readNydusManifest(image.manifest, what);
  const { digest, size, mediaType } = manifest.bootstrap;
  const stream = reader.openBlob(manifest.bootstrap).stream(0, { signal, callerVerifies: true });
  const layer = await readBootstrapLayer(stream, { digest, size, mediaType, diffID: image.diffIDs.at(-1)! });
  return {
    what,
    bootstrap: layer.bootstrap,
    blobMeta: layer.blobMeta,
    reader,
    async describe(id) {
      const blob = manifest.blobs.get(id);
      if (blob === undefined) throw new HeadstartError("HS_BLOB_NOT_FOUND", { what: `${what}: blob ${id}` });
      return blob;
    },
  };
}

/** `blobs` is where the bootstrap's blobs are. */
export function dictionaryOfBootstrap(
  bootstrap: Uint8Array,
  blobs: Pick<ImageReader, "what" | "openBlob"> & BlobSizes,
  what: string,
): DictionarySource {
  return {
    what,
    bootstrap,
    blobMeta: new Map(),
    reader: blobs,
    async describe(id) {
      const digest = `sha256:${id}` as Digest;
      const size = await blobs.blobSize(digest);
      if (size === undefined)
        throw new HeadstartError("HS_BLOB_NOT_FOUND", {
          what: `${blobs.what}: blob ${digestHex(digest)} of ${what}: a bootstrap's blobs must be there before`,
        });
      return { mediaType: NYDUS_MEDIA_TYPES.blob, digest, size };
    },
  };
}
