/**
 * The volume of an earlier build, as its manifest tells it: what lay where. A build that follows it puts what is still there on the same blocks, inodes and snapshot
 * numbers again, so that a rebuild changes what changed (specs/warm-volume.md 8.1).
 *
 * A layer is the same one when its chain is, or else its own content (diffID): with a changed layer below, all above get other chainIDs, and none of them other files.
 */

import { existsSync, readFileSync, statSync } from "node:fs";
import type { ChainID, DiffID, Digest } from "../base/digest.ts";
import { describeError, HeadstartError } from "../base/errors.ts";
import { GiB, MiB } from "../base/limits.ts";
import { REGION_ALIGN } from "./ext4/geometry.ts";
import type { RegionPlace } from "./ext4/place.ts";
import { MANIFEST_SCHEMA, type ManifestPlace } from "./manifest.ts";
import type { NumberedLayer, Numbering } from "./plan.ts";

export interface FormerLayer {
  readonly chainID: ChainID;
  readonly diffID: DiffID;
  readonly id: number;
  readonly lowest: boolean;
  readonly place: RegionPlace;
}

export interface FormerVolume {
  /** Where the manifest was read, for messages. */
  readonly path: string;
  readonly target: string;
  readonly platform: string;
  readonly snapshotter: string;
  /** Bytes of the disk. */
  readonly size: number;
  readonly time: number;
  readonly sequence: number;
  /** Digest of what was asked for. */
  readonly plan: string;
  /** Over the digests of its blocks, hexadecimal. */
  readonly digest: string;
  /** The same of the volume that it followed itself. */
  readonly previous: string | null;
  /** Hexadecimal, 16 bytes. */
  readonly uuid: string;
  readonly hashSeed: string;
  readonly diskGuid: string | null;
  readonly inodesPerGroup: number;
  readonly layers: readonly FormerLayer[];
  readonly blobs: ReadonlyMap<Digest, RegionPlace>;
  /** Of what belongs to no layer, by name. */
  readonly regions: Readonly<Partial<Record<string, RegionPlace>>>;
}

/** Digests of 40 000 blocks are 3 MB; 8 TiB would be 1.2 GB, which nobody builds. */
const MANIFEST_BYTES_MAX = 256 * MiB;
/** A volume a minute for a thousand years, each with four new layers. */
const SEQUENCE_MAX = 2 ** 31;

/** `path`: a disk that was built, or the manifest beside it. Throws HS_NOT_FOUND, HS_LIMIT, HS_MALFORMED. */
export function readFormer(path: string): FormerVolume {
  const beside = `${path}.json`;
  const file = path.endsWith(".json") || !existsSync(beside) ? path : beside;
  const known = statSync(file, { throwIfNoEntry: false });
  if (known === undefined) throw new HeadstartError("HS_NOT_FOUND", { what: `--previous ${path}` });
  if (!path.endsWith(".json") && file === path) {
    throw new HeadstartError("HS_NOT_FOUND", { what: `--previous ${path}: there is no ${beside}` });
  }
  if (known.size > MANIFEST_BYTES_MAX) {
    throw new HeadstartError("HS_LIMIT", {
      what: `${file}: ${known.size} bytes, at most ${MANIFEST_BYTES_MAX} are read`,
    });
  }
  try {
    const whole = new Fields(JSON.parse(readFileSync(file, "utf8")), "");
    // the statement that we write has the manifest inside
    const manifest = whole.has("predicate") ? whole.sub("predicate").sub("headstart_volume") : whole;
    return parse(manifest, file);
  } catch (error) {
    throw new HeadstartError("HS_MALFORMED", {
      what: `${file}: no manifest of a disk: ${describeError(error)}`,
      cause: error,
    });
  }
}

function parse(manifest: Fields, path: string): FormerVolume {
  if (manifest.text("schema") !== MANIFEST_SCHEMA) throw new Error(`its schema is not ${MANIFEST_SCHEMA}`);
  const fs = manifest.sub("fs");
  const layers = new Map<number, FormerLayer>();
  const blobs = new Map<Digest, RegionPlace>();
  for (const image of manifest.list("images")) {
    for (const [depth, layer] of image.list("layers").entries()) {
      const id = layer.count("snapshotId");
      layers.set(id, {
        id,
        chainID: layer.text("chainID") as ChainID,
        diffID: layer.text("diffID") as DiffID,
        lowest: depth === 0,
        place: layer.place(),
      });
      if (layer.has("blob")) blobs.set(layer.text("digest") as Digest, layer.sub("blob").place());
    }
  }
  const named = manifest.sub("regions");
  const regions = Object.fromEntries(named.keys().map((name) => [name, named.sub(name).place()]));
  const former: FormerVolume = {
    path,
    target: manifest.text("target"),
    platform: manifest.text("platform"),
    snapshotter: manifest.text("snapshotter"),
    size: manifest.count("size"),
    time: manifest.sub("options").count("time"),
    sequence: manifest.count("snapshotSequence"),
    plan: manifest.text("plan"),
    previous: manifest.has("previous") ? manifest.text("previous") : null,
    digest: Buffer.from(manifest.sub("blocks").text("linear"), "base64").toString("hex"),
    uuid: fs.hex16("uuid"),
    hashSeed: fs.hex16("hashSeed"),
    diskGuid: manifest.has("diskGuid") ? manifest.text("diskGuid") : null,
    inodesPerGroup: fs.count("inodesPerGroup"),
    layers: [...layers.values()],
    blobs,
    regions,
  };
  if (former.size === 0 || former.size % GiB !== 0) throw new Error(`a disk of ${former.size} bytes`);
  if (former.sequence > SEQUENCE_MAX) throw new Error(`a sequence of ${former.sequence}`);
  checkApart([...former.layers.map(({ place }) => place), ...blobs.values(), ...Object.values(regions)]);
  if (former.layers.some(({ id }) => id > former.sequence))
    throw new Error("a snapshot's number is beyond the sequence");
  return former;
}

