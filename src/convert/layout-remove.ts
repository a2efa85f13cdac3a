/** Takes a SOCI index out of an OCI layout directory: its entry, and the blobs that nothing else there names. */

import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Digest } from "../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { writeFileDurably } from "../base/files.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { goIndex } from "../oci/gojson.ts";
import { blobPath, directoryLocator, layoutReader } from "../oci/layout.ts";
import { parseIndex, parseManifest } from "../oci/manifest.ts";
import { isIndexType } from "../oci/media-types.ts";
import type { ImageReader } from "../oci/store.ts";
import type { IndexRemover } from "./index.ts";

/** The order is: name first, blobs after, so that a crash leaves garbage and never a name for what is gone. */
export function layoutRemover(directory: string): IndexRemover {
  const blobs = join(directory, "blobs");
  return {
    async removeReferrer(_subject, digest, signal) {
      const path = join(directory, "index.json");
      const indexBytes = await readFile(path);
      const index = parseIndex(indexBytes, path);
      const kept = index.manifests.filter((entry) => entry.digest !== digest);
      if (kept.length === index.manifests.length) {
        throw new HeadstartError("HS_NOT_FOUND", { what: `${path}: no entry for ${digest}` });
      }
      const reader = layoutReader({ what: directory, locator: directoryLocator(blobs), indexBytes, index });
      const { config, layers } = parseManifest(await reader.readManifest(digest, signal), `SOCI index ${digest}`);
      const named = new Set<Digest>();
      for (const entry of kept) await collect(reader, entry, named, signal);
      writeFileDurably(path, goIndex({ ...index, manifests: kept }), 0o644);
      for (const one of [digest, config.digest, ...layers.map((layer) => layer.digest)]) {
        if (!named.has(one)) await rm(blobPath(blobs, one), { force: true });
      }
    },
  };
}

async function collect(
  reader: ImageReader,
  { digest, mediaType }: Descriptor,
  named: Set<Digest>,
  signal: AbortSignal | undefined,
): Promise<void> {
  if (named.has(digest)) return;
  named.add(digest);
  try {
    const bytes = await reader.readManifest(digest, signal);
    if (isIndexType(mediaType)) {
      for (const entry of parseIndex(bytes, digest).manifests) await collect(reader, entry, named, signal);
    } else {
      const { config, layers } = parseManifest(bytes, digest);
      for (const blob of [config, ...layers]) named.add(blob.digest);
    }
  } catch (error) {
    // a partial copy of an image: what is not there names nothing
    if (!isHeadstartError(error, "HS_NOT_FOUND", "HS_BLOB_NOT_FOUND")) throw error;
  }
}
