/** A folder of blobs named by their hex digest, as Nydus tools keep them outside of a registry (`localfs` backend). */

import { stat } from "node:fs/promises";
import { join } from "node:path";
import { type Digest, digestHex } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import type { Descriptor } from "./descriptor.ts";
import { type FilePiece, LocalReader } from "./local.ts";
import type { BlobHandle } from "./store.ts";

export class BlobDirectory {
  readonly #directory: string;
  readonly #reader: LocalReader;

  constructor(directory: string, what: string) {
    this.#directory = directory;
    this.#reader = new LocalReader({
      what,
      locator: { locate: (digest) => this.#locate(digest) },
      resolve: () => Promise.reject(new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `${what}: no manifest` })),
    });
  }

  /** Bytes of the blob, undefined when it is not there. `hex` is 64 hex digits: the caller has checked that. */
  async size(hex: string): Promise<number | undefined> {
    return (await this.#locate(`sha256:${hex}` as Digest))?.size;
  }

  openBlob(descriptor: Descriptor): BlobHandle {
    return this.#reader.openBlob(descriptor);
  }

  async #locate(digest: Digest): Promise<FilePiece | undefined> {
    const path = join(this.#directory, digestHex(digest));
    const known = await stat(path).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT" || error.code === "ENOTDIR") return undefined;
      throw error;
    });
    return known?.isFile() ? { path, offset: 0, size: known.size } : undefined;
  }
}
