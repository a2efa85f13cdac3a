/**
 * Ours against the real containerd, on random images of odd layers (specs/layer.md, head): where it unpacks, our tree is equal to what overlayfs shows; where it refuses,
 * so do we, or we accept by a contested row. HEADSTART_RANDOM_IMAGES=N and HEADSTART_SEED=N for long runs.
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { type TestContext, test } from "node:test";
import { isHeadstartError } from "../../src/base/errors.ts";
import { type FileTree, FileType } from "../../src/erofs/file-tree.ts";
import { layersToRebuild, resolveChain } from "../../src/erofs/implied.ts";
import { mergeTrees } from "../../src/erofs/overlay.ts";
import { compareTreeLines, type TreeLine, treeLines } from "../../src/erofs/tree-lines.ts";
import { LayerTreeBuilder } from "../../src/formats/tar/apply.ts";
import { TarReader } from "../../src/formats/tar/records.ts";
import { kernelLines } from "../tools/kernel-lines.ts";
import { randomImage } from "./random-layers.ts";
import { randomTar } from "./random-tars.ts";
import { Unpacker } from "./unpacker.ts";

const COUNT = Number(process.env.HEADSTART_RANDOM_IMAGES ?? 60);
const SEED = Number(process.env.HEADSTART_SEED ?? 1);

interface Ours {
  readonly trees: FileTree[];
  readonly contested: ReadonlySet<string>;
}

/** A string: why we refuse. */
function build(layers: readonly Uint8Array[], withLowers: boolean): Ours | string {
  const trees: FileTree[] = [];
  const contested = new Set<string>();
  for (const [index, bytes] of layers.entries()) {
    try {
      const builder = new LayerTreeBuilder(
        index === 0 ? "lowest" : "upper",
        `layer ${index}`,
        withLowers ? { lowers: [...trees] } : {},
      );
      const reader = new TarReader(
        { entry: (entry) => builder.add(entry).dataWanted, data() {} },
        { layer: `layer ${index}` },
      );
      reader.push(bytes);
      reader.finish();
      trees.push(builder.finish());
      for (const row of builder.contested) contested.add(row);
    } catch (error) {
      if (!isHeadstartError(error, "HS_LAYER_REFUSED")) throw error;
      return error.message;
    }
  }
  return { trees, contested };
}

async function linesOf(layers: readonly Uint8Array[], trees: readonly FileTree[]): Promise<TreeLine[]> {
  const merged = mergeTrees(trees);
  const lines: TreeLine[] = [];
  const sha256 = (inode: number) => {
    const { tree } = merged;
    const content = Buffer.alloc(tree.size[inode]!);
    for (let index = tree.segmentStart[inode]!; index < tree.segmentStart[inode + 1]!; index++) {
      const from = tree.segmentAddress[index]!;
      content.set(
        layers[merged.layer[inode]!]!.subarray(from, from + tree.segmentLength[index]!),
        tree.segmentFileOffset[index]!,
      );
    }
    assert.equal(tree.type[inode], FileType.regular);
    return createHash("sha256").update(content).digest("hex");
  };
  for await (const line of treeLines(merged.tree, { sha256 })) lines.push(line);
  return lines;
}

/** Most random images are refused: five of six are such that we accept them, the others as they come. */
function chooseImages(make: (seed: number) => Uint8Array[]): Uint8Array[][] {
  return Array.from({ length: COUNT }, (_, index) => {
    const seed = SEED * 1_000_003 + index * 64;
    for (let attempt = 0; attempt < 64; attempt++) {
      const layers = make(seed + attempt);
      if (index % 6 === 0 || typeof build(layers, true) !== "string") return layers;
    }
    return make(seed);
  });
}

/** Null: alike. */
async function compare(
  layers: readonly Uint8Array[],
  theirs: TreeLine[] | string,
  counts: Record<string, number>,
): Promise<unknown> {
  const count = (what: string) => {
    counts[what] = (counts[what] ?? 0) + 1;
    return null;
  };
  const ours = build(layers, true);
  if (typeof theirs === "string") {
    if (typeof ours === "string") return count("refused");
    return ours.contested.size > 0 ? count("contested") : `refused by containerd only: ${theirs.split("\n").at(-1)}`;
  }
  if (typeof ours === "string") return `refused by us only: ${ours}`;
  if (ours.contested.size > 0) return `containerd takes what we call ${[...ours.contested]}`;
  const differences = compareTreeLines(theirs, await linesOf(layers, ours.trees));
  if (differences.length > 0) return differences;
  const alone = build(layers, false);
  if (typeof alone === "string") return `refused by us without lowers: ${alone}`;
  if (layersToRebuild(resolveChain(alone.trees)).length > 0) return count("to be rebuilt");
  const apart = compareTreeLines(theirs, await linesOf(layers, alone.trees));
  return apart.length > 0 ? { layersAlone: apart } : count("equal");
}

test(`${COUNT} random images mean to us what they mean to containerd`, { timeout: 3_600_000 }, async (t) => {
  await compareAll(t, chooseImages(randomImage));
});

test(`${COUNT} random tars are read as containerd reads them`, { timeout: 3_600_000 }, async (t) => {
  await compareAll(
    t,
    chooseImages((seed) => [randomTar(seed)]),
  );
});

async function compareAll(t: TestContext, images: readonly Uint8Array[][]): Promise<void> {
  await using containerd = await Unpacker.start();
  await containerd.import(images);
  const started = BigInt(Date.now() - 1000) * 1_000_000n;
  const counts: Record<string, number> = {};
  const wrong: unknown[] = [];
  for (const [index, layers] of images.entries()) {
    const theirs = await containerd.look(index, (mountPoint) => kernelLines(mountPoint, started));
    const difference = await compare(layers, theirs, counts);
    if (difference !== null) wrong.push({ seed: SEED, image: index, difference, layers: layers.map(describe) });
    if (wrong.length >= 5) break;
  }
  t.diagnostic(JSON.stringify(counts));
  assert.deepEqual(wrong, []);
}

/** The entries of a layer, for a message. */
function describe(bytes: Uint8Array): string[] {
  const found: string[] = [];
  const text = (value: Uint8Array) => Buffer.from(value).toString("latin1");
  const reader = new TarReader(
    {
      entry({ type, name, linkname, mode, uid, gid, pax, devMajor }) {
        const xattrs = [...pax].map(([key, value]) => `${key}=${Buffer.from(value).toString("hex")}`);
        found.push(
          [String.fromCharCode(type), text(name), text(linkname), mode.toString(8), uid, gid, devMajor, ...xattrs].join(
            " ",
          ),
        );
        return false;
      },
      data() {},
    },
    { layer: "" },
  );
  try {
    reader.push(bytes);
  } catch {}
  return found;
}
