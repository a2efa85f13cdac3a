/** A blob whose builder pushes: turns its calls into the stream that a destination reads, at the destination's pace. The upload begins with the first bytes. */

import type { StoredBlob } from "../oci/store.ts";
import type { Copier } from "./copy.ts";
import { Tap } from "./tap.ts";

export class PushedBlob {
  readonly #copier: Copier;
  readonly #mediaType: string;
  readonly #tap = new Tap();
  #upload: Promise<StoredBlob> | null = null;
  #failure: { readonly error: unknown } | null = null;

  constructor(copier: Copier, mediaType: string) {
    this.#copier = copier;
    this.#mediaType = mediaType;
  }

  /** Resolves once there is room for more. Throws what the upload failed with. */
  readonly sink = async (bytes: Uint8Array): Promise<void> => {
    void this.#begin();
    await this.#tap.offer(bytes);
    if (this.#failure !== null) throw this.#failure.error;
  };

  async finish(): Promise<StoredBlob> {
    const upload = this.#begin();
    this.#tap.end();
    return await upload;
  }

  /** The builder failed: so does the upload, which leaves nothing behind. */
  async abort(error: unknown): Promise<void> {
    this.#tap.fail(error);
    await this.#upload?.catch(() => {});
  }

  #begin(): Promise<StoredBlob> {
    if (this.#upload === null) {
      this.#upload = this.#copier.stream(this.#tap, this.#mediaType).finally(() => this.#tap.close());
      this.#upload.catch((error: unknown) => {
        this.#failure = { error };
      });
    }
    return this.#upload;
  }
}
