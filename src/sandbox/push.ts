/** From an OCI layout to a registry: one image, its manifest unchanged. */

import type { Descriptor } from "../oci/descriptor.ts";
import { openLayout } from "../oci/layout.ts";
import { loadImage } from "../oci/manifest.ts";
import { openDestination } from "../oci/open.ts";
import { parseSource } from "../oci/reference.ts";

/** `target` is "HOST:PORT/REPO:TAG". Returns the manifest's descriptor. */
export async function pushImage(
  layout: string,
  name: string,
  target: string,
  signal?: AbortSignal,
): Promise<Descriptor> {
  const what = `oci:${layout}:${name}`;
  await using source = await openLayout(layout, { tag: name }, what);
  await using destination = await openDestination(parseSource(`docker://${target}`));
  const image = await loadImage(source, undefined, signal);
  for (const blob of [...image.layers, image.configDescriptor]) {
    await destination.pushBlob(blob, () => source.openBlob(blob).stream(0, { signal }), { signal });
  }
  const { mediaType } = image.manifestDescriptor;
  const pushed = await destination.pushManifest(image.manifestBytes, mediaType, destination.tag, { signal });
  await destination.finish({ signal });
  return pushed;
}
