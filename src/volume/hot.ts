/**
 * The files that a start reads, first on the disk and in that order (specs/warm-volume.md 8.2): a node can then read one stretch ahead instead of touching blocks all
 * over the volume. A list names paths of the images' root file systems, as containers see them.
 */

import { readFileSync } from "node:fs";
import { type Digest, sha256 } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { type FileTree, FileType } from "../erofs/file-tree.ts";
import { mergeTrees } from "../erofs/overlay.ts";
import { PathError, Resolver } from "../erofs/root-path.ts";
import type { DiskLayout } from "./disk-layout.ts";
import { BLOCK } from "./ext4/ondisk.ts";
import type { VolumePlan } from "./plan.ts";
import { treePaths, treeView } from "./tree-view.ts";

export interface HotList {
  /** Absolute paths, or patterns with "*", "**" and "?". */
  readonly patterns: readonly string[];
  /** Of the list, for the manifest. */
  readonly digest: Digest;
}

export interface HotFiles {
  /** Snapshot and inode of its tree: regular files with data, each once. */
  readonly files: readonly { readonly id: number; readonly inode: number }[];
  /** Patterns that name nothing in any image. */
  readonly missing: readonly string[];
}

/** Its size is needed before the places that it tells are known. */
export const WARM_BYTES = 1024;

/** One path or pattern a line; "#" begins a comment. Throws HS_NOT_FOUND, HS_USAGE for an empty list. */
export function readHotList(file: string): HotList {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    throw new HeadstartError("HS_NOT_FOUND", { what: `--hot ${file}`, cause });
  }
  const lines = text.split("\n").map((line) => line.replace(/(^|\s)#.*$/, "").trim());
  const patterns = lines.filter((line) => line !== "").map((line) => (line.startsWith("/") ? line : `/${line}`));
  if (patterns.length === 0) throw new HeadstartError("HS_USAGE", { what: `--hot ${file}: no path in it` });
  return { patterns: [...new Set(patterns)], digest: sha256(Buffer.from(patterns.join("\n"))) };
}

/** Image by image, in the order of the list; what a pattern matches in the order of paths. Symbolic links are followed. */
export function findHot(plan: VolumePlan, trees: ReadonlyMap<number, FileTree>, list: HotList): HotFiles {
  const idOf = new Map(plan.snapshots.map(({ id, chainID }) => [chainID, id]));
  const files: { id: number; inode: number }[] = [];
  const known = new Set<string>();
  const missing = new Set(list.patterns);
  for (const image of plan.images) {
    if (image.chain.length === 0) continue;
    const ids = image.chain.map((chainID) => idOf.get(chainID)!);
    const merged = mergeTrees(ids.map((id) => trees.get(id)!));
    const search = new ImageSearch(merged.tree);
    for (const pattern of list.patterns) {
      for (const found of search.find(pattern)) {
        missing.delete(pattern);
        const place = { id: ids[merged.layer[found]!]!, inode: merged.inode[found]! };
        const key = `${place.id} ${place.inode}`;
        if (known.has(key)) continue;
        known.add(key);
        files.push(place);
      }
    }
  }
  return { files, missing: [...missing] };
}

class ImageSearch {
  readonly #tree: FileTree;
  readonly #resolver: Resolver<number>;
  #files: { readonly path: string; readonly inode: number }[] | undefined;

  constructor(tree: FileTree) {
    this.#tree = tree;
    this.#resolver = new Resolver(treeView(tree));
  }

  find(pattern: string): number[] {
    if (!/[*?]/.test(pattern)) {
      const inode = this.#at(Buffer.from(pattern).toString("latin1"));
      return inode === undefined || !this.#hasData(inode) ? [] : [inode];
    }
    const matches = globExpression(Buffer.from(pattern).toString("latin1"));
    this.#files ??= treePaths(this.#tree).filter(({ inode }) => this.#hasData(inode));
    return this.#files.filter(({ path }) => matches.test(path)).map(({ inode }) => inode);
  }

  #at(path: string): number | undefined {
    try {
      return this.#resolver.at(this.#resolver.resolve(path));
    } catch (error) {
      if (error instanceof PathError) return undefined;
      throw error;
    }
  }

  #hasData(inode: number): boolean {
    return (
      this.#tree.type[inode] === FileType.regular &&
      this.#tree.segmentStart[inode]! < this.#tree.segmentStart[inode + 1]!
    );
  }
}

/** "*" and "?" stay within a name, "**" does not. */
function globExpression(pattern: string): RegExp {
  const body = pattern.replace(/\*\*|[*?]|[.+^${}()|[\]\\]/g, (part) => {
    if (part === "**") return ".*";
    if (part === "*") return "[^/]*";
    return part === "?" ? "[^/]" : `\\${part}`;
  });
  return new RegExp(`^${body}$`, "s");
}

/** First byte on the disk, and how many: [offset, length]. */
export function hotRange(layout: DiskLayout): readonly [number, number] {
  const { startBlock, blockCount } = layout.placeOf.hot ?? { startBlock: 0, blockCount: 0 };
  return blockCount === 0 ? [0, 0] : [layout.base + startBlock * BLOCK, blockCount * BLOCK];
}

/** What the volume itself says of it, as JSON: padded with spaces, so that its size does not depend on it. */
export function warmFile(layout: DiskLayout, list: HotList): Uint8Array {
  const [offset, length] = hotRange(layout);
  const object = {
    schema: "headstart.warm/1",
    /** Of the file system's device. */
    region: [length === 0 ? 0 : offset - layout.base, length],
    source: list.digest,
  };
  const bytes = Buffer.alloc(WARM_BYTES, " ");
  bytes.write(JSON.stringify(object));
  bytes[WARM_BYTES - 1] = 0x0a;
  return bytes;
}
