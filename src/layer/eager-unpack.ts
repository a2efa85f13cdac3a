/**
 * One pass over a layer's stored bytes: hash, decompress, hash, read the tar, write file data; then the tree, the metadata behind the data, and both digests compared. What
 * layer.worker.ts runs.
 */

import { createHash, type Hash } from "node:crypto";
import { closeSync, constants, ftruncateSync, openSync } from "node:fs";
import { type Digest, digestAlgorithm, digestHex } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { failpoint } from "../base/failpoint.ts";
import { writeFully } from "../base/files.ts";
import { checkErofs } from "../erofs/check.ts";
import { openErofs } from "../erofs/read.ts";
import { layoutSource } from "../erofs/source.ts";
import { layoutEager } from "../erofs/write.ts";
import type { LayerIdentity, LayerRole } from "../formats/format.ts";
import { LayerTreeBuilder } from "../formats/tar/apply.ts";
import { checkLayerType, LayerDecoder } from "../formats/tar/decompress.ts";
import { TarReader } from "../formats/tar/records.ts";
import { EagerWriter } from "./eager-writer.ts";
import { writeTree } from "./tree-file.ts";

export interface UnpackRequest {
  readonly identity: LayerIdentity;
  readonly role: LayerRole;
  /** The layer file to make. */
  readonly path: string;
  /** 16 bytes for the superblock. */
  readonly uuid: Uint8Array;
  /** The tree file to make (tree-file.ts). */
  readonly treePath: string;
}

export interface Unpacked {
  readonly inodeCount: number;
  readonly imageSize: number;
  readonly streamLength: number;
}

/**
 * Throws HS_DIGEST_MISMATCH (whatever else was wrong: the bytes are not the layer's), HS_DIFFID_MISMATCH, HS_LAYER_REFUSED, HS_EROFS_LIMIT, and what the disk says. The files are
 * whole and right when it resolves, and not synced.
 */
export async function unpackLayer(request: UnpackRequest, stored: AsyncIterable<Uint8Array>): Promise<Unpacked> {
  const fd = openSync(request.path, constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC, 0o600);
  const writer = new EagerWriter(fd);
  try {
    return await unpackTo(fd, writer, request, stored);
  } finally {
    await writer.settled();
    closeSync(fd);
  }
}

async function unpackTo(
  fd: number,
  writer: EagerWriter,
  request: UnpackRequest,
  stored: AsyncIterable<Uint8Array>,
): Promise<Unpacked> {
  const { identity, role } = request;
  const blobHash = createHash(digestAlgorithm(identity.digest));
  const diffHash = createHash(digestAlgorithm(identity.diffID));
  const builder = new LayerTreeBuilder(role, identity.digest);
  const reader = new TarReader(
    {
      entry(entry) {
        const wanted = builder.add(entry).dataWanted && entry.storedSize > 0;
        if (wanted) writer.begin({ address: entry.dataOffset, size: entry.size, pieces: entry.sparse });
        return wanted;
      },
      data: (chunk) => writer.data(chunk),
    },
    { layer: identity.digest },
  );
  checkLayerType(identity.mediaType, identity.digest);
  using decoder = new LayerDecoder({
    layer: identity.digest,
    data: (bytes) => {
      diffHash.update(bytes);
      reader.push(bytes);
    },
  });
  let failure: unknown;
  for await (const chunk of stored) {
    blobHash.update(chunk);
    if (failure !== undefined) continue;
    try {
      decoder.push(chunk);
    } catch (error) {
      // wrong bytes from the network look like a bad layer: the digest over all of them tells
      failure = error;
      if (!(error instanceof HeadstartError)) throw error;
    }
    await writer.ready();
  }
  compare(blobHash, identity.digest, "HS_DIGEST_MISMATCH", `blob of layer ${identity.digest}`);
  if (failure !== undefined) throw failure;
  decoder.finish();
  reader.finish();
  compare(diffHash, identity.diffID, "HS_DIFFID_MISMATCH", `tar stream of layer ${identity.digest}`);
  await writer.finish();
  const tree = builder.finish();
  const places = writer.placesOf(tree);
  const layout = layoutEager(tree, places, writer.dataEnd, { uuid: request.uuid });
  checkErofs(openErofs(layoutSource(layout)));
  ftruncateSync(fd, layout.size);
  failpoint("layer:eager-metadata");
  for (const part of layout.parts) writeFully(fd, part.bytes, part.offset);
  await writeTree(request.treePath, tree);
  return { inodeCount: tree.inodeCount, imageSize: layout.size, streamLength: reader.offset };
}

function compare(hash: Hash, want: Digest, code: "HS_DIGEST_MISMATCH" | "HS_DIFFID_MISMATCH", what: string): void {
  const got = hash.digest("hex");
  if (got !== digestHex(want)) throw new HeadstartError(code, { what: `${what}: want ${want}, got ${got}`, got, want });
}
