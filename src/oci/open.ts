/** From what a user names to a reader or a writer (design/cli.md, "Sources and destinations"). Wiring only. */

import { HeadstartError } from "../base/errors.ts";
import { openArchive } from "./archive.ts";
import { ArchiveWriter } from "./archive-write.ts";
import { CONTAINERD_ROOT, openContentStore } from "./content-store.ts";
import type { Descriptor } from "./descriptor.ts";
import { LayoutWriter, openLayout } from "./layout.ts";
import { formatSource, type ImageSource } from "./reference.ts";
import { Registry, type RegistryOptions } from "./registry/registry.ts";
import type { BlobSizes, ImageReader, ImageWriter } from "./store.ts";

/** What a running containerd knows about its images: given by whoever speaks gRPC. */
export interface ContainerdImages {
  /** The target of an image, by its full name. Throws HS_NOT_FOUND. */
  target(reference: string, signal?: AbortSignal): Promise<Descriptor>;
  /** containerd's root directory, where its content can be read: default /var/lib/containerd. */
  readonly root?: string;
}

export interface OpenOptions {
  /** Connections to share; otherwise some are opened for this source alone and closed with it. */
  readonly registry?: Registry;
  readonly registryOptions?: RegistryOptions;
  readonly containerd?: ContainerdImages;
  readonly signal?: AbortSignal;
}

/** Throws HS_NOT_FOUND, HS_CONFIG, HS_FORMAT_UNSUPPORTED for what is no OCI image (rafs:). */
export async function openSource(
  source: ImageSource,
  options: OpenOptions = {},
): Promise<ImageReader & BlobSizes & AsyncDisposable> {
  const what = formatSource(source);
  switch (source.kind) {
    case "registry":
      return openRepository(source, options);
    case "layout":
      return openLayout(source.directory, source, what);
    case "archive":
      return openArchive(source.file, source, what, options.signal);
    case "containerd": {
      const { containerd } = options;
      if (containerd === undefined)
        throw new HeadstartError("HS_USAGE", { what: `${what}: no containerd is connected` });
      const target = await containerd.target(source.reference, options.signal);
      return openContentStore(containerd.root ?? CONTAINERD_ROOT, target, what);
    }
    case "rafs":
      throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `${what}: a RAFS image has no OCI manifest` });
  }
}

/** `tag` of the result is what the destination names: pass it to the `pushManifest` of the topmost manifest. */
export async function openDestination(
  destination: ImageSource,
  options: OpenOptions = {},
): Promise<ImageWriter & AsyncDisposable & { readonly tag: string | undefined }> {
  const what = formatSource(destination);
  const digest = destination.kind === "registry" ? destination.reference.digest : undefined;
  if (digest !== undefined || ("digest" in destination && destination.digest !== undefined)) {
    throw new HeadstartError("HS_USAGE", { what: `${what}: a destination has a tag, its digest is what comes out` });
  }
  switch (destination.kind) {
    case "registry":
      return openRepository(destination, options);
    case "layout":
      return new LayoutWriter(destination.directory, destination.tag, what);
    case "archive":
      return ArchiveWriter.create(destination.file, destination.tag, what);
    case "containerd":
    case "rafs":
      throw new HeadstartError("HS_USAGE", { what: `${what} cannot be written to` });
  }
}

async function openRepository(source: ImageSource & { kind: "registry" }, options: OpenOptions) {
  if (options.registry !== undefined) return options.registry.repository(source.reference);
  const registry = new Registry(options.registryOptions);
  try {
    return await registry.repository(source.reference, registry);
  } catch (error) {
    await registry[Symbol.asyncDispose]();
    throw error;
  }
}
