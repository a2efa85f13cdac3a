/**
 * The SOCI index of one image, v1 or v2: a zTOC for each layer that can have one, built while the layer passes by on its way to the destination, or taken
 * over where the source's own bound index has it; prefetch artifacts; the index document. Everything is in the destination when this returns.
 */

import { availableParallelism } from "node:os";
import { type Digest, sha256 } from "../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { Limit } from "../base/limit.ts";
import { LIMITS } from "../base/limits.ts";
import { VERSION } from "../base/version.ts";
import { type BuiltZtoc, type NoZtoc, ZtocBuilders } from "../formats/soci/build.ts";
import { entryAt } from "../formats/soci/entries.ts";
import { FlatBuffer } from "../formats/soci/flatbuffer.ts";
import { readSociIndex } from "../formats/soci/index.ts";
import {
  EMPTY_CONFIG,
  type IndexedLayer,
  planPrefetch,
  writePrefetch,
  writeSociIndex,
} from "../formats/soci/index-write.ts";
import {
  DEFAULT_MIN_LAYER_SIZE,
  DEFAULT_SPAN_SIZE,
  SOCI_ANNOTATIONS,
  SOCI_MEDIA_TYPES,
} from "../formats/soci/ondisk.ts";
import { readZtoc, type Ztoc } from "../formats/soci/read.ts";
import { annotation, type Descriptor } from "../oci/descriptor.ts";
import type { LoadedImage } from "../oci/manifest.ts";
import { layerKind, MEDIA_TYPES } from "../oci/media-types.ts";
import type { Platform } from "../oci/platform.ts";
import type { Copier } from "./copy.ts";
import { copyPassing } from "./copy-passing.ts";
import type { OnProgress } from "./progress.ts";

export const BUILD_TOOL = `headstart ${VERSION}`;

export interface SociOptions {
  /** Uncompressed bytes of a span at least. Default 4 MiB. */
  readonly spanSize?: number | undefined;
  /** Smaller layers (compressed) get no zTOC. Default 10 MiB. */
  readonly minLayerSize?: number | undefined;
  /** Default ours; with SOCI's own ("AWS SOCI CLI v0.2") the artifacts are byte-identical to its. */
  readonly buildToolIdentifier?: string | undefined;
  /** Paths of files whose spans are to be fetched first. */
  readonly prefetchFiles?: readonly string[] | undefined;
  /** "xattr": tell SOCI for which layers the kernel need not ask for xattrs. */
  readonly optimizations?: readonly "xattr"[] | undefined;
  /** Threads to share between calls; otherwise some are started and ended with each. */
  readonly builders?: ZtocBuilders | undefined;
  /** Build every zTOC anew, also where the source's bound index has it. */
  readonly force?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: OnProgress | undefined;
}

export interface IndexedImage {
  readonly index: Descriptor;
  readonly layers: readonly LayerOutcome[];
}

export interface LayerOutcome {
  readonly layer: Digest;
  readonly size: number;
  /** Null with the reason. */
  readonly ztoc: { readonly digest: Digest; readonly size: number; readonly reused: boolean } | null;
  readonly reason: string | null;
}

interface MadeZtoc {
  readonly digest: Digest;
  readonly size: number;
  readonly hasXattrs: boolean;
  readonly reused: boolean;
  /** Only where prefetch files are to be looked up in it. */
  readonly ztoc: Ztoc | null;
}

export class SociIndexer implements AsyncDisposable {
  readonly #copier: Copier;
  readonly #builders: ZtocBuilders;
  readonly #ownsBuilders: boolean;
  readonly #limit: Limit;
  readonly #spanSize: number;
  readonly #minLayerSize: number;
  readonly #buildTool: string;
  readonly #options: SociOptions;
  /** By layer: images share layers. */
  readonly #made = new Map<Digest, Promise<MadeZtoc | NoZtoc>>();

  /** Throws HS_USAGE. */
  constructor(copier: Copier, options: SociOptions) {
    this.#copier = copier;
    this.#options = options;
    this.#spanSize = size(options.spanSize ?? DEFAULT_SPAN_SIZE, "span size");
    this.#minLayerSize = size(options.minLayerSize ?? DEFAULT_MIN_LAYER_SIZE, "minimal layer size");
    this.#buildTool = options.buildToolIdentifier ?? BUILD_TOOL;
    // a pair of threads a layer; two, so that one downloads while the other waits
    const pairs = Math.max(2, Math.floor(availableParallelism() / 2));
    this.#builders = options.builders ?? new ZtocBuilders(pairs);
    this.#ownsBuilders = options.builders === undefined;
    this.#limit = new Limit(pairs);
  }

