/**
 * Looking into a Nydus image, in a registry or layout or as a bootstrap file beside a folder of blobs. The bootstrap alone is enough for the tree; a file costs its
 * chunks, each verified by the digest that the bootstrap has for it.
 */

import { readFile, stat } from "node:fs/promises";
import { type Digest, digestHex } from "../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { ADDRESS_SPACE } from "../erofs/file-tree.ts";
import { mergeTrees } from "../erofs/overlay.ts";
import { type NydusBootstrap, readBootstrap } from "../formats/nydus/bootstrap.ts";
import { readBootstrapLayer } from "../formats/nydus/bootstrap-layer.ts";
import { type BootstrapFacts, bootstrapFacts } from "../formats/nydus/inspect.ts";
import { blobDescriptors, checkBlobsBound, isNydusManifest, readNydusManifest } from "../formats/nydus/manifest.ts";
import { NYDUS_LIMITS } from "../formats/nydus/ondisk.ts";
import { openChunkInfo, openNydus } from "../formats/nydus/open.ts";
import { BlobDirectory } from "../oci/blob-directory.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { type LoadedImage, loadManifest, parseIndex, parseManifest } from "../oci/manifest.ts";
import { isIndexType, isManifestType } from "../oci/media-types.ts";
import { formatPlatform } from "../oci/platform.ts";
import type { ImageReader } from "../oci/store.ts";
import { UnitContent } from "./content.ts";
import type { LookedImage, LookOptions } from "./look.ts";
import { isNydusEntry } from "./siblings.ts";

/** What is known of a Nydus image before any of its data is read. */
export interface NydusParts {
  readonly what: string;
  readonly bootstrap: NydusBootstrap;
  /** `.blob.meta` files by the hex digest of their stored blob. */
  readonly blobMeta: ReadonlyMap<string, Uint8Array>;
  readonly reader: Pick<ImageReader, "openBlob">;
  /** Bytes of a stored blob where they are known from elsewhere than the bootstrap. */
  storedSize(hex: string): number | undefined;
}

/** Fetches and verifies the bootstrap layer. Throws HS_NYDUS_INVALID when manifest and bootstrap do not fit. */
export async function openNydusImage(
  reader: ImageReader,
  loaded: LoadedImage,
  signal?: AbortSignal,
  /** Where the bootstrap is read; here, unless somebody has a thread for it. */
  read: (bytes: Uint8Array, what: string) => NydusBootstrap | Promise<NydusBootstrap> = readBootstrap,
): Promise<NydusParts> {
  const what = `Nydus image ${loaded.manifestDescriptor.digest}`;
  const manifest = readNydusManifest(loaded.manifest, what);
  const { digest, size, mediaType } = manifest.bootstrap;
  const stream = reader.openBlob(manifest.bootstrap).stream(0, { signal, callerVerifies: true });
  const diffID = loaded.diffIDs.at(-1)!;
  const layer = await readBootstrapLayer(stream, { digest, size, mediaType, diffID });
  const bootstrap = await read(layer.bootstrap, what);
  checkBlobsBound(manifest, bootstrap, what);
  return {
    what,
    bootstrap,
    blobMeta: layer.blobMeta,
    reader,
    storedSize: (hex) => manifest.blobs.get(hex)?.size,
  };
}

/** `rafs:BOOTSTRAP:BLOBDIR`. Throws HS_NOT_FOUND, HS_LIMIT and what reading a bootstrap throws. */
export async function openRafs(source: { readonly bootstrap: string; readonly blobs: string }): Promise<NydusParts> {
  const what = `rafs:${source.bootstrap}:${source.blobs}`;
  const known = await stat(source.bootstrap).catch((cause) => {
    throw new HeadstartError("HS_NOT_FOUND", { what: `${what}: no bootstrap`, cause });
  });
  if (known.size > NYDUS_LIMITS.bootstrapBytes)
    throw new HeadstartError("HS_LIMIT", { what: `${what}: a bootstrap of ${known.size} bytes` });
  const bootstrap = readBootstrap(await readFile(source.bootstrap), what);
  const directory = new BlobDirectory(source.blobs, what);
  const sizes = new Map<string, number>();
  for (const blob of bootstrap.blobs) {
    for (const id of [blob.id, blob.metaBlob?.id]) {
      const size = id === undefined ? undefined : await directory.size(id);
      if (id !== undefined && size !== undefined) sizes.set(id, size);
    }
  }
  return { what, bootstrap, blobMeta: new Map(), reader: directory, storedSize: (hex) => sizes.get(hex) };
}

export async function lookIntoNydus(
  reader: ImageReader,
  loaded: LoadedImage,
  options: LookOptions,
): Promise<LookedImage> {
  options.onLayer?.(0, 1, "index");
  return await look(await openNydusImage(reader, loaded, options.signal), options);
}

export async function lookIntoRafs(
  source: { readonly bootstrap: string; readonly blobs: string },
  options: LookOptions = {},
): Promise<LookedImage> {
  return await look(await openRafs(source), options);
}