function checkApart(places: readonly RegionPlace[]): void {
  const apart = (start: (place: RegionPlace) => number, count: (place: RegionPlace) => number) => {
    let end = 0;
    for (const place of [...places].filter((each) => count(each) > 0).sort((a, b) => start(a) - start(b))) {
      if (start(place) < end) throw new Error("two of its regions overlap");
      end = start(place) + count(place);
    }
  };
  const unaligned = places.find(({ startBlock, blockCount }) => blockCount > 0 && startBlock % REGION_ALIGN !== 0);
  if (unaligned !== undefined) throw new Error(`a region at block ${unaligned.startBlock}`);
  apart(
    (place) => place.startBlock,
    (place) => place.blockCount,
  );
  apart(
    (place) => place.firstInode,
    (place) => place.inodeCount,
  );
}

/** The same chain keeps its number, then the same content in another chain; what is new gets numbers that were never used. */
export function numberAfter(former: FormerVolume, layers: readonly NumberedLayer[]): Numbering {
  const free = new Set(former.layers);
  const ids = new Array<number>(layers.length).fill(0);
  const claim = (index: number, found: FormerLayer | undefined) => {
    if (found === undefined) return;
    ids[index] = found.id;
    free.delete(found);
  };
  const same = (layer: NumberedLayer) => [...free].filter(({ diffID }) => diffID === layer.diffID);
  for (const [index, layer] of layers.entries()) {
    claim(
      index,
      same(layer).find(({ chainID }) => chainID === layer.chainID),
    );
  }
  for (const [index, layer] of layers.entries()) {
    if (ids[index] !== 0) continue;
    const found = same(layer).sort((a, b) => a.id - b.id);
    claim(index, found.find(({ lowest }) => lowest === (layer.role === "lowest")) ?? found[0]);
  }
  let { sequence } = former;
  return { ids: ids.map((id) => (id !== 0 ? id : ++sequence)), sequence };
}

/** Checked access to a document that a user may have changed. Throws Error: where, and what was expected. */
class Fields {
  readonly #value: Readonly<Record<string, unknown>>;
  readonly #path: string;

  constructor(value: unknown, path: string) {
    if (typeof value !== "object" || value === null || Array.isArray(value))
      throw new Error(`${path || "it"} is no object`);
    this.#value = value as Readonly<Record<string, unknown>>;
    this.#path = path;
  }

  has(name: string): boolean {
    return this.#value[name] !== undefined;
  }

  keys(): string[] {
    return Object.keys(this.#value);
  }

  sub(name: string): Fields {
    return new Fields(this.#value[name], `${this.#path}.${name}`);
  }

  text(name: string): string {
    const value = this.#value[name];
    if (typeof value !== "string") throw new Error(`${this.#path}.${name} is no text`);
    return value;
  }

  hex16(name: string): string {
    const value = this.text(name).replaceAll("-", "");
    if (!/^[0-9a-f]{32}$/.test(value)) throw new Error(`${this.#path}.${name} is not 16 bytes in hexadecimal`);
    return value;
  }

  count(name: string): number {
    const value = this.#value[name];
    if (!Number.isSafeInteger(value) || (value as number) < 0) throw new Error(`${this.#path}.${name} is no count`);
    return value as number;
  }

  list(name: string): Fields[] {
    const value = this.#value[name];
    if (!Array.isArray(value)) throw new Error(`${this.#path}.${name} is no list`);
    return value.map((each, index) => new Fields(each, `${this.#path}.${name}[${index}]`));
  }

  /** `region` and `inodes`, as a manifest has them. */
  place(): RegionPlace {
    const pair = (name: keyof ManifestPlace): [number, number] => {
      const value = this.#value[name];
      const isPair =
        Array.isArray(value) && value.length === 2 && value.every((each) => Number.isSafeInteger(each) && each >= 0);
      if (!isPair) throw new Error(`${this.#path}.${name} is not two counts`);
      return value as [number, number];
    };
    const [startBlock, blockCount] = pair("region");
    const [firstInode, inodeCount] = pair("inodes");
    return { startBlock, blockCount, firstInode, inodeCount };
  }
}
