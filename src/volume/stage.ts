/**
 * A layer on its way to a directory, in two steps. `stageLayer` reads the blob once, checks digest and diffID, and puts the data of every file into a file of a
 * staging folder, named by its address in the tar: only at the end of the archive is known which files stand, and under which names. `placeLayer` makes the
 * directories and nodes and moves the data to their places: by rename, so that nothing is written twice.
 *
 * Synchronous, for a thread of its own (volume.worker.ts). Memory is that of the tree, not of the data.
 */

import { createHash } from "node:crypto";
import { closeSync, constants, ftruncateSync, openSync } from "node:fs";
import { join } from "node:path";
import { type DiffID, type Digest, digestAlgorithm } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { readFully, writeFully } from "../base/files.ts";
import type { FileTree } from "../erofs/file-tree.ts";
import type { LayerRole } from "../formats/format.ts";
import { LayerTreeBuilder } from "../formats/tar/apply.ts";
import { checkLayerType, LayerDecoder } from "../formats/tar/decompress.ts";
import { type TarEntry, TarReader } from "../formats/tar/records.ts";
import type { SparsePiece } from "../formats/tar/sparse.ts";

export interface StageRequest {
  /** The layer's blob, whole and verified against `digest`. */
  readonly blob: string;
  readonly mediaType: string;
  readonly digest: Digest;
  readonly diffID: DiffID;
  readonly role: LayerRole;
  /** The layers below, lowest first, final for this chain: implied directories copy from them. */
  readonly lowers?: readonly FileTree[] | undefined;
  /** An empty folder for file data; without it only the tree is made. */
  readonly staging?: string | undefined;
}

export interface StagedLayer {
  readonly tree: FileTree;
  /** Bytes of the uncompressed tar. */
  readonly tarSize: number;
}

/** What one push may hold: a thousandfold expansion of it must fit into memory. */
const READ_BYTES = 64 * 1024;

/** Throws HS_LAYER_REFUSED, HS_LIMIT, HS_DIFFID_MISMATCH, HS_DISK_FULL. */
export function stageLayer(request: StageRequest): StagedLayer {
  const { digest, diffID, staging } = request;
  checkLayerType(request.mediaType, digest);
  const builder = new LayerTreeBuilder(request.role, digest, request.lowers ? { lowers: request.lowers } : {});
  using writer = staging === undefined ? null : new StagedData(staging);
  const reader = new TarReader(
    {
      entry(entry) {
        writer?.end();
        const wanted = builder.add(entry).dataWanted && writer !== null;
        if (wanted) writer.begin(entry);
        return wanted;
      },
      data: (chunk) => writer!.data(chunk),
    },
    { layer: digest },
  );
  const hash = createHash(digestAlgorithm(diffID));
  using decoder = new LayerDecoder({
    layer: digest,
    data(bytes) {
      hash.update(bytes);
      reader.push(bytes);
    },
  });
  const fd = openSync(request.blob, constants.O_RDONLY);
  try {
    const buffer = new Uint8Array(READ_BYTES);
    for (let position = 0; ; ) {
      const count = readFully(fd, buffer, position);
      if (count === 0) break;
      // decoders are done with what they were given when they return
      decoder.push(buffer.subarray(0, count));
      position += count;
    }
  } finally {
    closeSync(fd);
  }
  decoder.finish();
  reader.finish();
  writer?.end();
  const got = `${digestAlgorithm(diffID)}:${hash.digest("hex")}`;
  if (got !== diffID) {
    throw new HeadstartError("HS_DIFFID_MISMATCH", {
      what: `layer ${digest}: the configuration names the diffID ${diffID}, the layer has ${got}`,
    });
  }
  return { tree: builder.finish(), tarSize: reader.offset };
}

/** Where the data of a regular file were staged: by the address of its first stored byte. */
export function stagedPath(staging: string, address: number): string {
  return join(staging, String(address));
}

class StagedData implements Disposable {
  readonly #directory: string;
  #fd = -1;
  #size = 0;
  #sparse = false;
  #pieces: readonly SparsePiece[] = [];
  #piece = 0;
  /** Bytes of the current piece that are written. */
  #done = 0;

  constructor(directory: string) {
    this.#directory = directory;
  }

  begin(entry: TarEntry): void {
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL;
    this.#pieces = entry.sparse ?? [{ offset: 0, length: entry.size }];
    this.#size = entry.size;
    this.#sparse = entry.sparse !== null;
    this.#piece = 0;
    this.#done = 0;
    // the first piece with bytes is where the tree's first segment is
    this.#fd = openSync(stagedPath(this.#directory, entry.dataOffset), flags, 0o600);
  }

  data(chunk: Uint8Array): void {
    let position = 0;
    while (position < chunk.byteLength && this.#piece < this.#pieces.length) {
      const { offset, length } = this.#pieces[this.#piece]!;
      const count = Math.min(chunk.byteLength - position, length - this.#done);
      if (count > 0) writeFully(this.#fd, chunk.subarray(position, position + count), offset + this.#done);
      position += count;
      this.#done += count;
      if (this.#done === length) {
        this.#piece++;
        this.#done = 0;
      }
    }
  }

  end(): void {
    if (this.#fd < 0) return;
    // only a sparse file may end in a hole
    if (this.#sparse) ftruncateSync(this.#fd, this.#size);
    this[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    if (this.#fd < 0) return;
    closeSync(this.#fd);
    this.#fd = -1;
  }
}
