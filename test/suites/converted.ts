/** Conversions between places for tests: from any source to any destination, as the command line does them. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ConvertedToNydus, type ConvertToNydusOptions, convertToNydus } from "../../src/convert/to-nydus.ts";
import { type ConvertedToOci, type ConvertToOciOptions, convertToOci } from "../../src/convert/to-oci.ts";
import { type TreeLine, treeLines } from "../../src/erofs/tree-lines.ts";
import { NYDUS_DEFAULTS } from "../../src/formats/nydus/write/options.ts";
import { lookIntoImage } from "../../src/image/look.ts";
import type { Descriptor } from "../../src/oci/descriptor.ts";
import { type LoadedImage, loadManifest } from "../../src/oci/manifest.ts";
import { openDestination, openSource } from "../../src/oci/open.ts";
import { parsePlatform } from "../../src/oci/platform.ts";
import { parseSource } from "../../src/oci/reference.ts";
import type { BlobSizes, ImageReader } from "../../src/oci/store.ts";

export const AMD64 = [parsePlatform("linux/amd64")];

/** A folder for layouts; `place()` is the next one, as a source. */
export class Places implements Disposable {
  readonly root = mkdtempSync(join(tmpdir(), "headstart-convert-"));
  #count = 0;

  place(kind: "oci" | "oci-archive" = "oci"): string {
    return `${kind}:${join(this.root, String(this.#count++))}:out`;
  }

  [Symbol.dispose](): void {
    rmSync(this.root, { recursive: true, force: true });
  }
}

export async function toNydus(
  from: string,
  to: string,
  options: Partial<ConvertToNydusOptions> = {},
): Promise<ConvertedToNydus> {
  await using source = await openSource(parseSource(from));
  await using destination = await openDestination(parseSource(to));
  const common = { source, destination, tag: destination.tag, platforms: AMD64 };
  return await convertToNydus({ ...common, mode: "native", build: NYDUS_DEFAULTS, ...options });
}

export async function toOci(
  from: string,
  to: string,
  options: Partial<ConvertToOciOptions> = {},
): Promise<ConvertedToOci> {
  await using source = await openSource(parseSource(from));
  await using destination = await openDestination(parseSource(to));
  return await convertToOci({ source, destination, tag: destination.tag, platforms: AMD64, ...options });
}

export type Opened = ImageReader & BlobSizes & AsyncDisposable;

export function open(place: string): Promise<Opened> {
  return openSource(parseSource(place));
}

/** The image that a place names itself, or one of its index by digest. */
export async function load(reader: ImageReader, digest?: string): Promise<LoadedImage> {
  const root = await reader.resolve();
  if (digest === undefined || digest === root.digest) return await loadManifest(reader, root);
  const bytes = await reader.readManifest(digest as typeof root.digest);
  return await loadManifest(reader, {
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    digest: digest as typeof root.digest,
    size: bytes.byteLength,
  });
}

/** The merged tree with the content of every file. */
export async function treeOf(reader: ImageReader, image: LoadedImage): Promise<TreeLine[]> {
  const looked = await lookIntoImage(reader, image, { hashContents: true });
  const { tree, layer, inode: own } = looked.merged;
  const lines: TreeLine[] = [];
  const sha256 = (inode: number) => looked.layers[layer[inode]!]!.contentSha256!(own[inode]!);
  for await (const line of treeLines(tree, { sha256 })) lines.push(line);
  return lines;
}

/** The same source with other bytes in some blobs, as a stream: null leaves a blob as it is. */
export function withStreams(reader: Opened, bytesOf: (descriptor: Descriptor) => Uint8Array | null): Opened {
  return {
    what: reader.what,
    resolve: (signal) => reader.resolve(signal),
    readManifest: (manifest, signal) => reader.readManifest(manifest, signal),
    referrers: (subject, options) => reader.referrers(subject, options),
    blobSize: (digest, signal) => reader.blobSize(digest, signal),
    openBlob(descriptor) {
      const blob = reader.openBlob(descriptor);
      const bytes = bytesOf(descriptor);
      if (bytes === null) return blob;
      return {
        descriptor,
        what: blob.what,
        sourceCount: 1,
        async *stream() {
          yield bytes;
        },
        readRange: async (start, end) => bytes.subarray(start, end),
        readAll: async () => bytes,
      };
    },
    [Symbol.asyncDispose]: () => reader[Symbol.asyncDispose](),
  };
}
