/** What the doctor needs of a volume's manifest (PATH.json). */

import { readFileSync, statSync } from "node:fs";
import type { Digest } from "../../base/digest.ts";
import { HeadstartError } from "../../base/errors.ts";
import { MiB } from "../../base/limits.ts";
import type { Document } from "./document.ts";
import { volumeIn } from "./read.ts";

export interface VolumeFacts {
  /** The manifest's file. */
  readonly where: string;
  readonly target: string;
  readonly platform: string;
  readonly snapshotter: string;
  readonly blobs: boolean;
  readonly pinned: boolean;
  /** Every name of every image. */
  readonly references: readonly string[];
  /** Each distinct one. */
  readonly layers: readonly VolumeLayerFacts[];
  /** Compressed bytes of the largest image: what one costs when it is gone. */
  readonly largestImageBytes: number;
  /** Of a disk; null: a directory. */
  readonly disk: {
    readonly bytes: number;
    readonly uuid: string;
    readonly usedBytes: number;
    /** First byte of the file system on the disk. */
    readonly fsOffset: number;
    /** [first byte, bytes] of the disk; null: nothing was said to be hot. */
    readonly hotRange: readonly [number, number] | null;
    /** SHA-256 of each block of 512 KiB that is not zeros, by index. */
    readonly blocks: ReadonlyMap<string, string>;
    /** [first byte, bytes] of what is not zeros, ascending; small gaps are in them. */
    readonly dataRanges: readonly (readonly [number, number])[];
  } | null;
}

export interface VolumeLayerFacts {
  readonly digest: Digest;
  readonly chainID: Digest;
  readonly blobBytes: number;
  readonly unpackedBytes: number;
  readonly from: "built";
  readonly kept: false;
}

const FILE_BYTES_MAX = 256 * MiB;

/** A volume or the .json beside it. Throws HS_NOT_FOUND, HS_LIMIT, HS_DOCTOR_INPUT. */
export function readVolumeFile(path: string): VolumeFacts {
  const file = path.endsWith(".json") ? path : `${path}.json`;
  const manifest = volumeIn(readInput(file), file);
  if (manifest === null) throw new HeadstartError("HS_DOCTOR_INPUT", { what: `${file}: no volume manifest` });
  return volumeFacts(manifest, file);
}

/** Throws HS_NOT_FOUND, HS_LIMIT. */
export function readInput(file: string): string {
  try {
    const { size } = statSync(file);
    if (size > FILE_BYTES_MAX) throw new HeadstartError("HS_LIMIT", { what: `${file}: ${size} bytes` });
    return readFileSync(file, "utf8");
  } catch (cause) {
    if (cause instanceof HeadstartError) throw cause;
    throw new HeadstartError("HS_NOT_FOUND", { what: file, cause });
  }
}

/** Throws HS_DOCTOR_INPUT. */
export function volumeFacts(manifest: Document, where: string): VolumeFacts {
  const images = manifest.at("images").list();
  const sizes = images.map((image) =>
    image
      .at("layers")
      .list()
      .reduce((sum, layer) => sum + (layer.at("blobBytes").number() ?? 0), 0),
  );
  const fs = manifest.at("fs");
  const hot = manifest
    .at("hot", "region")
    .list()
    .map((each) => each.number() ?? 0);
  return {
    where,
    target: need(manifest.at("target")),
    platform: need(manifest.at("platform")),
    snapshotter: need(manifest.at("snapshotter")),
    blobs: manifest.at("options", "blobs").flag() ?? true,
    pinned: manifest.at("options", "pinned").flag() ?? false,
    references: images.flatMap((image) => image.at("refs").list().map(need)),
    layers: [...new Map(images.flatMap((image) => image.at("layers").list().map(layerFacts))).values()],
    largestImageBytes: Math.max(0, ...sizes),
    disk: fs.isThere
      ? {
          bytes: manifest.at("size").number() ?? 0,
          uuid: need(fs.at("uuid")),
          usedBytes: ((fs.at("blocks").number() ?? 0) - (fs.at("free").number() ?? 0)) * 4096,
          fsOffset: fs.at("offset").number() ?? 0,
          hotRange: hot.length === 2 ? [hot[0]!, hot[1]!] : null,
          ...blockFacts(manifest.at("blocks")),
        }
      : null,
  };
}

/** Runs of blocks that are this close are one: a read more costs less than another range. */
const GAP_BYTES = 8 * MiB;

function blockFacts(document: Document): Pick<NonNullable<VolumeFacts["disk"]>, "blocks" | "dataRanges"> {
  const size = document.at("size").number() ?? 0;
  const digests = document.at("sha256");
  const blocks = new Map(digests.names().map((index) => [index, need(digests.at(index))]));
  const indices = [...blocks.keys()].map(Number).filter((index) => Number.isSafeInteger(index) && index >= 0);
  const dataRanges: [number, number][] = [];
  for (const index of indices.sort((a, b) => a - b)) {
    const last = dataRanges.at(-1);
    const start = index * size;
    if (last !== undefined && start - (last[0] + last[1]) <= GAP_BYTES) last[1] = start + size - last[0];
    else dataRanges.push([start, size]);
  }
  return { blocks, dataRanges };
}

function layerFacts(layer: Document): [string, VolumeLayerFacts] {
  const chainID = need(layer.at("chainID")) as Digest;
  return [
    chainID,
    {
      digest: need(layer.at("digest")) as Digest,
      chainID,
      blobBytes: layer.at("blobBytes").number() ?? 0,
      unpackedBytes: layer.at("bytes").number() ?? 0,
      from: "built",
      kept: false,
    },
  ];
}

function need(document: Document): string {
  const text = document.text();
  if (text === undefined) throw new HeadstartError("HS_DOCTOR_INPUT", { what: `${document.where} is missing` });
  return text;
}
