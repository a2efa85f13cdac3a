/**
 * From a format's table to the files of a lazy layer: the adapter reads it, erofs lays the image out, the files are written (store.ts says which). And back: what a restart needs of
 * them. Pure work for a thread; nothing here is mounted, filled or recorded.
 */

import { closeSync, constants, ftruncateSync, openSync } from "node:fs";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Digest, verifyDigest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { writeFully } from "../base/files.ts";
import { checkErofs } from "../erofs/check.ts";
import type { Placement } from "../erofs/placement.ts";
import { openErofs } from "../erofs/read.ts";
import { layoutSource } from "../erofs/source.ts";
import { layoutLazy } from "../erofs/write.ts";
import type { LayerIdentity, LayerRole, LazyLayer } from "../formats/format.ts";
import { readPlacement, writePlacement } from "./placement-file.ts";
import { makeRestMap, type RestMap } from "./rest.ts";
import { writeTree } from "./tree-file.ts";
import { checkUnits, groupPieces, type UnitPieces } from "./unit-index.ts";

/** Makes of a table's bytes what the adapter of `format` makes of them. */
export type OpenLazy = (
  format: string,
  input: {
    identity: LayerIdentity;
    role: LayerRole;
    table: Uint8Array;
    extras: readonly (Uint8Array | null)[];
  },
) => LazyLayer | Promise<LazyLayer>;

export interface PrepareRequest {
  /** The layer's own directory. */
  readonly directory: string;
  readonly identity: LayerIdentity;
  readonly role: LayerRole;
  readonly format: string;
  readonly indexDigest: Digest;
  /** 16 bytes for the superblock. */
  readonly uuid: Uint8Array;
  /** `prepareNew`: the table, verified, and the hints beside it. */
  readonly table?: Uint8Array;
  readonly extras?: readonly (Uint8Array | null)[];
  /** `prepareAgain`: write a new image of holes; nothing has the old one mounted. */
  readonly rebuild?: boolean;
}

export interface Prepared {
  readonly lazy: LazyLayer;
  readonly placement: Placement;
  /** Bytes of the layer file. */
  readonly imageSize: number;
  readonly pieces: UnitPieces;
  readonly rest: RestMap;
}

/** Replaces the layer's directory. Throws HS_INDEX_*, HS_LAYER_REFUSED, HS_EROFS_LIMIT, HS_LIMIT, and what the disk says. */
export async function prepareNew(request: PrepareRequest, openLazy: OpenLazy): Promise<Prepared> {
  const { directory, identity, role, format, table } = request;
  if (table === undefined) throw new HeadstartError("HS_INTERNAL", { what: `layer ${identity.digest}: no table` });
  const lazy = await openLazy(format, { identity, role, table, extras: request.extras ?? [] });
  await rm(directory, { recursive: true, force: true });
  await mkdir(directory, { mode: 0o700 });
  await writeFile(join(directory, "index"), table, { mode: 0o600 });
  return await writeImage(request, lazy);
}

/** Reads the table that is there and the placement that the mounted image has. Throws also HS_DIGEST_MISMATCH, HS_MALFORMED, HS_TRUNCATED, ENOENT. */
export async function prepareAgain(request: PrepareRequest, openLazy: OpenLazy): Promise<Prepared> {
  const { directory, identity, role, format } = request;
  const table = await readFile(join(directory, "index"));
  verifyDigest(table, request.indexDigest, `index of layer ${identity.digest}`);
  const lazy = await openLazy(format, { identity, role, table, extras: [] });
  if (request.rebuild === true) return await writeImage(request, lazy);
  const { placement, imageSize } = await readPlacement(join(directory, "placement"));
  checkUnits(lazy.units, placement, lazy.streamLength);
  return prepared(lazy, placement, imageSize);
}

/** A layer file with metadata and holes, and what goes with it. */
async function writeImage(request: PrepareRequest, lazy: LazyLayer): Promise<Prepared> {
  const { directory } = request;
  const layout = layoutLazy(lazy.tree, { uuid: request.uuid });
  // the kernel checks little: our reader is the only check of our writer (specs/erofs-fuse.md 5.9)
  checkErofs(openErofs(layoutSource(layout)));
  const { size, parts, placement } = layout;
  checkUnits(lazy.units, placement, lazy.streamLength);
  const image = openSync(join(directory, "image"), constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC, 0o600);
  try {
    ftruncateSync(image, size);
    for (const part of parts) writeFully(image, part.bytes, part.offset);
  } finally {
    closeSync(image);
  }
  await writePlacement(join(directory, "placement"), { placement, imageSize: size });
  await writeTree(join(directory, "tree"), lazy.tree);
  await writeFile(join(directory, "rest"), "", { mode: 0o600 });
  return prepared(lazy, placement, size);
}

function prepared(lazy: LazyLayer, placement: Placement, imageSize: number): Prepared {
  const pieces = groupPieces(lazy.units);
  return { lazy, placement, imageSize, pieces, rest: makeRestMap(placement, lazy.streamLength) };
}
