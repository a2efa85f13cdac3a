/** What is known of a disk image before it is pushed: the block digests and images that PATH.json describes, or digests made from the file itself. */

import { readFileSync } from "node:fs";
import { type Digest, sha256 } from "../../base/digest.ts";
import { HeadstartError } from "../../base/errors.ts";
import { type BlockMap, type BlockRun, parseDescription, ZERO_BLOCK } from "./blocks.ts";
import { eachAtOnce } from "./parallel.ts";
import { BlockBuffers, type DiskImage } from "./source.ts";

export interface Description {
  readonly blocks: BlockMap | undefined;
  readonly unused: readonly BlockRun[];
  readonly images: readonly string[];
  readonly digest: Digest | undefined;
}

/** PATH.json, where there is one. Throws HS_VOLUME_CHANGED when it is of a file of another size. */
export function readDescription(path: string, image: DiskImage): Description {
  const file = `${path}.json`;
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(file);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT")
      return { blocks: undefined, unused: [], images: [], digest: undefined };
    throw new HeadstartError("HS_NOT_FOUND", { what: file, cause });
  }
  const described = parseDescription(bytes, file);
  const size = described?.sizeBytes;
  if (size !== undefined && size !== image.sizeBytes) {
    throw new HeadstartError("HS_VOLUME_CHANGED", {
      what: `${path} has ${image.sizeBytes} bytes, ${file} describes ${size}`,
    });
  }
  return {
    blocks: described?.blocks,
    unused: described?.unused ?? [],
    images: imageNames(bytes),
    digest: sha256(bytes),
  };
}

/** For a tag, so whatever cannot be read is left out. */
function imageNames(bytes: Uint8Array): string[] {
  const text = Buffer.from(bytes).toString("utf8");
  const document = JSON.parse(text) as { images?: unknown; predicate?: { headstart_volume?: { images?: unknown } } };
  const images = document.predicate?.headstart_volume?.images ?? document.images;
  if (!Array.isArray(images)) return [];
  return (images as { refs?: unknown; ref?: unknown }[]).flatMap(({ refs, ref }) => {
    const names = (Array.isArray(refs) ? refs : [ref]).filter((name) => typeof name === "string") as string[];
    const shortest = names.find((name) => !name.includes("@")) ?? names[0];
    return shortest === undefined ? [] : [shortest];
  });
}

/** One for each thread that hashes. */
export const HASHING_AT_ONCE = 4;

/** Reads the whole file but its holes. */
export async function hashImage(
  image: DiskImage,
  options: { readonly onHashed?: (done: number) => void; readonly signal?: AbortSignal | undefined },
): Promise<Map<number, string>> {
  const blocks = new Map<number, string>();
  const buffers = new BlockBuffers();
  let done = 0;
  await eachAtOnce(
    image.dataBlocks(),
    () => HASHING_AT_ONCE,
    (index) =>
      buffers.using(async (buffer) => {
        const { sha256: digest } = await image.read(index, buffer);
        if (digest !== ZERO_BLOCK) blocks.set(index, digest);
        options.onHashed?.(++done);
      }),
    { signal: options.signal },
  );
  return blocks;
}
