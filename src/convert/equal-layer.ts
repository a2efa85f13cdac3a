/** One layer that holds the whole tree of a Nydus image: what is left of its layers when nothing tells them apart any more. Same image, same bytes. */

import { createHash } from "node:crypto";
import type { Digest } from "../base/digest.ts";
import { bytesToText } from "../erofs/tree-lines.ts";
import { writeTreeTar } from "../formats/tar/write-tree.ts";
import { type NydusParts, openNydusContent } from "../image/look-nydus.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import type { Copier } from "./copy.ts";
import { gzipped } from "./gzip.ts";
import type { SourceLayer } from "./nydus-manifest.ts";

/** Throws HS_FORMAT_UNSUPPORTED for an image whose chunks no digest binds, and what reading throws. */
export async function writeEqualLayer(
  copier: Copier,
  parts: NydusParts,
  signal: AbortSignal | undefined,
): Promise<{ readonly layer: SourceLayer; readonly leftOut: readonly string[] }> {
  const { tree, blobs } = parts.bootstrap;
  const content = await openNydusContent(parts, new Set(blobs.keys()), signal);
  using _ahead = content.readAhead();
  const { chunks, leftOut } = writeTreeTar(tree, (inode) => content.read(inode, signal));
  const hash = createHash("sha256");
  async function* hashed() {
    for await (const chunk of chunks) {
      hash.update(chunk);
      yield chunk;
    }
  }
  const stored = await copier.stream(gzipped(hashed()), MEDIA_TYPES.ociLayerGzip);
  return {
    layer: {
      descriptor: { mediaType: MEDIA_TYPES.ociLayerGzip, ...stored },
      diffID: `sha256:${hash.digest("hex")}` as Digest,
    },
    leftOut: leftOut.map((path) => `/${bytesToText(path)}`),
  };
}
