/**
 * One Nydus image: its layers through their builders into the destination, then the merged bootstrap, the layer that carries it, configuration and manifest. Layers that images of several
 * platforms share are built once.
 */

import { availableParallelism } from "node:os";
import { type Digest, digestHex, sha256 } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { Limit } from "../base/limit.ts";
import { MiB } from "../base/limits.ts";
import type { LayerRole } from "../formats/format.ts";
import { NYDUS_MEDIA_TYPES } from "../formats/nydus/ondisk.ts";
import { writeBootstrap } from "../formats/nydus/write/bootstrap.ts";
import { bootstrapLayerTar, compressBootstrapLayer } from "../formats/nydus/write/bootstrap-layer.ts";
import { type ChunkDictionary, openDictionary } from "../formats/nydus/write/dictionary.ts";
import { mergeLayers } from "../formats/nydus/write/merge.ts";
import type { NativeLayerInput, NydusLayer } from "../formats/nydus/write/native.ts";
import type { NydusOptions } from "../formats/nydus/write/options.ts";
import { prefetchInodes } from "../formats/nydus/write/prefetch.ts";

import type { Descriptor } from "../oci/descriptor.ts";
import type { LoadedImage } from "../oci/manifest.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import type { Copier } from "./copy.ts";
import { copyPassing } from "./copy-passing.ts";
import { chunkArrayFile, type DictionarySource } from "./nydus-dictionary.ts";
import { nydusConfig, nydusManifest } from "./nydus-manifest.ts";
import { NydusThreads } from "./nydus-threads.ts";
import type { OnProgress } from "./progress.ts";
import { PushedBlob } from "./pushed-blob.ts";
import type { Together } from "./together.ts";

/** Each keeps a download, a thread and an upload busy, and its entries in memory. */
const LAYERS_AT_ONCE = Math.min(4, Math.max(2, availableParallelism()));

/** Stored bytes of a layer up to which `thorough` counts: a second or two of one processor at most. */
const SMALL_BYTES = MiB;
/** For small layers: what a blob has besides its data weighs most there, and zstd at level 3 does not always beat gzip at 6. */
const THOROUGH_LEVEL = 19;

export interface NydusImageOptions {
  readonly mode: "native" | "ref";
  readonly build: NydusOptions;
  /** Small layers are compressed as well as zstd can, so that they do not become larger than they were. */
  readonly thorough?: boolean | undefined;
  readonly dictionary?: DictionarySource | undefined;
  readonly prefetch?: readonly string[] | undefined;
  /** Whose signal the copier has too. */
  readonly together: Together;
  readonly onProgress?: OnProgress | undefined;
}

export interface NydusLayerOutcome {
  /** Of the source. */
  readonly layer: Digest;
  readonly size: number;
  /** What it became: a native blob, or the index over the unmodified layer. */
  readonly blob: Digest;
  readonly blobSize: number;
  readonly chunks: number;
}

export interface WrittenNydusImage {
  /** The manifest, not yet pushed; all that it names is in the destination. */
  readonly bytes: Uint8Array;
  readonly bootstrap: { readonly digest: Digest; readonly size: number };
  readonly layers: readonly NydusLayerOutcome[];
  readonly dictionary: readonly Digest[];
  readonly prefetchNotFound: readonly string[];
}

type BuilderInput = Omit<NativeLayerInput, "bytes" | "role" | "dictionary">;

export class NydusImageWriter implements AsyncDisposable {
  readonly #copier: Copier;
  readonly #options: NydusImageOptions;
  readonly #limit = new Limit(LAYERS_AT_ONCE);
  readonly #threads = new NydusThreads();
  readonly #built = new Map<string, Promise<NydusLayer>>();
  readonly #dictionary: ChunkDictionary | null;

  /** Throws HS_NYDUS_LIMIT, HS_NYDUS_INVALID for a dictionary that does not fit or is not sound. */
  constructor(copier: Copier, options: NydusImageOptions) {
    this.#copier = copier;
    this.#options = options;
    const { dictionary, build } = options;
    this.#dictionary = dictionary === undefined ? null : openDictionary(dictionary.bootstrap, build, dictionary.what);
  }

  async write(
    image: LoadedImage,
    how: { readonly beside: boolean; readonly isReferrer: boolean },
  ): Promise<WrittenNydusImage> {
    if (image.layers.length === 0)
      throw new HeadstartError("HS_NYDUS_LIMIT", {
        what: `manifest ${image.manifestDescriptor.digest}: an image without layers`,
      });
    const built = await this.#options.together.all(
      image.layers.map((layer, position) =>
        this.#layer(layer, image.diffIDs[position]!, position === 0 ? "lowest" : "upper", how.beside || how.isReferrer),
      ),
    );
    const paths = this.#options.prefetch ?? [];
    const merged = mergeLayers(
      built.map(({ layer }) => layer),
      { prefetch: paths },
    );
    const metas = new Map<string, Uint8Array>();
    for (const { blob, blobMeta } of built) if (blobMeta !== null) metas.set(digestHex(blob.digest), blobMeta);
    const dictionary = await this.#copyDictionary(built, metas);
    const bootstrap = await this.#pushBootstrap(writeBootstrap(merged), metas);
    const parts = {
      layers: built.map(({ blob }, position) => ({
        source: { descriptor: image.layers[position]!, diffID: image.diffIDs[position]! },
        stored: blob,
        mode: this.#options.mode,
      })),
      dictionary,
      bootstrap,
    };
    const config = nydusConfig(image.config, parts, `configuration ${image.configDescriptor.digest}`);
    const stored = { digest: sha256(config), size: config.byteLength };
    const mediaType = how.beside ? NYDUS_MEDIA_TYPES.config : MEDIA_TYPES.ociConfig;
    await this.#copier.bytes({ mediaType, ...stored }, config);
    return {
      bytes: nydusManifest({
        ...parts,
        ...how,
        config: stored,
        source: image.manifestDescriptor,
        sourceAnnotations: image.manifest.annotations,
      }),
      bootstrap: { digest: bootstrap.digest, size: bootstrap.size },
      layers: built.map(({ blob, layer }, position) => ({
        layer: image.layers[position]!.digest,
        size: image.layers[position]!.size,
        blob: blob.digest,
        blobSize: blob.size,
        chunks: layer.blob?.chunks.count ?? 0,
      })),
      dictionary: dictionary.map(({ digest }) => digest),
      prefetchNotFound: paths.filter((path) => prefetchInodes(merged.tree, [path]).length === 0),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#threads[Symbol.asyncDispose]();
  }

