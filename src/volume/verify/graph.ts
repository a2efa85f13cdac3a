/**
 * What containerd's collector follows: image -> index -> manifest -> configuration and layers, configuration -> snapshot (specs/warm-volume.md 5.3). Read from the blobs
 * themselves; the labels and records that should be there follow from it, and are compared with those that are.
 */

import { type ChainID, chainIDs, type DiffID, type Digest } from "../../base/digest.ts";
import { describeError } from "../../base/errors.ts";
import { LIMITS } from "../../base/limits.ts";
import type { LayerRole } from "../../formats/format.ts";
import type { Descriptor } from "../../oci/descriptor.ts";
import {
  type ImageConfig,
  type Manifest,
  parseConfig,
  parseIndex,
  parseManifest,
  sniffManifestType,
} from "../../oci/manifest.ts";
import { isConfigType, isIndexType } from "../../oci/media-types.ts";
import type { StoredBlobs } from "./blobs.ts";
import type { Findings } from "./findings.ts";
import type { BlobRecord, MetaRecords } from "./meta-db.ts";
import { checkNames, checkRecord } from "./names.ts";

export interface StoredImage {
  readonly manifest: Digest;
  readonly config: Digest;
  readonly platform: ImageConfig["platform"];
  readonly layers: readonly { readonly descriptor: Descriptor; readonly diffID: DiffID; readonly chainID: ChainID }[];
}

/** A snapshot that some image needs. */
export interface Chain {
  readonly chainID: ChainID;
  readonly parent: ChainID | null;
  readonly diffID: DiffID;
  /** Blobs that it can be unpacked from: one layer may come compressed in several ways. */
  readonly layers: Descriptor[];
  readonly role: LayerRole;
}

export interface ImageGraph {
  /** By the digest that a name points to. */
  readonly images: ReadonlyMap<Digest, readonly StoredImage[]>;
  /** Parents before their children. */
  readonly chains: ReadonlyMap<ChainID, Chain>;
  readonly layers: ReadonlySet<Digest>;
  /** Bytes of each blob as descriptors have it. */
  readonly sizes: ReadonlyMap<Digest, number>;
}

export interface GraphOptions {
  readonly findings: Findings;
  readonly snapshotter: string;
  readonly exact: boolean;
}

export async function checkImages(
  records: MetaRecords,
  blobs: StoredBlobs,
  options: GraphOptions,
): Promise<ImageGraph> {
  const graph = new GraphReader(blobs, records, options);
  const images = new Map<Digest, readonly StoredImage[]>();
  for (const record of records.images) {
    const { digest } = record.target;
    if (digest === "") continue;
    if (!images.has(digest)) images.set(digest, await graph.image(digest, record.place));
    checkRecord(record, { size: blobs.size(digest), mediaType: graph.mediaTypes.get(digest) }, options.findings);
  }
  if (records.images.length === 0) options.findings.add("image", "meta.db/v1/k8s.io/images", "no image is there");
  checkNames(records.images, images, options.findings);
  graph.checkLabels();
  return { images, chains: graph.chains, layers: graph.layers, sizes: graph.sizes };
}

const GC = "containerd.io/gc.ref.";
const UNCOMPRESSED = "containerd.io/uncompressed";
const DISTRIBUTION = "containerd.io/distribution.source.";
const INDEX_DEPTH_MAX = 3;

class GraphReader {
  readonly chains = new Map<ChainID, Chain>();
  readonly layers = new Set<Digest>();
  readonly sizes = new Map<Digest, number>();
  /** The document's own media type by digest. */
  readonly mediaTypes = new Map<Digest, string>();
  readonly #blobs: StoredBlobs;
  readonly #records: MetaRecords;
  readonly #options: GraphOptions;
  /** Labels that a blob must have; of an index the entries that it may name. */
  readonly #labels = new Map<Digest, Map<string, string>>();
  readonly #indexes = new Map<Digest, { readonly listed: ReadonlySet<Digest>; readonly there: ReadonlySet<Digest> }>();
  readonly #manifests = new Map<Digest, StoredImage | null>();
  /** Layers that need not say their diffID, and may. */
  readonly #allowed = new Map<Digest, DiffID>();

  constructor(blobs: StoredBlobs, records: MetaRecords, options: GraphOptions) {
    this.#blobs = blobs;
    this.#records = records;
    this.#options = options;
  }

