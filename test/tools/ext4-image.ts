/** ext4 images as files and as mounts, for tests: a tree is written with data made from addresses, checked by e2fsck, mounted through a loop device. */

import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { open } from "node:fs/promises";
import type { FileTree } from "../../src/erofs/file-tree.ts";
import { type TreeLine, treeLines } from "../../src/erofs/tree-lines.ts";
import { unmount } from "../../src/linux/mount.ts";
import { type Ext4Layout, type Ext4Options, layoutExt4 } from "../../src/volume/ext4/layout.ts";
import type { Ext4Reader } from "../../src/volume/ext4/read.ts";
import { type ContentSource, fileSink, writeExt4 } from "../../src/volume/ext4/write.ts";
import { type Listing, listMount, listTree } from "./erofs-image.ts";
import { fillFromAddress } from "./random-tree.ts";

export const UUID = Buffer.from("11111111222243338444555555555555", "hex");
export const HASH_SEED = Buffer.from("aaaaaaaabbbb4ccc8dddeeeeeeeeeeee", "hex");
export const TIME = 1_700_000_000;
export const MiB = 1024 * 1024;

/** Options of a small file system with what a test needs changed. */
export function ext4Options(changes: Partial<Ext4Options> = {}): Ext4Options {
  return { size: { free: 0, unit: MiB }, uuid: UUID, hashSeed: HASH_SEED, time: TIME, ...changes };
}

const PIECE = 64 * 1024;

/** Contents as test/tools/random-tree.ts imagines them, in pieces as a stream gives them. */
export const addressContent: ContentSource = function* ({ address, length }) {
  for (let done = 0; done < length; done += PIECE) {
    yield fillFromAddress(new Uint8Array(Math.min(PIECE, length - done)), address + done);
  }
};

export async function writeLayout(path: string, layout: Ext4Layout, content = addressContent): Promise<void> {
  await using file = await open(path, "w");
  await file.truncate(layout.size);
  await writeExt4(layout, content, fileSink(file));
}

export async function writeTree(path: string, tree: FileTree, changes: Partial<Ext4Options> = {}): Promise<Ext4Layout> {
  const layout = layoutExt4(tree, ext4Options(changes));
  await writeLayout(path, layout);
  return layout;
}

/** The image in memory, whole. */
export async function imageBytes(layout: Ext4Layout, content = addressContent): Promise<Uint8Array> {
  const bytes = new Uint8Array(layout.size);
  await writeExt4(layout, content, { write: (offset, piece) => bytes.set(piece, offset) });
  return bytes;
}

/** Throws with e2fsck's words when the image is not clean. */
export function fsckExt4(path: string): void {
  const result = spawnSync("e2fsck", ["-f", "-n", path], { encoding: "utf8" });
  // what -n would mend it asks and answers itself; not all of it shows in the status
  if (result.status !== 0 || /\? no/.test(result.stdout)) {
    throw new Error(`e2fsck ${path}: status ${result.status}\n${result.stdout}${result.stderr}`);
  }
}

export function mountExt4(path: string, target: string, options = "ro,noload"): Disposable {
  execFileSync("mount", ["-t", "ext4", "-o", `loop,${options}`, path, target]);
  return { [Symbol.dispose]: () => unmount(target) };
}

/** What a mount of the layout must show; lost+found, which the writer adds, left out. */
export function expectedListing(layout: Ext4Layout): Listing {
  const listing = listTree(layout.tree, layout.inodeOf);
  const links = (inode: number) => ` nlink=${layout.linksOf[inode]} `;
  listing.set(".", listing.get(".")!.replace(` nlink=${layout.tree.nlink[0]} `, links(0)));
  return listing;
}

export function mountedListing(root: string): Listing {
  const listing = listMount(root);
  listing.delete("./lost+found");
  return listing;
}

/** Tree lines of the tree that was written, with the hashes of what addressContent gives. */
export async function writtenLines(tree: FileTree): Promise<TreeLine[]> {
  return await collect(
    treeLines(tree, {
      sha256: (inode) => {
        const bytes = new Uint8Array(tree.size[inode]!);
        for (let at = tree.segmentStart[inode]!; at < tree.segmentStart[inode + 1]!; at++) {
          const start = tree.segmentFileOffset[at]!;
          fillFromAddress(bytes.subarray(start, start + tree.segmentLength[at]!), tree.segmentAddress[at]!);
        }
        return createHash("sha256").update(bytes).digest("hex");
      },
    }),
  );
}

/** Tree lines of an image as our reader sees it, without lost+found. */
export async function readLines(reader: Ext4Reader): Promise<TreeLine[]> {
  const { tree, inodeOf } = reader.toFileTree();
  const lines = await collect(
    treeLines(tree, {
      sha256: (inode) => {
        const bytes = reader.read(reader.inode(inodeOf[inode]!), 0, tree.size[inode]!);
        return createHash("sha256").update(bytes).digest("hex");
      },
    }),
  );
  return lines.filter(({ path }) => path !== "/lost+found");
}

async function collect<T>(values: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = [];
  for await (const value of values) list.push(value);
  return list;
}
