/** What a layer's row keeps about where it comes from: enough to make it again after a restart, and nothing secret. */

import { type Digest, isDigest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import type { LayerSource } from "../layer/rows.ts";
import { type Descriptor, readDescriptor } from "../oci/descriptor.ts";

/** Images that a row which lists others is for: of one index, of one manifest, or in one repository. */
export type Owner =
  | { readonly by: "index" | "manifest"; readonly digest: Digest }
  | { readonly by: "repository"; readonly reference: string };

export interface ImageLayerSource {
  /** The image that wanted the layer first. */
  readonly reference: string;
  /** Its table and what is beside it (of a Nydus image: its manifest); null for an eager layer. */
  readonly table: Descriptor | null;
  readonly extras: readonly Descriptor[];
  /** Why the layer is not lazy, for the status. */
  readonly reason: string | null;
  /** Position of the layer in that image, lowest 0. */
  readonly position: number;
  /** Rows that list others (substitutes.ts): which, lowest first. */
  readonly layers: readonly number[];
  /** Of an alternative: the rows of the layers whose place it takes. */
  readonly covers: readonly number[];
  /** Of rows that list others: what names them as this image's. Null otherwise. */
  readonly owner: Owner | null;
}

const NOTHING = {
  table: null,
  extras: [],
  reason: null,
  position: 0,
  layers: [],
  covers: [],
  owner: null,
} satisfies Omit<ImageLayerSource, "reference">;

export function packSource(source: Pick<ImageLayerSource, "reference"> & Partial<ImageLayerSource>): LayerSource {
  return { ...NOTHING, ...source };
}

/** Throws HS_MALFORMED when the row was not written by us. */
export function unpackSource(source: LayerSource): ImageLayerSource {
  const { reference, table, extras, reason, position } = source;
  if (typeof reference !== "string")
    throw new HeadstartError("HS_MALFORMED", { what: "layer row: its source has no reference" });
  return {
    reference,
    table: table == null ? null : readDescriptor(table, "layer row: table"),
    extras: Array.isArray(extras) ? extras.map((extra) => readDescriptor(extra, "layer row: extra")) : [],
    reason: typeof reason === "string" ? reason : null,
    position: typeof position === "number" ? position : 0,
    layers: ids(source.layers),
    covers: ids(source.covers),
    owner: readOwner(source.owner),
  };
}

function readOwner(value: unknown): Owner | null {
  if (typeof value !== "object" || value === null) return null;
  const { by, digest, reference } = value as Readonly<Record<string, unknown>>;
  if ((by === "index" || by === "manifest") && isDigest(digest)) return { by, digest };
  return by === "repository" && typeof reference === "string" ? { by, reference } : null;
}

function ids(value: unknown): number[] {
  return Array.isArray(value) ? value.filter((id): id is number => Number.isSafeInteger(id)) : [];
}

/** How much of the first bytes of a blob the access probe asks for: enough to be a range, too little to cost anything. */
export const PROBE_BYTES = 512;