  /** What a layer with marks means depends on whether it is the lowest. `kept`: the destination gets the layer itself too. */
  #layer(layer: Descriptor, diffID: Digest, role: LayerRole, kept: boolean): Promise<NydusLayer> {
    const key = `${layer.digest} ${role}`;
    const known = this.#built.get(key);
    if (known !== undefined) return known;
    const { signal } = this.#options.together;
    const work = this.#limit.run(() => this.#build(layer, diffID, role, kept), { signal });
    this.#built.set(key, work);
    return work;
  }

  async #build(layer: Descriptor, diffID: Digest, role: LayerRole, kept: boolean): Promise<NydusLayer> {
    const { onProgress, mode, together } = this.#options;
    const { source, destination } = this.#copier;
    const build = (bytes: AsyncIterable<Uint8Array>) =>
      this.#push(layer, diffID, (input) =>
        mode === "native"
          ? this.#threads.native({ ...input, bytes, role, dictionary: this.#dictionary })
          : this.#threads.ref({ ...input, bytes, role }),
      );
    // a native blob is pushed while its layer is: where that cannot be, the layer is read again when it is copied; that of a ref begins when the layer has ended
    const passing = mode === "ref" || (kept && destination.oneAtATime !== true);
    const made = passing
      ? await copyPassing(this.#copier, layer, build)
      : // the builder checks the digest
        await build(source.openBlob(layer).stream(0, { signal: together.signal, callerVerifies: true }));
    onProgress?.({ t: "nydus-layer", layer: layer.digest, blob: made.blob.digest, size: made.blob.size });
    return made;
  }

  /** What `make` gives to the sink becomes a blob of the destination. */
  async #push(
    layer: Descriptor,
    diffID: Digest,
    make: (input: BuilderInput) => Promise<NydusLayer>,
  ): Promise<NydusLayer> {
    const { onProgress, together } = this.#options;
    const pushed = new PushedBlob(this.#copier, NYDUS_MEDIA_TYPES.blob);
    try {
      const made = await make({
        layer: { digest: layer.digest, size: layer.size, mediaType: layer.mediaType, diffID },
        options: this.#buildOptions(layer),
        sink: pushed.sink,
        signal: together.signal,
        onProgress: (bytes) => onProgress?.({ t: "reading", layer: layer.digest, bytes, size: layer.size }),
      });
      await pushed.finish();
      return made;
    } catch (error) {
      await pushed.abort(error);
      throw error;
    }
  }

  #buildOptions({ size }: Descriptor): NydusOptions {
    const { build, thorough } = this.#options;
    if (thorough !== true || build.compressor !== "zstd" || size > SMALL_BYTES) return build;
    return { ...build, compressionLevel: THOROUGH_LEVEL };
  }

  /** Blobs of the dictionary that any layer refers to: its files' last names may be gone, its tar still needs the bytes. */
  async #copyDictionary(built: readonly NydusLayer[], metas: Map<string, Uint8Array>): Promise<Descriptor[]> {
    const { dictionary: source, together } = this.#options;
    const { signal } = together;
    if (source === undefined) return [];
    const own = new Set(built.map(({ blob }) => digestHex(blob.digest)));
    const used = new Set(built.flatMap(({ layer }) => layer.dictionary.map(({ facts }) => facts.id)));
    const blobs: Descriptor[] = [];
    for (const { facts } of this.#dictionary?.blobs ?? []) {
      if (!used.has(facts.id) || own.has(facts.id)) continue;
      const descriptor = await source.describe(facts.id);
      const blob = source.reader.openBlob(descriptor);
      await this.#copier.blob(descriptor, () =>
        this.#copier.destination.pushBlob(descriptor, () => blob.stream(0, { signal }), { signal }),
      );
      metas.set(
        facts.id,
        await chunkArrayFile(facts, source.blobMeta.get(facts.id), (start, end) =>
          blob.readRange(start, end, { signal }),
        ),
      );
      blobs.push(descriptor);
    }
    return blobs;
  }

  async #pushBootstrap(bytes: Uint8Array, metas: ReadonlyMap<string, Uint8Array>) {
    const blobMeta = [...metas].map(([id, meta]) => ({ id, bytes: meta }));
    const tar = await bootstrapLayerTar({ bootstrap: bytes, blobMeta });
    const layer = await compressBootstrapLayer(tar);
    const stored = { digest: sha256(layer), size: layer.byteLength };
    await this.#copier.bytes({ mediaType: MEDIA_TYPES.ociLayerGzip, ...stored }, layer);
    return { ...stored, diffID: sha256(tar) };
  }
}
