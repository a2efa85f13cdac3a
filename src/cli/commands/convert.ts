/** `headstart convert`: lazy formats from any image, and back. */

import type { Command } from "commander";
import { HeadstartError } from "../../base/errors.ts";
import { type ConvertedToNydus, convertToNydus } from "../../convert/to-nydus.ts";
import { type ConvertedToOci, convertToOci, type HowConverted } from "../../convert/to-oci.ts";
import { type ConvertedToSoci, convertToSoci } from "../../convert/to-soci.ts";
import { openDestination, openSource } from "../../oci/open.ts";
import { formatPlatform } from "../../oci/platform.ts";
import { formatSource, parseSource } from "../../oci/reference.ts";
import { addNydusOptions, type NydusCliOptions, nydusOptions, openChunkDict } from "../nydus.ts";
import { addSociOptions, platformChoice, type SociCliOptions, showProgress, sociOptions } from "../soci.ts";
import { type AccessOptions, addSourceOptions, openOptions } from "../sources.ts";
import { formatBytes, formatPercent } from "../table.ts";

interface ConvertOptions extends AccessOptions, SociCliOptions, NydusCliOptions {
  readonly destCreds?: string;
  readonly to: string;
  readonly json?: boolean;
}

const FORMATS = ["soci", "nydus", "nydus-ref", "oci"] as const;
type Format = (typeof FORMATS)[number];

/** Options that not every format has. */
const OPTIONS_OF: Readonly<Record<string, readonly Format[]>> = {
  spanSize: ["soci"],
  minLayerSize: ["soci"],
  prefetchFile: ["soci"],
  prefetchFilesJson: ["soci"],
  optimizations: ["soci"],
  buildToolIdentifier: ["soci"],
  force: ["soci"],
  compressor: ["nydus"],
  compressionLevel: ["nydus"],
  chunkSize: ["nydus", "nydus-ref"],
  batchSize: ["nydus"],
  digester: ["nydus"],
  chunkDict: ["nydus"],
  prefetchPatterns: ["nydus", "nydus-ref"],
  mergeIndex: ["nydus", "nydus-ref"],
  withReferrer: ["nydus", "nydus-ref"],
};

export function registerConvert(program: Command): void {
  const command = program
    .command("convert <source> <destination>")
    .summary("make a lazily loadable image of any image, or a plain one again")
    .description(
      "Make a lazily loadable image of any image, or a plain one again. Registry to registry without a daemon; layers are streamed, never held.",
    )
    .requiredOption(
      "--to <FORMAT>",
      "soci: unmodified layers with an index that the manifest names (SOCI v2); nydus: chunked blobs and one merged tree (RAFS v6); nydus-ref: the same tree over the unmodified layers; oci: a plain image of a Nydus image",
    );
  addSociOptions(command, { group: "SOCI:" });
  addNydusOptions(command);
  addSourceOptions(command, { platform: false })
    .option("--dest-creds <USER:PASSWORD>", "for the registry of the destination")
    .option("--json", "one object")
    .addHelpText(
      "after",
      `
--to soci: the layers stay as they are, byte for byte. Converting a converted image changes
nothing. Attestations stay and are made to name the new manifest; signatures must be made
anew, since the image's digest changes.

--to nydus: every layer becomes a blob that also keeps what is needed to make its tar again.
--to nydus-ref: the layers are copied as they are, and the manifest refers to the OCI
manifest. A registry that deletes untagged manifests may delete them: --merge-index keeps
both under the tag. Layers that are compressed with zstd are refused.

--to oci: the layers themselves, of an OCI-ref image or of one beside its OCI form
("original"); tars with the diffIDs of before, of blobs that headstart made ("exact"); one
layer with the same tree ("equal"). The image that was once converted is not needed.

The same source and options give the same digest. --json prints {destination, digest, images}.

Examples:
  headstart convert docker://HOST/REPO:1 docker://HOST/REPO:1-soci --to soci
  headstart convert oci:./layout:v1 oci-archive:out.tar:v1 --to soci --all-platforms
  headstart convert HOST/REPO:1 HOST/REPO:1-nydus --to nydus --prefetch-patterns ./start.txt
  headstart convert HOST/REPO:1 HOST/REPO:1 --to nydus-ref --merge-index
  headstart convert HOST/REPO:2 HOST/REPO:2-nydus --to nydus --chunk-dict HOST/REPO:1-nydus
  headstart convert HOST/REPO:1-nydus oci:./layout:v1 --to oci
`,
    )
    .action(convert);
}

