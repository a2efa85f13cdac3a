/**
 * What `run`, `check` and `npm start` share: a folder of their own with a private registry, a meter in front of it and the pause image; and an image made reachable through the meter,
 * wherever it comes from. Ends with everything in it.
 */

import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Digest, isDigest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { Copier } from "../convert/copy.ts";
import { FORMATS } from "../formats/all.ts";
import { NYDUS_ANNOTATIONS } from "../formats/nydus/ondisk.ts";
import { annotation, type Descriptor } from "../oci/descriptor.ts";
import { type LoadedImage, loadImage } from "../oci/manifest.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import { openDestination } from "../oci/open.ts";
import type { Platform } from "../oci/platform.ts";
import { formatReference, type ImageSource, parseSource } from "../oci/reference.ts";
import type { BlobSizes, ImageReader } from "../oci/store.ts";
import type { Figures } from "./figures.ts";
import { leftBehind, takeInventory } from "./inventory.ts";
import { Meter, type MeterOptions } from "./meter.ts";
import type { Say } from "./packages.ts";
import { PAUSE_NAME, writePauseImage } from "./pause.ts";
import { pushImage } from "./push.ts";
import { Registry } from "./registry.ts";

/** An image that a node of the session can pull, and how. */
export interface Published {
  /** As containerd is asked for it. */
  readonly reference: string;
  /** In front of where it really is. */
  readonly meter: Meter;
  /** For nodes: registries that are asked through the meter. */
  readonly mirrors: Readonly<Record<string, string>>;
  readonly loaded: LoadedImage;
  readonly figures: Figures["image"];
}

export class Session implements AsyncDisposable {
  /** Short: sockets lie below. */
  readonly root: string;
  readonly registry: Registry;
  readonly meter: Meter;
  readonly #parts: AsyncDisposableStack;
  readonly #before: ReadonlySet<string>;
  #published = 0;

  static async open(options: { say: Say; meter?: MeterOptions }): Promise<Session> {
    await using parts = new AsyncDisposableStack();
    const root = await mkdtemp(join(tmpdir(), "headstart-"));
    parts.defer(() => rm(root, { recursive: true, force: true }));
    const before = takeInventory([root]);
    const registry = parts.use(await Registry.start(join(root, "r"), options.say));
    const meter = parts.use(await Meter.start(registry.host, options.meter));
    const layout = join(root, "pause");
    await writePauseImage(layout, options.say);
    await pushImage(layout, PAUSE_NAME, `${registry.host}/${PAUSE_NAME}:1`);
    return new Session(root, registry, meter, parts.move(), before);
  }

  private constructor(
    root: string,
    registry: Registry,
    meter: Meter,
    parts: AsyncDisposableStack,
    before: ReadonlySet<string>,
  ) {
    this.root = root;
    this.registry = registry;
    this.meter = meter;
    this.#parts = parts;
    this.#before = before;
  }

  get sandboxImage(): string {
    return `${this.meter.host}/${PAUSE_NAME}:1`;
  }

  /** `credentials` is "USER:PASSWORD" for the image's registry. An image of a registry stays there and is counted on the way; any other is copied into ours, with its bound index. */
  async publish(
    source: ImageSource,
    reader: ImageReader & BlobSizes,
    options: { platform: Platform; meter?: MeterOptions },
  ): Promise<Published> {
    const loaded = await loadImage(reader, options.platform);
    const common = (reference: string) => ({
      loaded,
      figures: {
        ref: reference,
        digest: loaded.manifestDescriptor.digest,
        bytes: loaded.layers.reduce((sum, layer) => sum + layer.size, loaded.configDescriptor.size),
        layers: loaded.layers.length,
      },
    });
    if (source.kind === "registry") {
      const { host } = source.reference;
      const upstream =
        host === "docker.io" ? "https://registry-1.docker.io" : isLoopback(host) ? `http://${host}` : `https://${host}`;
      const meter = this.#parts.use(await Meter.start(upstream, options.meter));
      const reference = formatReference(source.reference);
      return { reference, meter, mirrors: { [host]: `http://${meter.host}` }, ...common(reference) };
    }
    const name = `image-${++this.#published}`;
    const target = `${this.registry.host}/${name}:1`;
    await using destination = await openDestination(parseSource(`docker://${target}`));
    const copier = new Copier(reader, destination);
    for (const format of FORMATS) {
      const index = format.boundIndex(loaded.manifest);
      if (index !== null) await copier.tree(await describe(reader, index)).catch(() => undefined);
    }
    for (const layer of await originalLayers(reader, loaded.layers)) await copier.blob(layer);
    await copier.tree(loaded.manifestDescriptor, destination.tag);
    await destination.finish();
    const reference = `${this.meter.host}/${name}:1`;
    return { reference, meter: this.meter, mirrors: {}, ...common(reference) };
  }

  /** A folder for one node. */
  directory(name: string): string {
    return join(this.root, name);
  }

  /** Writes a docker configuration that only root reads, for a daemon that asks the meter where the image's registry wants credentials. Returns its folder. */
  async dockerConfig(host: string, userAndPassword: string): Promise<string> {
    const auth = Buffer.from(userAndPassword).toString("base64");
    await writeFile(join(this.root, "config.json"), JSON.stringify({ auths: { [host]: { auth } } }), { mode: 0o600 });
    return this.root;
  }

  /** Ends everything. Throws HS_INTERNAL when something is left mounted or running. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#parts.disposeAsync();
    const left = await leftBehind(this.#before, [this.root]);
    if (left.length > 0) throw new HeadstartError("HS_INTERNAL", { what: `left behind: ${left.join(", ")}` });
  }
}

async function describe(reader: ImageReader, digest: Digest): Promise<Descriptor> {
  const bytes = await reader.readManifest(digest);
  return { mediaType: MEDIA_TYPES.ociManifest, digest, size: bytes.byteLength };
}

/** What a Nydus image over unmodified layers reads from; its manifest does not list them. */
async function originalLayers(reader: BlobSizes, layers: readonly Descriptor[]): Promise<Descriptor[]> {
  const found: Descriptor[] = [];
  for (const layer of layers) {
    const digest = annotation(layer, NYDUS_ANNOTATIONS.ref);
    const size = isDigest(digest) ? await reader.blobSize(digest) : undefined;
    if (isDigest(digest) && size !== undefined) found.push({ mediaType: MEDIA_TYPES.octetStream, digest, size });
  }
  return found;
}

function isLoopback(host: string): boolean {
  return /^(?:localhost|127\.[\d.]+|\[::1\])(?::\d+)?$/.test(host);
}
