/**
 * Reads what a build has written beside a volume (PATH.json, manifest.ts): an in-toto statement with SLSA provenance and the volume manifest in it. The file may be
 * anybody's: each field is checked, lists are bounded. Fields that a newer or older version has besides are left alone.
 */

import { existsSync, readFileSync, statSync } from "node:fs";
import { type Digest, isDigest } from "../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { MiB } from "../base/limits.ts";
import {
  asObject,
  field,
  type JsonObject,
  optionalArray,
  optionalString,
  parseJson,
  requiredString,
  stringArray,
  stringMap,
  wrong,
} from "../oci/json.ts";
import { MANIFEST_SCHEMA } from "./manifest.ts";

export interface DescribedRegion {
  /** Of the file system. */
  readonly startBlock: number;
  readonly blockCount: number;
}

export interface DescribedLayer {
  readonly digest: Digest;
  readonly diffID: Digest;
  readonly chainID: Digest;
  readonly snapshotId: number;
  readonly backendName: string;
  readonly blobBytes: number;
  readonly bytes: number | null;
  readonly files: number | null;
  /** Of the unpacked files; null in a directory. */
  readonly region: DescribedRegion | null;
  /** Of the compressed blob; null where there is none. */
  readonly blobRegion: DescribedRegion | null;
}

export interface DescribedImage {
  readonly refs: readonly string[];
  readonly digest: Digest;
  readonly mediaType: string;
  readonly manifest: Digest;
  readonly config: Digest;
  readonly pinned: boolean;
  readonly layers: readonly DescribedLayer[];
}

export interface DescribedBlocks {
  readonly size: number;
  /** Hex digests of blocks that are not all zeros, by number. */
  readonly sha256: ReadonlyMap<number, string>;
  /** Base64 of the sha256 over the digests in order. */
  readonly linear: string | null;
  /** [first, count]: runs of blocks that nothing lies in. */
  readonly unused: readonly (readonly [number, number])[];
}

export interface VolumeDocument {
  readonly path: string;
  readonly target: string;
  readonly platform: string;
  readonly snapshotter: string;
  readonly images: readonly DescribedImage[];
  /** The highest number that any snapshot ever had. */
  readonly snapshotSequence: number | null;
  readonly options: {
    readonly blobs: boolean;
    readonly pinned: boolean;
    readonly selinux: boolean | null;
    /** Seconds since 1970. */
    readonly time: number;
  };
  /** Bytes of a disk. */
  readonly size: number | null;
  /** `offset`: its first byte on the disk. */
  readonly fs: { readonly uuid: string; readonly offset: number } | null;
  /** Bytes of the disk that a start reads first; null: none were named. */
  readonly hot: { readonly start: number; readonly length: number; readonly source: string } | null;
  /** What belongs to no layer, by name. */
  readonly regions: ReadonlyMap<string, DescribedRegion>;
  readonly blocks: DescribedBlocks | null;
  readonly statement: StatementParts | null;
}

/** Of the statement around the manifest; null where a file is the manifest alone. */
export interface StatementParts {
  readonly parameters: StatementParameters;
  readonly subjects: readonly { readonly name: string; readonly digest: Readonly<Record<string, string>> }[];
  /** "sha256:…" of everything that went in. */
  readonly materials: ReadonlySet<string>;
}

/** What was asked for; what the manifest says of the result has to agree. */
export interface StatementParameters {
  readonly layout: string;
  readonly platform: string;
  readonly blobs: string;
  readonly pin: boolean;
}

/** A block's digest takes 80 bytes: enough for 1 TiB. */
const DOCUMENT_BYTES_MAX = 256 * MiB;
const LIST_MAX = 100_000;
const STATEMENT = "https://in-toto.io/Statement/v1";
const PREDICATE = "https://slsa.dev/provenance/v1";

/** The document beside a volume; null when there is none. */
export function provenanceBeside(volume: string): string | null {
  const path = `${volume.replace(/\/+$/, "")}.json`;
  return existsSync(path) ? path : null;
}