async function convert(from: string, to: string, options: ConvertOptions): Promise<void> {
  const format = checkFormat(options);
  const source = parseSource(from);
  const target = parseSource(to);
  const access = { source: options, target: { ...options, creds: options.destCreds } };
  await using stack = new AsyncDisposableStack();
  const reader = stack.use(await openSource(source, openOptions(source, access.source)));
  const writer = stack.use(await openDestination(target, openOptions(target, access.target)));
  const progress = showProgress(options.json === true);
  const common = { source: reader, destination: writer, tag: writer.tag, onProgress: progress.event };
  let result: ConvertedToSoci | ConvertedToNydus | ConvertedToOci;
  let lines: string[];
  if (format === "soci") {
    const soci = await convertToSoci({ ...common, ...sociOptions(options) });
    lines = sociLines(soci);
    result = soci;
  } else if (format === "oci") {
    const plain = await convertToOci({ ...common, platforms: platformChoice(options) });
    for (const image of plain.images) {
      process.stderr.write(`headstart: ${formatPlatform(image.platform)}: ${image.how}: ${HOW[image.how]}\n`);
      for (const path of image.leftOut) process.stderr.write(`headstart: ${path}: a layer cannot hold it, left out\n`);
    }
    lines = plainLines(plain);
    result = plain;
  } else {
    const dictionary =
      options.chunkDict === undefined ? undefined : await openChunkDict(options.chunkDict, target, access, stack);
    const nydus = await convertToNydus({
      ...common,
      ...(await nydusOptions(options)),
      platforms: platformChoice(options),
      mode: format === "nydus" ? "native" : "ref",
      dictionary,
    });
    for (const path of new Set(nydus.images.flatMap((image) => image.prefetchNotFound)))
      progress.note(`headstart: --prefetch-patterns: ${path}: nothing in the image has this path`);
    lines = nydusLines(nydus);
    result = nydus;
  }
  progress.done();
  const { root, images } = result;
  if (options.json) {
    process.stdout.write(`${JSON.stringify({ destination: formatSource(target), digest: root.digest, images })}\n`);
    return;
  }
  process.stdout.write(`${[...lines, `${formatSource(target)}  ${root.digest}`].join("\n")}\n`);
}

const HOW: Readonly<Record<HowConverted, string>> = {
  original: "the original layers, byte for byte",
  exact: "tars with the diffIDs of the image that was converted, compressed anew",
  equal: "one layer with the same tree; the image does not tell how its layers were",
};

/** Throws HS_USAGE. */
function checkFormat(options: ConvertOptions): Format {
  const format = FORMATS.find((known) => known === options.to);
  if (format === undefined)
    throw new HeadstartError("HS_USAGE", { what: `--to ${options.to}: one of ${FORMATS.join(", ")}` });
  for (const [name, formats] of Object.entries(OPTIONS_OF)) {
    if ((options as unknown as Readonly<Record<string, unknown>>)[name] === undefined || formats.includes(format))
      continue;
    const flag = `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
    throw new HeadstartError("HS_USAGE", { what: `${flag} is for --to ${formats.join(", --to ")}` });
  }
  return format;
}

function sociLines({ images }: ConvertedToSoci): string[] {
  return images.flatMap((image) => [
    `${formatPlatform(image.platform)}  ${image.index === null ? "no layer can be indexed: left as it is" : `${image.manifest}, index ${image.index}`}`,
    ...image.layers.map(
      (layer) =>
        `  layer ${layer.layer} -> ${layer.ztoc === null ? layer.reason : `ztoc ${layer.ztoc.digest} (${formatBytes(layer.ztoc.size)})`}`,
    ),
  ]);
}

function nydusLines({ images }: ConvertedToNydus): string[] {
  return images.flatMap((image) => {
    const sum = (sizes: readonly number[]) => sizes.reduce((total, size) => total + size, 0);
    const before = sum(image.layers.map(({ size }) => size));
    const after = sum(image.layers.map(({ blobSize }) => blobSize)) + image.bootstrap.size;
    return [
      `${formatPlatform(image.platform)}  ${image.manifest}, ${formatBytes(after)}: ${formatPercent(after, before)} of the layers' ${formatBytes(before)}`,
      ...image.layers.map(
        ({ layer, blob, blobSize, chunks }) =>
          `  layer ${layer} -> blob ${blob} (${formatBytes(blobSize)}, ${chunks} chunks)`,
      ),
      ...image.dictionary.map((blob) => `  blob ${blob} of the chunk dictionary`),
      `  bootstrap ${image.bootstrap.digest} (${formatBytes(image.bootstrap.size)})`,
    ];
  });
}

function plainLines({ images }: ConvertedToOci): string[] {
  return images.flatMap((image) => [
    `${formatPlatform(image.platform)}  ${image.manifest}, ${image.how}`,
    ...image.layers.map(({ layer, size }) => `  layer ${layer} (${formatBytes(size)})`),
  ]);
}
