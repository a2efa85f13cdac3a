/** A Nydus image as its manifest describes it (specs/nydus.md 1.1): data layers, then the bootstrap layer, which carries the mark. Pure. */

import type { Digest } from "../../base/digest.ts";
import { digestHex, isDigest } from "../../base/digest.ts";
import { annotation, type Descriptor } from "../../oci/descriptor.ts";
import type { Manifest } from "../../oci/manifest.ts";
import type { NydusBootstrap } from "./bootstrap.ts";
import { NYDUS_ANNOTATIONS, NYDUS_MEDIA_TYPES, nydusInvalid } from "./ondisk.ts";

export interface NydusManifest {
  readonly bootstrap: Descriptor;
  /** "5" or "6". */
  readonly version: 5 | 6;
  /** Stored blobs by hex digest: native ones, and the metadata blobs of refs. */
  readonly blobs: ReadonlyMap<string, Descriptor>;
  /** Hex digests of the original layers that refs name. They are not in this manifest. */
  readonly refs: ReadonlySet<string>;
}

const isTrue = (layer: Descriptor, name: string) => annotation(layer, name) === "true";

/** "Is a Nydus image" means: its last layer has the mark. */
export function isNydusManifest(manifest: Manifest): boolean {
  return manifest.layers.some((layer) => isTrue(layer, NYDUS_ANNOTATIONS.bootstrap));
}

/** Throws HS_NYDUS_INVALID for a mark on another layer than the last, layers that are no blobs, refs that are no digests. */
export function readNydusManifest(manifest: Manifest, what: string): NydusManifest {
  const bootstrap = manifest.layers.at(-1);
  if (bootstrap === undefined || !isTrue(bootstrap, NYDUS_ANNOTATIONS.bootstrap))
    throw nydusInvalid(what, "the last layer is not the bootstrap");
  const version = annotation(bootstrap, NYDUS_ANNOTATIONS.fsVersion) ?? "6";
  if (version !== "5" && version !== "6") throw nydusInvalid(what, `RAFS version ${JSON.stringify(version)}`);
  const blobs = new Map<string, Descriptor>();
  const refs = new Set<string>();
  for (const layer of manifest.layers.slice(0, -1)) {
    const bad = (message: string) => nydusInvalid(what, `layer ${layer.digest} ${message}`);
    if (isTrue(layer, NYDUS_ANNOTATIONS.bootstrap)) throw bad("is a second bootstrap");
    if (layer.mediaType !== NYDUS_MEDIA_TYPES.blob || !isTrue(layer, NYDUS_ANNOTATIONS.blob))
      throw bad("is no Nydus blob");
    blobs.set(digestHex(layer.digest), layer);
    const ref = annotation(layer, NYDUS_ANNOTATIONS.ref);
    if (ref === undefined) continue;
    if (!isDigest(ref) || !ref.startsWith("sha256:")) throw bad("refers to something that is no digest");
    refs.add(digestHex(ref));
  }
  return { bootstrap, version: version === "5" ? 5 : 6, blobs, refs };
}

/** Every blob of the bootstrap must be one that the manifest binds (specs/nydus.md N26). Throws HS_NYDUS_INVALID. */
export function checkBlobsBound(manifest: NydusManifest, bootstrap: NydusBootstrap, what: string): void {
  if (bootstrap.version !== manifest.version)
    throw nydusInvalid(what, `the manifest says RAFS v${manifest.version}, the bootstrap is v${bootstrap.version}`);
  for (const blob of bootstrap.blobs) {
    const stored = blob.metaBlob?.id ?? blob.id;
    if (!manifest.blobs.has(stored)) throw nydusInvalid(what, `blob ${stored} is no layer of the manifest`);
    if (blob.isRef && !manifest.refs.has(blob.id))
      throw nydusInvalid(what, `layer ${blob.id} is referred to by the bootstrap, not by the manifest`);
  }
}

/** What is read for a blob's data, and for its chunk array. `storedSize` is the manifest's where it has the blob. */
export function blobDescriptors(
  blob: NydusBootstrap["blobs"][number],
  storedSize: (hex: string) => number | undefined,
): { readonly data: Descriptor; readonly meta: Descriptor } {
  const describe = (id: string, size: number): Descriptor => ({
    mediaType: NYDUS_MEDIA_TYPES.blob,
    digest: `sha256:${id}` as Digest,
    size,
  });
  const data = describe(blob.id, blob.isRef ? blob.compressedSize : (storedSize(blob.id) ?? blob.compressedSize));
  if (blob.metaBlob === null) return { data, meta: data };
  return { data, meta: describe(blob.metaBlob.id, storedSize(blob.metaBlob.id) ?? blob.metaBlob.size) };
}
