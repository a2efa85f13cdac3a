/** Images with SOCI indexes, made on the spot in a fake registry, with any part of them wrong as a test wants: digests are bound again after the damage, as a hostile or faulty builder would. */

import { type Digest, sha256 } from "../../src/base/digest.ts";
import { LayerIndexer } from "../../src/formats/soci/build-index.ts";
import { entryAt } from "../../src/formats/soci/entries.ts";
import { FlatBuffer } from "../../src/formats/soci/flatbuffer.ts";
import { writeSociIndex } from "../../src/formats/soci/index-write.ts";
import { SOCI_ANNOTATIONS, SOCI_BUILD_TOOL, SOCI_MEDIA_TYPES } from "../../src/formats/soci/ondisk.ts";
import { readZtoc } from "../../src/formats/soci/read.ts";
import { writeZtoc, type ZtocContent } from "../../src/formats/soci/write.ts";
import type { Descriptor } from "../../src/oci/descriptor.ts";
import { goIndex, goJson, goManifest } from "../../src/oci/gojson.ts";
import type { Manifest } from "../../src/oci/manifest.ts";
import { MEDIA_TYPES } from "../../src/oci/media-types.ts";
import { hostPlatform } from "../../src/oci/platform.ts";
import type { BuiltLayer } from "../../src/sandbox/image-builder.ts";
import type { FakeRegistry } from "../fakes/registry.ts";

/** A zTOC's content as SOCI would build it of that blob. */
export function ztocContent(blob: Uint8Array, spanSize: number): ZtocContent {
  const starts: number[] = [];
  const ends: number[] = [];
  using indexer = new LayerIndexer(
    { spanSize, layer: "layer" },
    {
      decoded() {},
      cut(offset, previousEnd) {
        if (starts.length > 0) ends.push(previousEnd);
        starts.push(offset);
      },
      memberEnd() {},
    },
  );
  indexer.push(blob);
  indexer.finish();
  ends.push(blob.byteLength);
  const spanDigests = starts.map((start, span) => sha256(blob.subarray(start, ends[span]!)));
  const ztoc = readZtoc(indexer.writeZtoc(SOCI_BUILD_TOOL, spanDigests));
  const buffer = new FlatBuffer(ztoc.bytes, "zTOC", { trusted: true });
  const recordBytes = 32_785;
  return {
    buildTool: SOCI_BUILD_TOOL,
    compressedSize: ztoc.compressedSize,
    uncompressedSize: ztoc.uncompressedSize,
    entries: Array.from({ length: ztoc.entries.count }, (_, index) => entryAt(buffer, ztoc.entries, index)),
    compression: indexer.compression,
    checkpoints:
      indexer.compression === "gzip"
        ? ztoc.bytes.slice(ztoc.spans.recordsOffset - 12, ztoc.spans.recordsOffset + ztoc.spans.count * recordBytes)
        : ztoc.bytes.slice(0, 0),
    spanDigests,
  };
}

export interface IndexedBlob {
  readonly layer: BuiltLayer;
  /** Null: the layer has no zTOC. */
  readonly ztoc: Uint8Array | null;
  readonly prefetch?: Uint8Array;
}

export interface SociImageOptions {
  /** Of the registry. */
  readonly repository: string;
  readonly tag?: string;
  readonly command?: readonly string[];
  readonly spanSize?: number;
  /** The last word on the index's bytes. */
  readonly index?: (bytes: Uint8Array) => Uint8Array;
  /** On the annotation that names the index; undefined: no annotation. */
  readonly annotation?: (digest: Digest) => string | undefined;
  /** On the descriptors of the OCI index. */
  readonly root?: (manifests: readonly Descriptor[]) => readonly Descriptor[];
  /** Artifacts that are named and not there. */
  readonly missing?: (what: "ztoc" | "index", digest: Digest) => boolean;
}

export interface StoredSociImage {
  /** HOST/REPOSITORY:TAG. */
  readonly reference: string;
  readonly manifest: Descriptor;
  readonly index: Digest | null;
}

/** Stores the image under its tag, with its v2 index if any layer has a zTOC. */
export function storeSociImage(
  registry: FakeRegistry,
  layers: readonly IndexedBlob[],
  options: SociImageOptions,
): StoredSociImage {
  const { repository, tag = "1", missing = () => false } = options;
  const put = (bytes: Uint8Array, what?: "ztoc") => {
    const digest = sha256(bytes);
    if (what === undefined || !missing(what, digest)) registry.putBlob(repository, bytes);
    return { digest, size: bytes.byteLength };
  };
  for (const { layer } of layers) put(layer.source as Uint8Array);
  const config = Buffer.from(
    goJson({
      architecture: hostPlatform().architecture,
      os: "linux",
      config: { Env: ["PATH=/bin"], Cmd: options.command ?? ["/bin/sh"] },
      rootfs: { type: "layers", diff_ids: layers.map(({ layer }) => layer.diffID) },
    }),
  );
  let document: Manifest = {
    mediaType: MEDIA_TYPES.ociManifest,
    config: { mediaType: MEDIA_TYPES.ociConfig, ...put(config) },
    layers: layers.map(({ layer }) => layer.descriptor),
  };
  const indexed = layers.filter(({ ztoc }) => ztoc !== null);
  const entries: Descriptor[] = [];
  let index: Digest | null = null;
  if (indexed.length > 0) {
    put(Buffer.from("{}"));
    const written = writeSociIndex({
      version: 2,
      spanSize: options.spanSize ?? 65_536,
      buildTool: SOCI_BUILD_TOOL,
      layers: indexed.map(({ layer, ztoc, prefetch }) => ({
        layer: layer.descriptor,
        ztoc: put(ztoc!, "ztoc"),
        prefetch: prefetch && put(prefetch),
      })),
    });
    const bytes = options.index?.(written) ?? written;
    index = sha256(bytes);
    if (!missing("index", index)) registry.putManifest(repository, bytes, MEDIA_TYPES.ociManifest);
    const annotation = options.annotation === undefined ? index : options.annotation(index);
    if (annotation !== undefined)
      document = { ...document, annotations: { [SOCI_ANNOTATIONS.indexDigest]: annotation } };
    entries.push({
      mediaType: MEDIA_TYPES.ociManifest,
      digest: index,
      size: bytes.byteLength,
      platform: hostPlatform(),
      artifactType: SOCI_MEDIA_TYPES.indexV2,
    });
  }
  const bytes = goManifest(document);
  const stored = registry.putManifest(repository, bytes, MEDIA_TYPES.ociManifest);
  const manifest = { ...stored, digest: sha256(bytes), platform: hostPlatform() };
  const all = [manifest, ...entries];
  const root = goIndex({ mediaType: MEDIA_TYPES.ociIndex, manifests: [...(options.root?.(all) ?? all)] });
  registry.putManifest(repository, root, MEDIA_TYPES.ociIndex, tag);
  return { reference: `${registry.host}/${repository}:${tag}`, manifest, index };
}

/** The layer with the zTOC that SOCI would make of it. */
export function indexed(layer: BuiltLayer, spanSize = 65_536): IndexedBlob {
  return { layer, ztoc: writeZtoc(ztocContent(layer.source as Uint8Array, spanSize)) };
}