/** Throws HS_NOT_FOUND, HS_LIMIT, HS_MALFORMED. */
export function readVolumeDocument(path: string): VolumeDocument {
  const known = statSync(path, { throwIfNoEntry: false });
  if (known === undefined) throw new HeadstartError("HS_NOT_FOUND", { what: path });
  if (known.size > DOCUMENT_BYTES_MAX) {
    throw new HeadstartError("HS_LIMIT", {
      what: `${path}: ${known.size} bytes, at most ${DOCUMENT_BYTES_MAX} are read`,
    });
  }
  return parseVolumeDocument(readFileSync(path), path);
}

/** Throws HS_LIMIT, HS_MALFORMED. */
export function parseVolumeDocument(bytes: Uint8Array, path: string): VolumeDocument {
  try {
    const document = parseJson(bytes, path, DOCUMENT_BYTES_MAX);
    if (field(document, "predicate") === undefined) return parseManifest(document, path, null);
    const predicate = asObject(field(document, "predicate"), `${path}.predicate`);
    const manifest = asObject(field(predicate, "headstart_volume"), `${path}.predicate.headstart_volume`);
    return parseManifest(manifest, path, parseStatement(document, predicate, path));
  } catch (error) {
    if (!isHeadstartError(error, "HS_MANIFEST", "HS_DIGEST_SYNTAX")) throw error;
    throw new HeadstartError("HS_MALFORMED", { what: `${path}: no description of a volume`, cause: error });
  }
}

function parseStatement(document: JsonObject, predicate: JsonObject, path: string): StatementParts {
  for (const [key, value] of [
    ["_type", STATEMENT],
    ["predicateType", PREDICATE],
  ] as const) {
    const found = requiredString(document, key, path);
    if (found !== value) throw wrong(`${path}.${key}`, value, found);
  }
  const definition = asObject(field(predicate, "buildDefinition"), `${path}.predicate.buildDefinition`);
  const parameters = asObject(field(definition, "externalParameters"), `${path}.externalParameters`);
  const materials = optionalArray(definition, "resolvedDependencies", path, LIST_MAX).flatMap((value, index) => {
    const what = `${path}.resolvedDependencies[${index}]`;
    return digestSet(asObject(value, what), what);
  });
  return {
    parameters: {
      layout: requiredString(parameters, "layout", path),
      platform: requiredString(parameters, "platform", path),
      blobs: requiredString(parameters, "blobs", path),
      pin: flag(parameters, "pin", path),
    },
    subjects: optionalArray(document, "subject", path, LIST_MAX).map((value, index) => {
      const what = `${path}.subject[${index}]`;
      const subject = asObject(value, what);
      return { name: requiredString(subject, "name", what), digest: stringMap(subject, "digest", what) ?? {} };
    }),
    materials: new Set(materials),
  };
}

function digestSet(object: JsonObject, what: string): string[] {
  return Object.entries(stringMap(object, "digest", what) ?? {}).map(([algorithm, hex]) => `${algorithm}:${hex}`);
}

function parseManifest(manifest: JsonObject, path: string, statement: StatementParts | null): VolumeDocument {
  const schema = requiredString(manifest, "schema", path);
  if (schema !== MANIFEST_SCHEMA) throw wrong(`${path}.schema`, MANIFEST_SCHEMA, schema);
  const options = asObject(field(manifest, "options"), `${path}.options`);
  const fs = field(manifest, "fs");
  const regions = field(manifest, "regions");
  const selinux = field(options, "selinux");
  return {
    path,
    target: requiredString(manifest, "target", path),
    platform: requiredString(manifest, "platform", path),
    snapshotter: requiredString(manifest, "snapshotter", path),
    images: optionalArray(manifest, "images", path, LIST_MAX).map((value, index) =>
      parseImage(asObject(value, `${path}.images[${index}]`), `${path}.images[${index}]`),
    ),
    snapshotSequence:
      field(manifest, "snapshotSequence") === undefined ? null : count(manifest, "snapshotSequence", path),
    options: {
      blobs: flag(options, "blobs", path),
      pinned: flag(options, "pinned", path),
      selinux: selinux === undefined ? null : flag(options, "selinux", path),
      time: count(options, "time", path),
    },
    size: field(manifest, "size") === undefined ? null : count(manifest, "size", path),
    fs: fs === undefined ? null : parseFileSystem(asObject(fs, `${path}.fs`), `${path}.fs`),
    hot: parseHot(field(manifest, "hot"), `${path}.hot`),
    regions: new Map(
      Object.entries(regions === undefined ? {} : asObject(regions, `${path}.regions`)).map(([name, value]) => [
        name,
        parseRegion(asObject(value, `${path}.regions.${name}`), `${path}.regions.${name}`)!,
      ]),
    ),
    blocks:
      field(manifest, "blocks") === undefined ? null : parseBlocks(asObject(field(manifest, "blocks"), path), path),
    statement,
  };
}

