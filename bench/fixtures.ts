/** Layers and images that the cases measure over: made of Debian packages, once, and cached beside the project. */

import { createCipheriv, createHash } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, open, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { createGunzip } from "node:zlib";
import { loadImage } from "../src/oci/manifest.ts";
import { openSource } from "../src/oci/open.ts";
import { parseSource } from "../src/oci/reference.ts";
import { cachedDirectory } from "../src/sandbox/cache.ts";
import { type DebianImage, writeDebianImage } from "../src/sandbox/debian-image.ts";
import { type BuiltLayer, gzipLayer } from "../src/sandbox/image-builder.ts";
import { copyMembers, listTar } from "../src/sandbox/tar-split.ts";
import { writeTar } from "../src/sandbox/tar-writer.ts";
import { say } from "./case.ts";

export interface BigLayer extends BuiltLayer {
  /** Of the tar.gz. */
  readonly path: string;
}

type Fields = Pick<BigLayer, "descriptor" | "diffID" | "size">;

/** A Debian root with Python, numpy, pandas, sympy and redis as one gzip layer: about 510 MB in 20 000 entries, 155 MB compressed by zlib at level 6. */
export async function bigLayer(): Promise<BigLayer> {
  const directory = await cachedDirectory("bench/big-layer-1", async (part) => {
    say("making one big layer (once)");
    const scratch = join(part, "scratch");
    await mkdir(scratch);
    const layer = await gzipLayer(concatenated(scratch), join(part, "layer.tar.gz"), "big");
    await rm(scratch, { recursive: true });
    const { descriptor, diffID, size } = layer;
    await writeFile(join(part, "layer.json"), JSON.stringify({ descriptor, diffID, size } satisfies Fields));
  });
  return await cachedLayer(directory, "big");
}

/** `count` layers of the big one's content, 510 MB and 20 000 entries each, every one with a file of its own: so that nobody can take one for another. */
export async function bigLayers(count: number): Promise<BigLayer[]> {
  const big = await bigLayer();
  const layers: BigLayer[] = [];
  for (let index = 0; index < count; index++) {
    const directory = await cachedDirectory(`bench/big-layer-1-${index}`, async (part) => {
      say(`making big layer ${index + 1} of ${count} (once)`);
      const own = writeTar([{ path: `layer-${index}`, data: String(index) }]).subarray(0, 2 * TAR_BLOCK);
      const tar = async function* () {
        yield own;
        yield* createReadStream(big.path).pipe(createGunzip());
      };
      const { descriptor, diffID, size } = await gzipLayer(tar(), join(part, "layer.tar.gz"), `big ${index}`);
      await writeFile(join(part, "layer.json"), JSON.stringify({ descriptor, diffID, size } satisfies Fields));
    });
    layers.push(await cachedLayer(directory, `big ${index}`));
  }
  return layers;
}

const TAR_BLOCK = 512;
const NOISE_FILES = 250;
const NOISE_FILE_BYTES = 2 ** 20;

/** A layer of 260 MB that no compression makes smaller, and that has nothing in common with any other. */
export async function noiseLayer(): Promise<BigLayer> {
  const directory = await cachedDirectory("bench/noise-layer-1", async (part) => {
    const tar = async function* () {
      const zeros = Buffer.alloc(NOISE_FILE_BYTES);
      for (let index = 0; index < NOISE_FILES; index++) {
        const key = createHash("sha256").update(String(index)).digest();
        const data = createCipheriv("aes-256-ctr", key, Buffer.alloc(16)).update(zeros);
        const last = index === NOISE_FILES - 1;
        // the end mark of every tar but the last is left out
        yield writeTar([{ path: `noise/${index}`, data }]).subarray(0, last ? undefined : TAR_BLOCK + NOISE_FILE_BYTES);
      }
    };
    const { descriptor, diffID, size } = await gzipLayer(tar(), join(part, "layer.tar.gz"), "noise");
    await writeFile(join(part, "layer.json"), JSON.stringify({ descriptor, diffID, size } satisfies Fields));
  });
  return await cachedLayer(directory, "noise");
}

async function cachedLayer(directory: string, createdBy: string): Promise<BigLayer> {
  const path = join(directory, "layer.tar.gz");
  const fields = JSON.parse(await readFile(join(directory, "layer.json"), "utf8")) as Fields;
  return { ...fields, path, source: () => createReadStream(path, { highWaterMark: 1 << 20 }), createdBy };
}

/** The tars of all Debian layers as one. */
async function* concatenated(scratch: string): AsyncGenerator<Uint8Array> {
  const layout = join(scratch, "layout");
  await writeDebianImage(layout, { name: "all", layers: ["python", "science", "redis"], application: [] }, say);
  await using reader = await openSource(parseSource(`oci:${layout}:all`));
  const { layers } = await loadImage(reader);
  const tar = join(scratch, "layer.tar");
  for (const [index, layer] of layers.entries()) {
    await pipeline(reader.openBlob(layer).stream(0, {}), createGunzip(), createWriteStream(tar));
    await using file = await open(tar, "r");
    const members = await listTar(file);
    const last = index === layers.length - 1;
    const end = members.at(-1)!.end;
    let left = last ? Number.POSITIVE_INFINITY : end;
    for await (const chunk of copyMembers(tar, members)) {
      // the end mark of every tar but the last is left out
      if (left > 0) yield chunk.subarray(0, Math.min(left, chunk.byteLength));
      left -= chunk.byteLength;
    }
  }
}

const PROGRAM = `
import asyncio, decimal, http.server, json, sqlite3, ssl, sys
print("python", sys.version.split()[0], "ready", sqlite3.connect(":memory:").execute("select 6 * 7").fetchone()[0], flush=True)
import time
time.sleep(3600)
`;

/** The image of `npm start`: 336 MB, of which a start needs a few per cent. */
export const PYTHON_IMAGE: DebianImage = {
  name: "python-app",
  layers: ["python", "science"],
  application: [{ path: "app/" }, { path: "app/main.py", data: PROGRAM }],
  command: ["/usr/bin/python3", "/app/main.py"],
};

export const PYTHON_READY = /^python 3\S* ready 42$/m;
