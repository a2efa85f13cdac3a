/** From what was fetched to a lazy image (formats/format.ts): one merged tree, units over all blobs, and what decoders need. Pure: fetches nothing. */

import { ADDRESS_SPACE } from "../../erofs/file-tree.ts";
import type { LazyLayer } from "../format.ts";
import type { NydusBootstrap } from "./bootstrap.ts";
import { type ChunkInfo, chunkInfoFromBlob, chunkInfoFromFile } from "./chunk-info.ts";
import { CI_HEADER_SIZE } from "./ondisk.ts";
import { nydusUnits, prefetchUnits } from "./units.ts";

/** Where the chunk array of a blob is read when no file beside the bootstrap has it: bytes [start, end) of its `meta` blob. */
export function chunkInfoRange(
  blob: NydusBootstrap["blobs"][number],
): { readonly start: number; readonly end: number } | null {
  const place = blob.chunkInfo;
  if (place === null) return null;
  return { start: place.offset, end: place.offset + place.compressedSize + CI_HEADER_SIZE };
}

/**
 * The chunk array of a blob: from its `.blob.meta` file, which the manifest binds, else from the blob itself. `readStored` is called only where that is needed.
 * Null for RAFS v5.
 */
export async function openChunkInfo(
  blob: NydusBootstrap["blobs"][number],
  file: Uint8Array | undefined,
  readStored: (start: number, end: number) => Promise<Uint8Array>,
): Promise<ChunkInfo | null> {
  const range = chunkInfoRange(blob);
  if (range === null) return null;
  // what an encrypted image has beside its bootstrap is not known: the blob has it encrypted
  const known = file === undefined || blob.cipher !== null ? null : chunkInfoFromFile(blob, file);
  return known ?? chunkInfoFromBlob(blob, await readStored(range.start, range.end));
}

/** `infos` as in `nydusUnits`; `sizes` are the lengths of the stored blobs (of a ref: of the original layers). Throws HS_NYDUS_INVALID, HS_FORMAT_UNSUPPORTED. */
export function openNydus(
  bootstrap: NydusBootstrap,
  infos: readonly (ChunkInfo | null | undefined)[],
  sizes: readonly number[],
  what: string,
): LazyLayer {
  const { units, decode } = nydusUnits(bootstrap, infos, sizes, what);
  return {
    tree: bootstrap.tree,
    units,
    decode,
    streamLength: Math.min(bootstrap.blobs[0]?.uncompressedSize ?? 0, ADDRESS_SPACE),
    prefetchUnits: prefetchUnits(bootstrap, units),
  };
}
