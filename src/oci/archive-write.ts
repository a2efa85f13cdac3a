/**
 * Writing an OCI archive: blobs go into the tar as they come, index.json last. The tar is written beside and renamed when finished, so an archive
 * that is there is whole. Same pushes in the same order, same bytes: times and owners are zero.
 */

import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { type Digest, digestAlgorithm, digestHex } from "../base/digest.ts";
import { fsyncDirectory } from "../base/files.ts";
import type { Descriptor } from "./descriptor.ts";
import { goIndex } from "./gojson.ts";
import { LAYOUT_FILE } from "./layout.ts";
import { ManifestLedger } from "./ledger.ts";
import { MEDIA_TYPES } from "./media-types.ts";
import { type BlobSource, type ImageWriter, openBlobSource, type StoredBlob, type WriteOptions } from "./store.ts";
import { DigestingStream, verified } from "./verify.ts";

const BLOCK = 512;
/** The largest size that eleven octal digits hold. */
const OCTAL_MAX = 8 ** 11 - 1;

export class ArchiveWriter implements ImageWriter, AsyncDisposable {
  readonly what: string;
  readonly oneAtATime = true;
  readonly tag: string | undefined;
  readonly #path: string;
  readonly #temporary: string;
  readonly #file: FileHandle;
  readonly #stored = new Map<Digest, number>();
  readonly #ledger = new ManifestLedger();
  /** Members go one after the other, however many are pushed at once. */
  #last: Promise<unknown> = Promise.resolve();
  #position = 0;
  #finished = false;

  private constructor(path: string, temporary: string, file: FileHandle, tag: string | undefined, what: string) {
    this.#path = path;
    this.#temporary = temporary;
    this.#file = file;
    this.tag = tag;
    this.what = what;
  }

  static async create(path: string, tag: string | undefined, what: string): Promise<ArchiveWriter> {
    const temporary = join(dirname(path), `.${basename(path)}.${process.pid}.new`);
    const file = await open(temporary, "w", 0o644);
    return new ArchiveWriter(path, temporary, file, tag, what);
  }

  async hasBlob(descriptor: Descriptor): Promise<boolean> {
    return this.#stored.get(descriptor.digest) === descriptor.size;
  }

  pushBlob(descriptor: Descriptor, source: BlobSource, options: WriteOptions = {}): Promise<void> {
    return this.#inTurn(async () => {
      if (await this.hasBlob(descriptor)) return;
      const start = this.#position;
      try {
        const { digest, size } = descriptor;
        await this.#append(
          blobName(digest),
          size,
          verified(openBlobSource(source), descriptor, this.what),
          options.signal,
        );
        this.#stored.set(digest, size);
      } catch (error) {
        await this.#rewind(start);
        throw error;
      }
    });
  }

  /** Other pushes wait until this one has ended: its member is the last of the file until then. */
  pushStream(chunks: AsyncIterable<Uint8Array>, options: WriteOptions = {}): Promise<StoredBlob> {
    return this.#inTurn(async () => {
      const start = this.#position;
      const digesting = new DigestingStream(chunks);
      try {
        // the header names digest and size: it is written over these zeros
        await this.#write(new Uint8Array(BLOCK));
        for await (const chunk of digesting) {
          options.signal?.throwIfAborted();
          await this.#write(chunk);
        }
        const { stored } = digesting;
        if (this.#stored.has(stored.digest)) await this.#rewind(start);
        else {
          const end = this.#position;
          this.#position = start;
          await this.#write(tarHeader(blobName(stored.digest), stored.size));
          this.#position = end;
          await this.#write(padding(stored.size));
          this.#stored.set(stored.digest, stored.size);
        }
        return stored;
      } catch (error) {
        await this.#rewind(start);
        throw error;
      }
    });
  }

  async pushManifest(
    bytes: Uint8Array,
    mediaType: string,
    tag?: string,
    options: WriteOptions = {},
  ): Promise<Descriptor> {
    const descriptor = this.#ledger.add(bytes, mediaType, tag);
    await this.pushBlob(descriptor, bytes, options);
    return descriptor;
  }

  finish(options: WriteOptions = {}): Promise<void> {
    return this.#inTurn(async () => {
      if (this.#finished) return;
      const index = goIndex({ mediaType: MEDIA_TYPES.ociIndex, manifests: this.#ledger.merge([]) });
      for (const [name, bytes] of [
        ["oci-layout", Buffer.from(LAYOUT_FILE)],
        ["index.json", index],
      ] as const) {
        await this.#append(name, bytes.byteLength, openBlobSource(bytes), options.signal);
      }
      await this.#write(new Uint8Array(2 * BLOCK));
      await this.#file.sync();
      await this.#file.close();
      await rename(this.#temporary, this.#path);
      fsyncDirectory(dirname(this.#path));
      this.#finished = true;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#finished) return;
    await this.#last.catch(() => undefined); // its error went to who pushed
    await this.#file.close();
    await rm(this.#temporary, { force: true });
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#last.catch(() => undefined).then(work);
    this.#last = turn;
    return turn;
  }

  /** What was begun is written over by the next member. */
  async #rewind(start: number): Promise<void> {
    await this.#file.truncate(start);
    this.#position = start;
  }

  async #append(
    name: string,
    size: number,
    chunks: AsyncIterable<Uint8Array>,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    await this.#write(tarHeader(name, size));
    for await (const chunk of chunks) {
      signal?.throwIfAborted();
      await this.#write(chunk);
    }
    await this.#write(padding(size));
  }

  async #write(bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.byteLength; ) {
      const { bytesWritten } = await this.#file.write(bytes, done, bytes.byteLength - done, this.#position);
      done += bytesWritten;
      this.#position += bytesWritten;
    }
  }
}

function blobName(digest: Digest): string {
  return `blobs/${digestAlgorithm(digest)}/${digestHex(digest)}`;
}

function padding(size: number): Uint8Array {
  return new Uint8Array((BLOCK - (size % BLOCK)) % BLOCK);
}

/** A ustar header of a regular file (POSIX pax(1), "ustar Interchange Format"); sizes of 8 GiB and more as GNU's base-256. */
export function tarHeader(name: string, size: number): Uint8Array {
  const header = new Uint8Array(BLOCK);
  const put = (offset: number, text: string) => header.set(Buffer.from(text, "latin1"), offset);
  put(0, name);
  put(100, "0000644\0");
  put(108, "0000000\0");
  put(116, "0000000\0");
  if (size <= OCTAL_MAX) put(124, `${size.toString(8).padStart(11, "0")}\0`);
  else {
    let rest = BigInt(size);
    for (let index = 135; index > 124; index--, rest >>= 8n) header[index] = Number(rest & 0xffn);
    header[124] = 0x80;
  }
  put(136, "00000000000\0");
  put(148, "        ");
  put(156, "0");
  put(257, "ustar\x0000");
  let sum = 0;
  for (const byte of header) sum += byte;
  put(148, `${sum.toString(8).padStart(6, "0")}\0 `);
  return header;
}