  async image(digest: Digest, place: string): Promise<StoredImage[]> {
    const found = await this.#target(digest, place, INDEX_DEPTH_MAX);
    if (found.length === 0 && this.#blobs.has(digest)) {
      this.#options.findings.add("image", place, "no manifest and configuration of it are on the volume");
    }
    const needed = this.#needed(found);
    for (const image of needed) this.#need(image);
    for (const image of found) if (!needed.includes(image)) this.#pass(image);
    return needed;
  }

  /** Of an index that was fetched for all platforms only one manifest is unpacked; what was built holds no other. */
  #needed(images: readonly StoredImage[]): StoredImage[] {
    const isUnpacked = ({ layers }: StoredImage) => this.#records.snapshots.has(layers.at(-1)?.chainID ?? "");
    const unpacked = images.filter(isUnpacked);
    return this.#options.exact || unpacked.length === 0 ? [...images] : unpacked;
  }

  /** Everything that keeps the image's snapshots. */
  #need({ config, layers }: StoredImage): void {
    for (const [index, layer] of layers.entries()) {
      this.#labelsOf(layer.descriptor.digest).set(UNCOMPRESSED, layer.diffID);
      this.#chain(layer, index === 0 ? null : layers[index - 1]!.chainID);
    }
    const top = layers.at(-1);
    const labels = this.#labelsOf(config);
    if (top !== undefined) labels.set(`${GC}snapshot.${this.#options.snapshotter}`, top.chainID);
  }

  #pass({ config, layers }: StoredImage): void {
    this.#options.findings.open("images of other platforms", "they are not unpacked");
    this.#labelsOf(config);
    for (const { descriptor, diffID } of layers) {
      this.#labelsOf(descriptor.digest);
      this.#allowed.set(descriptor.digest, diffID);
    }
  }

  async #target(digest: Digest, place: string, depth: number): Promise<StoredImage[]> {
    const bytes = await this.#document(digest, LIMITS.manifestBytes, place);
    if (bytes === null) return [];
    try {
      const mediaType = sniffManifestType(bytes, `blob ${digest}`);
      this.mediaTypes.set(digest, mediaType);
      if (!isIndexType(mediaType)) {
        const image = await this.#manifest(digest, bytes);
        return image === null ? [] : [image];
      }
      const { manifests } = parseIndex(bytes, `blob ${digest}`);
      const listed = new Set(manifests.map((entry) => entry.digest));
      const there = new Set([...listed].filter((entry) => this.#blobs.has(entry) || this.#records.blobs.has(entry)));
      this.#indexes.set(digest, { listed, there });
      if (depth === 0) return [];
      const images: StoredImage[] = [];
      for (const child of there) images.push(...(await this.#target(child, place, depth - 1)));
      return images;
    } catch (error) {
      this.#options.findings.add("image", `blob ${digest}`, describeError(error));
      return [];
    }
  }

  async #manifest(digest: Digest, bytes: Uint8Array): Promise<StoredImage | null> {
    const known = this.#manifests.get(digest);
    if (known !== undefined) return known;
    const image = await this.#readManifest(digest, parseManifest(bytes, `manifest ${digest}`));
    this.#manifests.set(digest, image);
    return image;
  }

  async #readManifest(digest: Digest, manifest: Manifest): Promise<StoredImage | null> {
    const labels = this.#labelsOf(digest);
    labels.set(`${GC}content.config`, manifest.config.digest);
    for (const [position, layer] of manifest.layers.entries()) labels.set(`${GC}content.l.${position}`, layer.digest);
    const place = `manifest ${digest}`;
    this.#size(manifest.config, place);
    for (const layer of manifest.layers) this.#size(layer, place);
    // attestations and other artifacts have no file system
    if (!isConfigType(manifest.config.mediaType)) return null;
    for (const layer of manifest.layers) this.layers.add(layer.digest);
    const bytes = await this.#document(manifest.config.digest, LIMITS.configBytes, place);
    if (bytes === null) return null;
    const { diffIDs, platform } = parseConfig(bytes, `configuration ${manifest.config.digest}`);
    if (diffIDs.length !== manifest.layers.length) {
      this.#options.findings.differs("image", place, "the number of layers", manifest.layers.length, diffIDs.length);
      return null;
    }
    const chain = chainIDs(diffIDs);
    const layers = manifest.layers.map((descriptor, index) => {
      return { descriptor, diffID: diffIDs[index]!, chainID: chain[index]! };
    });
    return { manifest: digest, config: manifest.config.digest, platform, layers };
  }

  #chain(layer: StoredImage["layers"][number], parent: ChainID | null): void {
    const known = this.chains.get(layer.chainID);
    if (known === undefined) {
      const { chainID, diffID, descriptor } = layer;
      const role = parent === null ? "lowest" : "upper";
      this.chains.set(chainID, { chainID, parent, diffID, layers: [descriptor], role });
    } else if (!known.layers.some((one) => one.digest === layer.descriptor.digest)) known.layers.push(layer.descriptor);
  }

  #labelsOf(digest: Digest): Map<string, string> {
    const labels = this.#labels.get(digest) ?? new Map<string, string>();
    this.#labels.set(digest, labels);
    return labels;
  }

  #size(descriptor: Descriptor, place: string): void {
    this.sizes.set(descriptor.digest, descriptor.size);
    const size = this.#blobs.size(descriptor.digest);
    if (size !== null && size !== descriptor.size) {
      this.#options.findings.differs(
        "blob",
        `${place}: ${descriptor.digest}`,
        "the blob's size",
        size,
        descriptor.size,
      );
    }
  }

  async #document(digest: Digest, limit: number, place: string): Promise<Uint8Array | null> {
    if (!this.#blobs.has(digest)) this.#options.findings.add("image", place, `the blob ${digest} is not on the volume`);
    try {
      return await this.#blobs.read(digest, limit);
    } catch (error) {
      this.#options.findings.add("image", `blob ${digest}`, describeError(error));
      return null;
    }
  }

  /** Every blob's labels keep what they should and nothing else; a blob that nothing keeps would be gone with the first collection. */
  checkLabels(): void {
    const { findings } = this.#options;
    for (const [digest, record] of this.#records.blobs) {
      const index = this.#indexes.get(digest);
      const wanted = this.#labels.get(digest);
      if (index === undefined && wanted === undefined) {
        findings.add("gc-reference", record.place, "no image leads to this blob: it would be collected");
      }
      if (index !== undefined) this.#checkIndexLabels(record, index);
      for (const [name, value] of wanted ?? []) {
        const found = record.labels.get(name);
        if (found !== value) findings.differs("gc-reference", record.place, name, found, value);
      }
      for (const [name, value] of record.labels)
        this.#checkLabel(digest, record, [name, value], wanted, index !== undefined);
    }
  }

  #checkIndexLabels(
    record: BlobRecord,
    { listed, there }: { readonly listed: ReadonlySet<Digest>; readonly there: ReadonlySet<Digest> },
  ): void {
    const { findings, exact } = this.#options;
    const named = new Set<string>();
    for (const [name, value] of record.labels) {
      if (!name.startsWith(`${GC}content.m.`)) continue;
      named.add(value);
      if (!/\.m\.\d+$/.test(name) || !listed.has(value as Digest) || (exact && !there.has(value as Digest))) {
        findings.add("gc-reference", record.place, `${name}=${value} names no manifest of this index on the volume`);
      }
    }
    for (const digest of there) {
      if (!named.has(digest)) findings.add("gc-reference", record.place, `no label keeps the manifest ${digest}`);
    }
  }

  #checkLabel(
    digest: Digest,
    record: BlobRecord,
    [name, value]: readonly [string, string],
    wanted: ReadonlyMap<string, string> | undefined,
    isIndex: boolean,
  ): void {
    if (wanted?.has(name) === true || (isIndex && name.startsWith(`${GC}content.m.`))) return;
    const { findings, exact } = this.#options;
    if (name === UNCOMPRESSED && value === this.#allowed.get(digest)) return;
    if (name.startsWith(DISTRIBUTION)) {
      if (name.length === DISTRIBUTION.length || !/^[a-z0-9][a-z0-9._/,-]*$/.test(value)) {
        findings.add("database", record.place, `${name}=${value} names no repository`);
      }
      return;
    }
    const keeps = name.startsWith(GC) || name.startsWith("containerd.io/gc.") || name === UNCOMPRESSED;
    if (keeps) findings.add("gc-reference", record.place, `${name}=${value} does not belong to this blob`);
    else if (exact) findings.add("database", record.place, `${name}=${value} is no label of a build`);
    else findings.open("labels of blobs", "containerd does not read them");
  }
}
