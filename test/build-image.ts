/**
 * Fixture images in ten lines: a list of layers, each a list of entries, becomes an image in an OCI layout.
 *
 *   await buildImage(layout, "tiny", [[{ path: "etc/motd", data: "hello\n" }], [{ path: "etc/.wh.motd" }]]);
 */

import type { Descriptor } from "../src/oci/descriptor.ts";
import { type Compression, type ImageSettings, layerOf, writeImage } from "../src/sandbox/image-builder.ts";
import { busyboxEntries } from "../src/sandbox/pause.ts";
import type { TarEntry } from "../src/sandbox/tar-writer.ts";

export interface BuildOptions extends Omit<ImageSettings, "name"> {
  readonly compression?: Compression;
}

/** The lowest layer first. Returns the manifest's descriptor. */
export function buildImage(
  layout: string,
  name: string,
  layers: readonly (readonly TarEntry[])[],
  options: BuildOptions = {},
): Promise<Descriptor> {
  const { compression = "gzip", ...settings } = options;
  const built = layers.map((entries, index) => layerOf(entries, { compression, createdBy: `layer ${index}` }));
  return writeImage(layout, built, { name, ...settings });
}

/** A lowest layer in which shell scripts run: busybox as sh, cat, ls, sleep and what else is asked for. */
export function shellLayer(applets: readonly string[] = []): Promise<TarEntry[]> {
  return busyboxEntries(["sh", "cat", "echo", "ls", "sleep", "stat", "sha256sum", ...applets]);
}
