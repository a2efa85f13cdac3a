/**
 * Image archives: an OCI layout in a tar, or what `docker save` writes. Nothing is unpacked: members are read where they lie. A docker archive
 * without a layout gets a manifest made up from its configuration and layers (their digests are the diffIDs, since they lie there as plain tars).
 */

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { open } from "node:fs/promises";
import { type Digest, digestAlgorithm, digestHex, sha256 } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { LIMITS } from "../base/limits.ts";
import type { Descriptor } from "./descriptor.ts";
import { goManifest } from "./gojson.ts";
import { asObject, requiredString, stringArray, wrong } from "./json.ts";
import { layoutReader } from "./layout.ts";
import { type BlobLocator, describeManifest, type FilePiece, LocalReader, readExactly } from "./local.ts";
import { parseConfig, parseIndex } from "./manifest.ts";
import { MEDIA_TYPES } from "./media-types.ts";
import { TarIndex } from "./tar-index.ts";
import { checkLimit } from "./verify.ts";

export async function openArchive(
  path: string,
  which: { readonly tag?: string; readonly digest?: Digest },
  what: string,
  signal?: AbortSignal,
): Promise<LocalReader> {
  const tar = await TarIndex.open(path, what, signal);
  const indexPiece = tar.find("index.json");
  if (indexPiece !== undefined) {
    const indexBytes = await readPiece(indexPiece, LIMITS.manifestBytes, `${what}: index.json`);
    const index = parseIndex(indexBytes, `${what}: index.json`);
    const locator: BlobLocator = {
      locate: async (digest) => tar.find(`blobs/${digestAlgorithm(digest)}/${digestHex(digest)}`),
    };
    return layoutReader({ what, locator, indexBytes, index, ...which });
  }
  const listPiece = tar.find("manifest.json");
  if (listPiece === undefined) {
    throw new HeadstartError("HS_NOT_FOUND", {
      what: `${what}: neither index.json nor manifest.json: no image archive`,
    });
  }
  const list = await readPiece(listPiece, LIMITS.manifestBytes, `${what}: manifest.json`);
  return dockerReader(tar, parseDockerList(list, what), which, what);
}

interface DockerImage {
  readonly config: string;
  readonly names: readonly string[];
  readonly layers: readonly string[];
}

/** manifest.json of `docker save`: [{Config, RepoTags, Layers}]. Throws HS_MANIFEST. */
export function parseDockerList(bytes: Uint8Array, what: string): DockerImage[] {
  let list: unknown;
  try {
    list = JSON.parse(Buffer.from(bytes).toString("utf8"));
  } catch (cause) {
    throw new HeadstartError("HS_MANIFEST", { what: `${what}: manifest.json is no JSON`, cause });
  }
  if (!Array.isArray(list) || list.length === 0 || list.length > 10_000) {
    throw wrong(`${what}: manifest.json`, "a list of images", list);
  }
  return list.map((item, position) => {
    const where = `${what}: manifest.json[${position}]`;
    const object = asObject(item, where);
    return {
      config: requiredString(object, "Config", where),
      names: stringArray(object, "RepoTags", where, 10_000),
      layers: stringArray(object, "Layers", where, LIMITS.imageLayers),
    };
  });
}

/** Blobs that the made-up manifests name, by digest. */
async function dockerReader(
  tar: TarIndex,
  images: readonly DockerImage[],
  which: { readonly tag?: string; readonly digest?: Digest },
  what: string,
): Promise<LocalReader> {
  const { tag } = which;
  const wanted = images.filter(
    (image) => tag === undefined || image.names.some((name) => name === tag || name.endsWith(`:${tag}`)),
  );
  if (wanted.length !== 1) {
    const names = images.flatMap((image) => image.names).join(", ");
    const problem = wanted.length === 0 ? `no image ${JSON.stringify(tag)}` : "several images, say which";
    throw new HeadstartError("HS_NOT_FOUND", {
      what: `${what}: ${problem}; there are: ${names || "none with a name"}`,
    });
  }
  const pieces = new Map<Digest, FilePiece>();
  const { descriptor, bytes } = await describeDockerImage(tar, wanted[0]!, pieces, what);
  const reader = new LocalReader({
    what,
    locator: { locate: async (digest) => pieces.get(digest) },
    resolve: async () => {
      if (which.digest !== undefined && which.digest !== descriptor.digest)
        return describeManifest(reader, which.digest);
      return descriptor;
    },
    roots: async () => [descriptor],
    inline: (digest) => (digest === descriptor.digest ? bytes : undefined),
  });
  return reader;
}

async function describeDockerImage(
  tar: TarIndex,
  image: DockerImage,
  pieces: Map<Digest, FilePiece>,
  what: string,
): Promise<{ descriptor: Descriptor; bytes: Uint8Array }> {
  const member = (name: string) => {
    const piece = tar.find(name);
    if (piece === undefined) throw new HeadstartError("HS_BLOB_NOT_FOUND", { what: `${what}: ${name}` });
    return piece;
  };
  const configPiece = member(image.config);
  const configBytes = await readPiece(configPiece, LIMITS.configBytes, `${what}: ${image.config}`);
  const config = parseConfig(configBytes, `${what}: ${image.config}`);
  if (config.diffIDs.length !== image.layers.length) {
    throw wrong(`${what}: manifest.json`, `${config.diffIDs.length} layers, as many as diff_ids,`, image.layers.length);
  }
  const configDigest = sha256(configBytes);
  pieces.set(configDigest, configPiece);
  const layers: Descriptor[] = [];
  for (const [position, name] of image.layers.entries()) {
    const piece = member(name);
    const compressed = await isGzip(piece, what);
    const digest = compressed ? await hashPiece(piece) : config.diffIDs[position]!;
    pieces.set(digest, piece);
    layers.push({ mediaType: compressed ? MEDIA_TYPES.ociLayerGzip : MEDIA_TYPES.ociLayer, digest, size: piece.size });
  }
  const bytes = goManifest({
    mediaType: MEDIA_TYPES.ociManifest,
    config: { mediaType: MEDIA_TYPES.ociConfig, digest: configDigest, size: configBytes.byteLength },
    layers,
  });
  return { descriptor: { mediaType: MEDIA_TYPES.ociManifest, digest: sha256(bytes), size: bytes.byteLength }, bytes };
}

async function readPiece(piece: FilePiece, limit: number, what: string): Promise<Uint8Array> {
  checkLimit(piece.size, limit, what);
  await using file = await open(piece.path, "r");
  const bytes = new Uint8Array(piece.size);
  await readExactly(file, bytes, piece.offset, what);
  return bytes;
}

async function isGzip(piece: FilePiece, what: string): Promise<boolean> {
  if (piece.size < 2) return false;
  await using file = await open(piece.path, "r");
  const start = new Uint8Array(2);
  await readExactly(file, start, piece.offset, what);
  return start[0] === 0x1f && start[1] === 0x8b;
}

async function hashPiece(piece: FilePiece): Promise<Digest> {
  const hash = createHash("sha256");
  if (piece.size > 0) {
    const stream = createReadStream(piece.path, { start: piece.offset, end: piece.offset + piece.size - 1 });
    for await (const chunk of stream) hash.update(chunk as Uint8Array);
  }
  return `sha256:${hash.digest("hex")}` as Digest;
}