export interface RafsFacts extends BootstrapFacts {
  /** Hex ids of blobs that are not in the folder. */
  readonly missingBlobs: readonly string[];
}

/** Throws what `openRafs` throws. */
export async function inspectRafs(source: { readonly bootstrap: string; readonly blobs: string }): Promise<RafsFacts> {
  const { bootstrap, storedSize } = await openRafs(source);
  const ids = bootstrap.blobs.flatMap((blob) => (blob.metaBlob === null ? [blob.id] : [blob.id, blob.metaBlob.id]));
  return { ...bootstrapFacts(bootstrap), missingBlobs: ids.filter((id) => storedSize(id) === undefined) };
}

/** Null when `descriptor` is no manifest of a Nydus image. Fetches the bootstrap layer. */
export async function inspectNydusImage(reader: ImageReader, descriptor: Descriptor): Promise<BootstrapFacts | null> {
  if (!isManifestType(descriptor.mediaType)) return null;
  const manifest = parseManifest(await reader.readManifest(descriptor), `manifest ${descriptor.digest}`);
  if (!isNydusManifest(manifest)) return null;
  return bootstrapFacts((await openNydusImage(reader, await loadManifest(reader, descriptor))).bootstrap);
}

export interface NydusFormFacts {
  readonly manifest: Digest;
  readonly platform: string | null;
  /** Null where it cannot be read, with the reason. */
  readonly bootstrap: BootstrapFacts | null;
  readonly problem: string | null;
}

/** The Nydus images that stand beside OCI images in an index; empty for anything else. Fetches their bootstrap layers. */
export async function inspectNydusForms(reader: ImageReader, descriptor: Descriptor): Promise<NydusFormFacts[]> {
  if (!isIndexType(descriptor.mediaType)) return [];
  const { manifests } = parseIndex(await reader.readManifest(descriptor), `index ${descriptor.digest}`);
  const forms: NydusFormFacts[] = [];
  for (const entry of manifests.filter(isNydusEntry)) {
    const platform = entry.platform === undefined ? null : formatPlatform(entry.platform);
    const common = { manifest: entry.digest, platform };
    try {
      forms.push({ ...common, bootstrap: await inspectNydusImage(reader, entry), problem: null });
    } catch (error) {
      if (!isHeadstartError(error)) throw error;
      forms.push({ ...common, bootstrap: null, problem: error.message });
    }
  }
  return forms;
}

async function look(parts: NydusParts, options: LookOptions): Promise<LookedImage> {
  const { bootstrap } = parts;
  const { tree } = bootstrap;
  const blobsOf = (inode: number) => {
    const found = new Set<number>();
    for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++)
      found.add(Math.floor(tree.segmentAddress[segment]! / ADDRESS_SPACE));
    return found;
  };
  // a listing needs no blob, a file its own: chunk arrays are fetched when the first content of their blobs is read
  const opened = new Map<string, Promise<UnitContent>>();
  const open = (wanted: ReadonlySet<number>) => {
    const key = [...wanted].toSorted((a, b) => a - b).join();
    let content = opened.get(key);
    if (content === undefined) {
      content = openNydusContent(parts, wanted, options.signal);
      opened.set(key, content);
    }
    return content;
  };
  const all = new Set(bootstrap.blobs.keys());
  const hashes = options.hashContents ? await (await open(all)).hashAll(options.signal) : null;
  return {
    kind: "nydus",
    layers: [
      {
        tree,
        contentSha256: hashes === null ? null : (inode) => hashes.get(inode)!,
        async *content(inode, signal) {
          yield* (await open(blobsOf(inode))).read(inode, signal);
        },
      },
    ],
    merged: mergeTrees([tree]),
    origin: (inode) => ({ blobs: [...blobsOf(inode)].map((index) => `sha256:${bootstrap.blobs[index]!.id}`) }),
    reason: null,
  };
}

/** Chunk arrays of the wanted blobs, then units over them. Throws HS_NYDUS_INVALID, HS_FORMAT_UNSUPPORTED where chunks have no digests, HS_BLOB_NOT_FOUND. */
export async function openNydusContent(
  parts: NydusParts,
  wanted: ReadonlySet<number>,
  signal: AbortSignal | undefined,
): Promise<UnitContent> {
  const { bootstrap, reader } = parts;
  const stored = bootstrap.blobs.map((blob) => {
    const { data, meta } = blobDescriptors(blob, parts.storedSize);
    return { blob, data: reader.openBlob(data), meta: reader.openBlob(meta) };
  });
  const infos = await Promise.all(
    stored.map(({ blob, meta }) =>
      wanted.has(blob.index)
        ? openChunkInfo(blob, parts.blobMeta.get(digestHex(meta.descriptor.digest)), (start, end) =>
            meta.readRange(start, end, { signal }),
          )
        : undefined,
    ),
  );
  const sizes = stored.map(({ data }) => data.descriptor.size);
  return new UnitContent(
    openNydus(bootstrap, infos, sizes, parts.what),
    stored.map(({ data }) => data),
  );
}
