/**
 * The layer that carries the bootstrap (specs/nydus.md 1.1), the last of the manifest: `image/`, `image/image.boot`, and beside it the plain chunk arrays
 * `image/<hex digest of the stored blob>.blob.meta`, so that a mount needs no range request. Times are 0; same input, same bytes.
 */

import { promisify } from "node:util";
import { gzip } from "node:zlib";
import { HeadstartError } from "../../../base/errors.ts";
import { type FileTree, FileTreeBuilder, FileType } from "../../../erofs/file-tree.ts";
import { writeTreeTar } from "../../tar/write-tree.ts";

export interface BootstrapLayerInput {
  readonly bootstrap: Uint8Array;
  /** `id`: hex digest of the stored blob, of a ref that of its metadata blob. `bytes`: the array, zeros to a multiple of 4096, the header of 4096 bytes. */
  readonly blobMeta: readonly { readonly id: string; readonly bytes: Uint8Array }[];
}

/** What gzip(1) takes by default; a bootstrap is made once and fetched often, yet 9 gains less than a percent. */
const GZIP_LEVEL = 6;

const compress = promisify(gzip);

/** The tar: its digest is the layer's diffID. */
export async function bootstrapLayerTar(input: BootstrapLayerInput): Promise<Buffer> {
  const { tree, files } = bootstrapTree(input);
  const { chunks } = writeTreeTar(tree, (inode) => once(files.get(inode)!));
  const parts: Uint8Array[] = [];
  for await (const part of chunks) parts.push(part);
  return Buffer.concat(parts);
}

/** The layer as it is stored. */
export async function compressBootstrapLayer(tar: Uint8Array): Promise<Buffer> {
  return await compress(tar, { level: GZIP_LEVEL });
}

/** Addresses only give the order of the files. */
function bootstrapTree(input: BootstrapLayerInput): { tree: FileTree; files: ReadonlyMap<number, Uint8Array> } {
  const owner = { uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 };
  const directory = { ...owner, type: FileType.directory, mode: 0o755 };
  const builder = new FileTreeBuilder(directory);
  const image = builder.addInode(directory);
  builder.addName(0, Buffer.from("image"), image);
  const files = new Map<number, Uint8Array>();
  let address = 0;
  const add = (name: string, mode: number, bytes: Uint8Array) => {
    const size = bytes.byteLength;
    if (size === 0) throw new HeadstartError("HS_INTERNAL", { what: `${name} is empty` });
    const segments = [{ fileOffset: 0, length: size, address }];
    const inode = builder.addInode({ ...owner, type: FileType.regular, mode, size, segments });
    builder.addName(image, Buffer.from(name), inode);
    files.set(inode, bytes);
    address += size;
  };
  add("image.boot", 0o444, input.bootstrap);
  for (const { id, bytes } of input.blobMeta) add(`${id}.blob.meta`, 0o644, bytes);
  return { tree: builder.finish(), files };
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
