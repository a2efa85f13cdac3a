/** How fast images become Nydus images and back, and how large they are: a Debian image of several layers, from a layout to nowhere. */

import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sha256 } from "../../src/base/digest.ts";
import { convertToNydus } from "../../src/convert/to-nydus.ts";
import { convertToOci } from "../../src/convert/to-oci.ts";
import { NYDUS_DEFAULTS } from "../../src/formats/nydus/write/options.ts";
import type { Descriptor } from "../../src/oci/descriptor.ts";
import { blobPath } from "../../src/oci/layout.ts";
import { loadImage } from "../../src/oci/manifest.ts";
import { openDestination, openSource } from "../../src/oci/open.ts";
import { parseSource } from "../../src/oci/reference.ts";
import { type BlobSource, type ImageWriter, openBlobSource, type StoredBlob } from "../../src/oci/store.ts";
import { DigestingStream } from "../../src/oci/verify.ts";
import { cachedDirectory } from "../../src/sandbox/cache.ts";
import { writeDebianImage } from "../../src/sandbox/debian-image.ts";
import { debianPackages } from "../../src/sandbox/packages.ts";
import { execute } from "../../src/sandbox/process.ts";
import { type BenchCase, type Report, say } from "../case.ts";
import { PYTHON_IMAGE } from "../fixtures.ts";

/** Takes everything and keeps nothing. */
class Nowhere implements ImageWriter {
  readonly what = "nowhere";
  /** Of blobs, each once. */
  readonly sizes = new Map<string, number>();

  async hasBlob(): Promise<boolean> {
    return false;
  }

  async pushBlob(descriptor: Descriptor, source: BlobSource): Promise<void> {
    await this.pushStream(openBlobSource(source));
    this.sizes.set(descriptor.digest, descriptor.size);
  }

  async pushStream(chunks: AsyncIterable<Uint8Array>): Promise<StoredBlob> {
    const digesting = new DigestingStream(chunks);
    for await (const _ of digesting);
    this.sizes.set(digesting.stored.digest, digesting.stored.size);
    return digesting.stored;
  }

  async pushManifest(bytes: Uint8Array, mediaType: string): Promise<Descriptor> {
    return { mediaType, digest: sha256(bytes), size: bytes.byteLength };
  }

  async finish(): Promise<void> {}
}

async function image() {
  const directory = await cachedDirectory("bench/python-image-1", async (part) => {
    say("making the image (once)");
    await writeDebianImage(join(part, "layout"), PYTHON_IMAGE, say);
  });
  const layout = join(directory, "layout");
  await using reader = await openSource(parseSource(`oci:${layout}:${PYTHON_IMAGE.name}`));
  const { layers } = await loadImage(reader);
  const files = layers.map(({ digest }) => blobPath(join(layout, "blobs"), digest));
  const unpacked = await execute("sh", ["-c", 'cat "$@" | gzip -dc | wc -c', "sh", ...files]);
  return {
    source: `oci:${layout}:${PYTHON_IMAGE.name}`,
    files,
    stored: layers.reduce((sum, { size }) => sum + size, 0),
    size: Number(unpacked.stdout),
  };
}

/** Uncompressed MB/s of reading the layers and compressing them again, as one stream, with two threads. */
async function recompress(files: readonly string[], size: number): Promise<number> {
  await debianPackages(["zstd"], say);
  const started = performance.now();
  await execute("sh", ["-c", 'cat "$@" | gzip -dc | zstd -3 -T2 -q -c > /dev/null', "sh", ...files]);
  return size / 1000 / (performance.now() - started);
}

async function convert(report: Report, mode: "native" | "ref"): Promise<void> {
  const { source, files, stored, size } = await image();
  const rates: number[] = [];
  let bytes = 0;
  for (let round = 0; round < 2; round++) {
    await using reader = await openSource(parseSource(source));
    const destination = new Nowhere();
    const started = performance.now();
    const { images } = await convertToNydus({
      source: reader,
      destination,
      mode,
      build: NYDUS_DEFAULTS,
      thorough: true,
    });
    rates.push(size / 1000 / (performance.now() - started));
    const [made] = images;
    bytes = made!.bootstrap.size + made!.layers.reduce((sum, { blobSize }) => sum + blobSize, 0);
  }
  const other = await recompress(files, size);
  report("first, with cold code", rates[0]!, "MB/s");
  report("second", rates[1]!, "MB/s");
  report("gzip -d | zstd -3 -T2 of the same layers", other, "MB/s");
  report("convert / recompress", rates[1]! / other, "x");
  report("Nydus / OCI layers", bytes / stored, "x");
  report("memory at most", process.resourceUsage().maxRSS / 1024, "MiB");
}

async function back(report: Report): Promise<void> {
  const { source, stored, size } = await image();
  const directory = join(tmpdir(), `headstart-bench-${process.pid}`);
  const nydus = `oci:${directory}:nydus`;
  try {
    await using from = await openSource(parseSource(source));
    await using to = await openDestination(parseSource(nydus));
    await convertToNydus({ source: from, destination: to, tag: to.tag, mode: "native", build: NYDUS_DEFAULTS });
    await using reader = await openSource(parseSource(nydus));
    const destination = new Nowhere();
    const started = performance.now();
    const { images } = await convertToOci({ source: reader, destination });
    report("rate", size / 1000 / (performance.now() - started), "MB/s");
    report("OCI layers after / before", images[0]!.layers.reduce((sum, layer) => sum + layer.size, 0) / stored, "x");
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

const ABOUT = "the image of npm start, uncompressed MB/s";

export const NYDUS_CASES: readonly BenchCase[] = [
  { name: "nydus.native", about: `native blobs of ${ABOUT}`, run: (report) => convert(report, "native") },
  { name: "nydus.ref", about: `indexes over the layers of ${ABOUT}`, run: (report) => convert(report, "ref") },
  { name: "nydus.back", about: `plain layers of native blobs of ${ABOUT}`, run: back },
];
