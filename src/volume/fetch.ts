/** Blobs from their source to files. A file that is there when `fetchBlob` resolves has the digest and size of its descriptor; sources resume broken streams themselves. */

import { open } from "node:fs/promises";
import { isHeadstartError } from "../base/errors.ts";
import type { BlobHandle } from "../oci/store.ts";

export interface FetchOptions {
  readonly signal: AbortSignal;
  /** Bytes that arrived since the last call. */
  readonly onBytes?: ((count: number) => void) | undefined;
}

/** Throws HS_DIGEST_MISMATCH when no source has the right bytes, HS_SIZE_MISMATCH, HS_REGISTRY_*, HS_BLOB_NOT_FOUND, and what the disk says. */
export async function fetchBlob(blob: BlobHandle, path: string, options: FetchOptions): Promise<void> {
  for (let attempt = 0; ; attempt++) {
    try {
      await using file = await open(path, "w", 0o600);
      for await (const chunk of blob.stream(0, { signal: options.signal, attempt, passing: true })) {
        await file.writeFile(chunk);
        options.onBytes?.(chunk.byteLength);
      }
      return;
    } catch (error) {
      // wrong bytes: another mirror may have the right ones
      if (!isHeadstartError(error, "HS_DIGEST_MISMATCH") || attempt + 1 >= blob.sourceCount) throw error;
    }
  }
}