function parseFileSystem(fs: JsonObject, what: string): VolumeDocument["fs"] {
  return { uuid: requiredString(fs, "uuid", what), offset: count(fs, "offset", what) };
}

function parseImage(image: JsonObject, what: string): DescribedImage {
  return {
    refs: stringArray(image, "refs", what, LIST_MAX),
    digest: digest(image, "digest", what),
    mediaType: requiredString(image, "mediaType", what),
    manifest: digest(image, "manifest", what),
    config: digest(image, "config", what),
    pinned: flag(image, "pinned", what),
    layers: optionalArray(image, "layers", what, LIST_MAX).map((value, index) =>
      parseLayer(asObject(value, `${what}.layers[${index}]`), `${what}.layers[${index}]`),
    ),
  };
}

function parseLayer(layer: JsonObject, what: string): DescribedLayer {
  const blob = field(layer, "blob");
  const optional = (key: string) => (field(layer, key) === undefined ? null : count(layer, key, what));
  return {
    digest: digest(layer, "digest", what),
    diffID: digest(layer, "diffID", what),
    chainID: digest(layer, "chainID", what),
    snapshotId: count(layer, "snapshotId", what),
    backendName: requiredString(layer, "backendName", what),
    blobBytes: count(layer, "blobBytes", what),
    bytes: optional("bytes"),
    files: optional("files"),
    region: parseRegion(layer, what),
    blobRegion: blob === undefined ? null : parseRegion(asObject(blob, `${what}.blob`), `${what}.blob`),
  };
}

function parseRegion(object: JsonObject, what: string): DescribedRegion | null {
  const pair = parsePair(object, what);
  return pair === null ? null : { startBlock: pair[0], blockCount: pair[1] };
}

function parseHot(value: unknown, what: string): VolumeDocument["hot"] {
  if (value === undefined) return null;
  const hot = asObject(value, what);
  const [start, length] = parsePair(hot, what) ?? [0, 0];
  return { start, length, source: requiredString(hot, "source", what) };
}

function parsePair(object: JsonObject, what: string): readonly [number, number] | null {
  const pair = optionalArray(object, "region", what, 2);
  if (pair.length === 0) return null;
  const [first, length] = pair;
  if (!isCount(first) || !isCount(length)) throw wrong(`${what}.region`, "two counts", pair);
  return [first, length];
}

function parseBlocks(blocks: JsonObject, path: string): DescribedBlocks {
  const what = `${path}.blocks`;
  const sha256 = new Map<number, string>();
  for (const [index, hex] of Object.entries(stringMap(blocks, "sha256", what) ?? {})) {
    if (!/^(0|[1-9]\d{0,9})$/.test(index) || !/^[0-9a-f]{64}$/.test(hex)) throw wrong(what, "digests by number", index);
    sha256.set(Number(index), hex);
  }
  const unused = optionalArray(blocks, "unused", what, LIST_MAX).map((value, index): [number, number] => {
    const [first, length] = Array.isArray(value) ? (value as unknown[]) : [];
    if (!isCount(first) || !isCount(length))
      throw wrong(`${what}.unused[${index}]`, "a first block and a count", value);
    return [first, length];
  });
  return { size: count(blocks, "size", what), sha256, linear: optionalString(blocks, "linear", what) ?? null, unused };
}

function digest(object: JsonObject, key: string, what: string): Digest {
  const text = requiredString(object, key, what);
  if (!isDigest(text)) throw wrong(`${what}.${key}`, "a digest", text);
  return text;
}

function count(object: JsonObject, key: string, what: string): number {
  const value = field(object, key);
  if (!isCount(value)) throw wrong(`${what}.${key}`, "a count", value);
  return value;
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function flag(object: JsonObject, key: string, what: string): boolean {
  const value = field(object, key);
  if (typeof value !== "boolean") throw wrong(`${what}.${key}`, "true or false", value);
  return value;
}
