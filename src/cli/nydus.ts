/** Options of `convert --to nydus|nydus-ref`: flags as users of Nydus know them. */

import { statSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { type Command, Option } from "commander";
import { type Digest, digestHex } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { type DictionarySource, dictionaryOfBootstrap, dictionaryOfImage } from "../convert/nydus-dictionary.ts";
import type { ConvertToNydusOptions } from "../convert/to-nydus.ts";
import { defaultBatchSize, NYDUS_DEFAULTS, type NydusOptions } from "../formats/nydus/write/options.ts";
import { parsePrefetchPatterns } from "../formats/nydus/write/prefetch.ts";
import { BlobDirectory } from "../oci/blob-directory.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { loadImage } from "../oci/manifest.ts";
import { openSource } from "../oci/open.ts";
import { type ImageSource, parseSource } from "../oci/reference.ts";
import { type AccessOptions, openOptions } from "./sources.ts";

export interface NydusCliOptions {
  readonly compressor?: NydusOptions["compressor"];
  readonly compressionLevel?: string;
  readonly chunkSize?: string;
  readonly batchSize?: string;
  readonly digester?: NydusOptions["digester"];
  readonly chunkDict?: string;
  readonly prefetchPatterns?: string;
  readonly mergeIndex?: boolean;
  readonly withReferrer?: boolean;
}

const GROUP = "Nydus:";
const { compressor, compressionLevel, chunkSize, batchSize, digester } = NYDUS_DEFAULTS;

export function addNydusOptions(command: Command): Command {
  const options = [
    new Option("--compressor <NAME>", `of native blobs (default ${compressor})`).choices(["zstd", "lz4_block", "none"]),
    new Option(
      "--compression-level <N>",
      `of zstd, 1 to 22, batches three more (default ${compressionLevel}; of layers up to 1 MiB 19)`,
    ),
    new Option("--chunk-size <BYTES>", `files are cut into pieces of so many bytes (default ${chunkSize})`),
    new Option(
      "--batch-size <BYTES>",
      `small files are compressed together up to so many bytes, 0: each alone (default ${batchSize}; 0 without compression)`,
    ),
    new Option("--digester <NAME>", `of chunks (default ${digester})`).choices(["sha256", "blake3"]),
    new Option(
      "--chunk-dict <SOURCE|BOOTSTRAP>",
      "do not store chunks that this Nydus image has; of a bootstrap file the blobs are in the destination already",
    ),
    new Option("--prefetch-patterns <FILE>", "paths, one a line, in the order in which a start wants them"),
    new Option("--merge-index", "the OCI and the Nydus image under one tag"),
    new Option("--with-referrer", "the Nydus manifest names the OCI manifest as its subject (nydus-ref always does)"),
  ];
  for (const option of options) command.addOption(option.helpGroup(GROUP));
  return command;
}

/** Throws HS_USAGE. */
export async function nydusOptions(
  options: NydusCliOptions,
): Promise<Pick<ConvertToNydusOptions, "build" | "thorough" | "prefetch" | "mergeIndex" | "withReferrer">> {
  const { prefetchPatterns } = options;
  const chunks = {
    compressor: options.compressor ?? compressor,
    chunkSize: number("--chunk-size", options.chunkSize) ?? chunkSize,
  };
  return {
    build: {
      ...chunks,
      batchSize: number("--batch-size", options.batchSize) ?? defaultBatchSize(chunks),
      compressionLevel: number("--compression-level", options.compressionLevel) ?? compressionLevel,
      digester: options.digester ?? digester,
    },
    thorough: options.compressionLevel === undefined,
    // names are bytes: one char a byte
    prefetch:
      prefetchPatterns === undefined
        ? undefined
        : parsePrefetchPatterns(
            (await readNamed("--prefetch-patterns", prefetchPatterns)).toString("latin1"),
            prefetchPatterns,
          ),
    mergeIndex: options.mergeIndex,
    withReferrer: options.withReferrer,
  };
}

function number(flag: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const value = Number(text);
  if (!/^(?:\d+|0x[0-9a-f]+)$/i.test(text) || !Number.isSafeInteger(value))
    throw new HeadstartError("HS_USAGE", { what: `${flag} ${text}: a whole number is wanted` });
  return value;
}

async function readNamed(flag: string, file: string): Promise<Buffer> {
  return await readFile(file).catch((cause) => {
    throw new HeadstartError("HS_USAGE", { what: `${flag} ${file}: cannot be read`, cause });
  });
}

/** `target` is where the image goes. Opened sources are closed with `stack`. Throws HS_USAGE and what opening throws. */
export async function openChunkDict(
  name: string,
  target: ImageSource,
  access: { readonly source: AccessOptions; readonly target: AccessOptions },
  stack: AsyncDisposableStack,
): Promise<DictionarySource> {
  const file = name.replace(/^bootstrap=/, "");
  if (statSync(file, { throwIfNoEntry: false })?.isFile()) {
    const bytes = await readNamed("--chunk-dict", file);
    const blobs = stack.use(await openSource(target, openOptions(target, access.target)));
    return dictionaryOfBootstrap(bytes, blobs, `chunk dictionary ${file}`);
  }
  const source = parseSource(name);
  if (source.kind === "rafs") {
    const bytes = await readNamed("--chunk-dict", source.bootstrap);
    const directory = new BlobDirectory(source.blobs, name);
    const blobs = {
      what: name,
      openBlob: (descriptor: Descriptor) => directory.openBlob(descriptor),
      blobSize: (digest: Digest) => directory.size(digestHex(digest)),
    };
    return dictionaryOfBootstrap(bytes, blobs, `chunk dictionary ${name}`);
  }
  const reader = stack.use(await openSource(source, openOptions(source, access.source)));
  return await dictionaryOfImage(reader, await loadImage(reader));
}
