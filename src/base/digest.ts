/** Digests, diffIDs and chainIDs (image-spec descriptor.md, config.md). A `Digest` is always a checked "sha256:<64 hex>" or "sha512:<128 hex>". */

import { createHash } from "node:crypto";
import { HeadstartError } from "./errors.ts";

declare const brand: unique symbol;
export type Digest = string & { readonly [brand]: "Digest" };
/** Digest of a layer's whole uncompressed tar stream. */
export type DiffID = Digest & { readonly [brand]: "Digest" };
/** Digest that names a stack of layers: chain(L0) = diff(L0), chain(Ln) = sha256(chain(Ln-1) + " " + diff(Ln)). */
export type ChainID = Digest & { readonly [brand]: "Digest" };

const SYNTAX = /^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/;

export function isDigest(text: unknown): text is Digest {
  return typeof text === "string" && SYNTAX.test(text);
}

/** Throws HS_DIGEST_SYNTAX. */
export function parseDigest(text: unknown, what = "digest"): Digest {
  if (!isDigest(text))
    throw new HeadstartError("HS_DIGEST_SYNTAX", { what: `${what}: ${JSON.stringify(text)?.slice(0, 200)}` });
  return text;
}

export function digestAlgorithm(digest: Digest): "sha256" | "sha512" {
  return digest.startsWith("sha512:") ? "sha512" : "sha256";
}

export function digestHex(digest: Digest): string {
  return digest.slice(7);
}

export function sha256(bytes: Uint8Array): Digest {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}` as Digest;
}

/** Throws HS_DIGEST_MISMATCH unless `bytes` hash to `digest`. */
export function verifyDigest(bytes: Uint8Array, digest: Digest, what: string): void {
  const algorithm = digestAlgorithm(digest);
  const got = `${algorithm}:${createHash(algorithm).update(bytes).digest("hex")}`;
  if (got !== digest)
    throw new HeadstartError("HS_DIGEST_MISMATCH", { what: `${what}: want ${digest}, got ${got}`, got, want: digest });
}

export function chainIDs(diffIDs: readonly Digest[]): ChainID[] {
  const chain: ChainID[] = [];
  for (const diffID of diffIDs) {
    const below = chain.at(-1);
    chain.push((below === undefined ? diffID : sha256(Buffer.from(`${below} ${diffID}`))) as ChainID);
  }
  return chain;
}