  /**
   * Puts the layers, their zTOCs and the index into the destination (`withLayers`: false leaves the layers alone). Null when no layer has a
   * zTOC: then there is no index, and the layers may not be there.
   */
  async index(
    image: LoadedImage,
    how: { readonly version: 1 | 2; readonly platform: Platform; readonly withLayers: boolean },
  ): Promise<{ readonly indexed: IndexedImage | null; readonly layers: readonly LayerOutcome[] }> {
    const bound = this.#options.force ? new Map<Digest, Descriptor>() : await this.#boundZtocs(image);
    const made = await Promise.all(
      image.layers.map((layer, number) =>
        this.#ztoc(layer, image.diffIDs[number]!, bound.get(layer.digest), how.withLayers),
      ),
    );
    const layers = image.layers.map((layer, number) => outcome(layer, made[number]!));
    if (made.every((one) => "kind" in one)) return { indexed: null, layers };
    const indexed = await this.#writeIndex(image, made, how);
    return { indexed: { index: indexed, layers }, layers };
  }

  async #writeIndex(
    image: LoadedImage,
    made: readonly (MadeZtoc | NoZtoc)[],
    how: { readonly version: 1 | 2; readonly platform: Platform },
  ): Promise<Descriptor> {
    const ranges = this.#planPrefetch(made, how.platform);
    const xattr = this.#options.optimizations?.includes("xattr") === true;
    const indexed: IndexedLayer[] = [];
    for (const [number, layer] of image.layers.entries()) {
      const one = made[number]!;
      if ("kind" in one) continue;
      const wanted = ranges[number] ?? [];
      const bytes = wanted.length === 0 ? null : writePrefetch(wanted);
      const prefetch = bytes === null ? undefined : { digest: sha256(bytes), size: bytes.byteLength };
      if (bytes !== null && prefetch !== undefined) {
        await this.#copier.bytes({ mediaType: SOCI_MEDIA_TYPES.prefetch, ...prefetch }, bytes);
        this.#options.onProgress?.({ t: "prefetch", layer: layer.digest, artifact: prefetch.digest });
      }
      const ztoc = { digest: one.digest, size: one.size };
      indexed.push({ layer, ztoc, prefetch, disableXattrs: xattr && !one.hasXattrs });
    }
    const config = { mediaType: SOCI_MEDIA_TYPES.indexV2, digest: sha256(EMPTY_CONFIG), size: EMPTY_CONFIG.byteLength };
    await this.#copier.bytes(config, EMPTY_CONFIG);
    const document = writeSociIndex({
      version: how.version,
      layers: indexed,
      spanSize: this.#spanSize,
      buildTool: this.#buildTool,
      ...(how.version === 1 && { subject: image.manifestDescriptor }),
    });
    return await this.#copier.manifest(document, MEDIA_TYPES.ociManifest);
  }

  #planPrefetch(made: readonly (MadeZtoc | NoZtoc)[], platform: Platform) {
    const files = this.#options.prefetchFiles ?? [];
    if (files.length === 0) return [];
    const plan = planPrefetch(
      files,
      made.map((one) => ("kind" in one ? null : one.ztoc)),
    );
    for (const file of plan.notFound) this.#options.onProgress?.({ t: "prefetch-not-found", platform, file });
    return plan.ranges;
  }

  #ztoc(
    layer: Descriptor,
    diffID: Digest,
    bound: Descriptor | undefined,
    withLayers: boolean,
  ): Promise<MadeZtoc | NoZtoc> {
    const known = this.#made.get(layer.digest);
    if (known !== undefined) return known;
    const work = this.#make(layer, diffID, bound, withLayers).then((made) => {
      const { onProgress } = this.#options;
      if ("kind" in made) onProgress?.({ t: "no-ztoc", layer: layer.digest, reason: made.reason });
      else onProgress?.({ t: "ztoc", layer: layer.digest, ztoc: made.digest, size: made.size, reused: made.reused });
      return made;
    });
    this.#made.set(layer.digest, work);
    return work;
  }

  async #make(
    layer: Descriptor,
    diffID: Digest,
    bound: Descriptor | undefined,
    withLayers: boolean,
  ): Promise<MadeZtoc | NoZtoc> {
    const refused = this.#unsuitable(layer);
    const reused = refused === null && bound !== undefined ? await this.#reuse(layer, bound) : null;
    if (refused !== null || reused !== null) {
      if (withLayers) await this.#copier.blob(layer);
      return reused ?? { kind: "none", reason: refused! };
    }
    const built = await this.#limit.run(() => this.#build(layer, diffID, withLayers), { signal: this.#options.signal });
    if (built.kind === "none") return built;
    const descriptor = { mediaType: SOCI_MEDIA_TYPES.ztoc, digest: built.digest, size: built.ztoc.byteLength };
    await this.#copier.bytes(descriptor, built.ztoc);
    return {
      digest: built.digest,
      size: descriptor.size,
      hasXattrs: built.hasXattrs,
      reused: false,
      ztoc: this.#keep(built.ztoc),
    };
  }

  #keep(bytes: Uint8Array): Ztoc | null {
    return (this.#options.prefetchFiles?.length ?? 0) > 0 ? readZtoc(bytes) : null;
  }

  #unsuitable(layer: Descriptor): string | null {
    const kind = layerKind(layer.mediaType);
    if (kind === undefined) return `${layer.mediaType} is no layer`;
    if (kind.encrypted) return "it is encrypted";
    if (kind.foreign) return "it is foreign";
    if (kind.compression === "zstd") return "it is compressed with zstd, which SOCI has no spans for";
    if (layer.size < this.#minLayerSize) return `it is smaller than ${this.#minLayerSize} bytes`;
    return null;
  }

  /** One pass over the blob, on its way to the destination if that does not have it. */
  async #build(layer: Descriptor, diffID: Digest, withLayers: boolean): Promise<BuiltZtoc | NoZtoc> {
    const { signal, onProgress } = this.#options;
    const build = async (chunks: AsyncIterable<Uint8Array>): Promise<BuiltZtoc | NoZtoc> => {
      try {
        return await this.#builders.build({
          blob: chunks,
          layer: { digest: layer.digest, size: layer.size, diffID },
          spanSize: this.#spanSize,
          buildTool: this.#buildTool,
          signal,
          onProgress: (bytes) => onProgress?.({ t: "reading", layer: layer.digest, bytes, size: layer.size }),
        });
      } catch (error) {
        // such a layer is carried along without a zTOC, as the image is
        if (isHeadstartError(error, "HS_LAYER_REFUSED", "HS_LIMIT")) return { kind: "none", reason: error.message };
        throw error;
      }
    };
    if (withLayers) return await copyPassing(this.#copier, layer, build);
    return await build(this.#copier.source.openBlob(layer).stream(0, { signal, callerVerifies: true }));
  }

  /** zTOC descriptors of the v2 index that the source's manifest binds, if it can be read. */
  async #boundZtocs(image: LoadedImage): Promise<ReadonlyMap<Digest, Descriptor>> {
    const digest = annotation(image.manifest, SOCI_ANNOTATIONS.indexDigest);
    if (digest === undefined) return new Map();
    try {
      const bytes = await this.#copier.source.readManifest(digest as Digest, this.#options.signal);
      return readSociIndex(bytes).ztocs;
    } catch (error) {
      this.#options.signal?.throwIfAborted();
      if (error instanceof HeadstartError) return new Map();
      throw error;
    }
  }

  /** The zTOC as it is, if this build would make the same of the layer: same span size, same tool, the right blob. */
  async #reuse(layer: Descriptor, bound: Descriptor): Promise<MadeZtoc | null> {
    const { signal } = this.#options;
    let bytes: Uint8Array;
    let ztoc: Ztoc;
    try {
      bytes = await this.#copier.source.openBlob(bound).readAll({ signal, limit: LIMITS.ztocBytes });
      ztoc = readZtoc(bytes, `zTOC of ${layer.digest}`);
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof HeadstartError) return null;
      throw error;
    }
    const { spans } = ztoc;
    if (ztoc.compressedSize !== layer.size || ztoc.buildTool !== this.#buildTool) return null;
    if (spans.spanSize !== this.#spanSize || spans.zinfoVersion === 1) return null;
    await this.#copier.bytes({ mediaType: SOCI_MEDIA_TYPES.ztoc, digest: bound.digest, size: bound.size }, bytes);
    return {
      digest: bound.digest,
      size: bound.size,
      hasXattrs: hasXattrs(ztoc),
      reused: true,
      ztoc: this.#keep(bytes),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#ownsBuilders) await this.#builders[Symbol.asyncDispose]();
  }
}

function outcome(layer: Descriptor, made: MadeZtoc | NoZtoc): LayerOutcome {
  const common = { layer: layer.digest, size: layer.size };
  if ("kind" in made) return { ...common, ztoc: null, reason: made.reason };
  return { ...common, ztoc: { digest: made.digest, size: made.size, reused: made.reused }, reason: null };
}

/** As TocCollector sees it while building. */
function hasXattrs(ztoc: Ztoc): boolean {
  const buffer = new FlatBuffer(ztoc.bytes, "zTOC", { trusted: true });
  for (let index = 0; index < ztoc.entries.count; index++) {
    const entry = entryAt(buffer, ztoc.entries, index);
    if (Buffer.from(entry.name).toString("latin1").endsWith(".wh..wh..opq")) return true;
    if (entry.pax.some(({ key }) => Buffer.from(key).toString("latin1").startsWith("SCHILY.xattr."))) return true;
  }
  return false;
}

function size(value: number, what: string): number {
  if (Number.isSafeInteger(value) && value >= 0) return value;
  throw new HeadstartError("HS_USAGE", { what: `a ${what} of ${value} bytes` });
}
