/**
 * Refusals: the one error with which a layer is turned down, with the codes of specs/layer.md 10. Where containerd refuses, so do we: never a partial
 * tree and never another one.
 */

import { HeadstartError } from "../../base/errors.ts";

export type RefusalCode =
  | "media-type"
  | "diff-id"
  | "gzip"
  | "zstd"
  | "tar-header"
  | "tar-cut"
  | "pax"
  | "sparse"
  | "type"
  | "name"
  | "parent"
  | "link"
  | "directory-lost"
  | "whiteout-name"
  | "xattr";

/** Where in a layer it happened. */
export interface RefusalPlace {
  /** The layer's digest, or whatever names it to a user. */
  readonly layer: string;
  /** Number of the entry in the archive, from 1. */
  readonly entry?: number | undefined;
  /** Name bytes as the archive has them. */
  readonly name?: Uint8Array | string | undefined;
  /** Byte offset in the uncompressed tar (for codes `gzip` and `zstd`: in the stored blob). */
  readonly offset?: number | undefined;
}

/** HS_LAYER_REFUSED; `details.refusal` is the code, `details.entry`, `.name`, `.offset` say where. */
export function refusal(code: RefusalCode, reason: string, place: RefusalPlace, cause?: unknown): HeadstartError {
  const name = place.name === undefined ? undefined : escapeBytes(place.name);
  const where = [
    place.entry === undefined ? "" : ` entry ${place.entry}`,
    name === undefined ? "" : ` "${name}"`,
    place.offset === undefined ? "" : ` at byte ${place.offset}`,
  ].join("");
  return new HeadstartError("HS_LAYER_REFUSED", {
    what: `layer ${place.layer}:${where}${where === "" ? "" : ":"} ${reason} (${code})`,
    refusal: code,
    layer: place.layer,
    reason,
    ...(place.entry === undefined ? {} : { entry: place.entry }),
    ...(name === undefined ? {} : { name }),
    ...(place.offset === undefined ? {} : { offset: place.offset }),
    ...(cause === undefined ? {} : { cause }),
  });
}

/** Name bytes for messages: printable ASCII as it is, all else as \xNN, cut after 200 bytes. A string has one char a byte (latin1). */
export function escapeBytes(name: Uint8Array | string): string {
  const text = typeof name === "string" ? name : Buffer.from(name.subarray(0, 201)).toString("latin1");
  const escaped = text
    .slice(0, 200)
    .replace(/[^\x20-\x7e]|["\\]/g, (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, "0")}`);
  return text.length > 200 ? `${escaped}...` : escaped;
}
