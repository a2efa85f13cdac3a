/** Images as their sources have them now, against those on a volume; and their layers for those that the volume has not as blobs. */

import type { Digest } from "../../base/digest.ts";
import { type LoadedImage, loadImage } from "../../oci/manifest.ts";
import { type OpenOptions, openSource } from "../../oci/open.ts";
import type { Platform } from "../../oci/platform.ts";
import { formatReference, formatSource, type ImageSource } from "../../oci/reference.ts";
import type { BlobHandle, ImageReader } from "../../oci/store.ts";
import type { Findings } from "./findings.ts";
import type { ImageGraph } from "./graph.ts";
import type { LayerSource } from "./layers.ts";
import type { ImageRecord } from "./meta-db.ts";

export interface VerifySource {
  readonly source: ImageSource;
  readonly open: OpenOptions;
}

interface LoadedSource {
  readonly source: ImageSource;
  readonly image: LoadedImage;
  readonly reader: ImageReader;
}

export class OpenSources implements AsyncDisposable {
  readonly #images: readonly LoadedSource[];
  readonly #layers = new Map<Digest, BlobHandle>();
  readonly #signal: AbortSignal;
  readonly #stack: AsyncDisposableStack;

  private constructor(images: readonly LoadedSource[], stack: AsyncDisposableStack, signal: AbortSignal) {
    this.#images = images;
    this.#stack = stack;
    this.#signal = signal;
    for (const { image, reader } of images) {
      for (const layer of image.layers) {
        if (!this.#layers.has(layer.digest)) this.#layers.set(layer.digest, reader.openBlob(layer));
      }
    }
  }

  /** Throws what opening and reading images throws. */
  static async open(sources: readonly VerifySource[], platform: Platform, signal: AbortSignal): Promise<OpenSources> {
    await using stack = new AsyncDisposableStack();
    const images: LoadedSource[] = [];
    for (const { source, open } of sources) {
      const reader = stack.use(await openSource(source, { ...open, signal }));
      images.push({ source, reader, image: await loadImage(reader, platform, signal) });
    }
    return new OpenSources(images, stack.move(), signal);
  }

  readonly layer: LayerSource = (layer) => {
    const handle = this.#layers.get(layer.digest);
    // whoever reads it checks the digest, and says that it was this layer
    return handle?.stream(0, { signal: this.#signal, callerVerifies: true }) ?? null;
  };

  /** Each source's image is on the volume with exactly its digests; a name of its own that is there means it. */
  check(records: readonly ImageRecord[], graph: ImageGraph, findings: Findings): void {
    const targets = new Map(records.map((record) => [record.name, record.target.digest]));
    for (const { source, image } of this.#images) {
      const place = `source ${formatSource(source)}`;
      const target = (image.indexDescriptor ?? image.manifestDescriptor).digest;
      const named = targets.get(nameOf(source) ?? "");
      if (named !== undefined && named !== target)
        findings.differs("source", place, "on the volume its digest", named, target);
      const stored = graph.images.get(target)?.find((each) => each.manifest === image.manifestDescriptor.digest);
      if (stored === undefined) {
        if (named === undefined || named === target)
          findings.add("source", place, `the image ${target} is not on the volume`);
        continue;
      }
      for (const [index, layer] of image.layers.entries()) {
        const own = stored.layers[index];
        if (own?.descriptor.digest !== layer.digest || own.diffID !== image.diffIDs[index]) {
          findings.differs("source", `${place}, layer ${index}`, "the digest", own?.descriptor.digest, layer.digest);
        }
      }
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#stack.disposeAsync();
  }
}

/** The name by tag under which a volume would know it. */
function nameOf(source: ImageSource): string | null {
  if (source.kind !== "registry") return null;
  const { host, repository, tag, digest } = source.reference;
  return digest !== undefined || tag === undefined ? null : formatReference({ host, repository, tag });
}
