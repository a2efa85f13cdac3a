/** `headstart image ls|tree|cat|stat`: look into any image without pulling it. */

import { once } from "node:events";
import type { Command } from "commander";
import { HeadstartError } from "../../base/errors.ts";
import { childName, FileType, findChild } from "../../erofs/file-tree.ts";
import { treeInChain } from "../../erofs/overlay.ts";
import { bytesToText, type TreeLine, treeLines } from "../../erofs/tree-lines.ts";
import { findPath, type LookedImage, lookInto, readContent } from "../../image/look.ts";
import { lookIntoRafs } from "../../image/look-nydus.ts";
import { parseSource } from "../../oci/reference.ts";
import { openProgress } from "../progress.ts";
import { addSourceOptions, openNamed, platformOf, type SourceOptions } from "../sources.ts";
import { formatTable } from "../table.ts";

interface ImageOptions extends SourceOptions {
  readonly json?: boolean;
  readonly layer?: string;
}

export function registerImage(program: Command): void {
  const image = program
    .command("image")
    .summary("look into an image without pulling it")
    .description("Look into an image, in any format, without pulling it.")
    .addHelpText(
      "after",
      "\nExamples:\n  headstart image ls HOST/REPO:TAG /etc\n  headstart image cat HOST/REPO:TAG /etc/os-release\n",
    );
  addSourceOptions(
    image
      .command("ls <source> [path]")
      .summary("list a directory")
      .description(
        "List a directory of the merged root file system. With an index only its table of contents is fetched, of a Nydus image only its bootstrap.",
      )
      .option("--json", "one object a line: its name, and the fields of docs/formats.md"),
  )
    .addHelpText(
      "after",
      "\nExamples:\n  headstart image ls HOST/REPO:TAG /usr/bin\n  headstart image ls oci:./layout:v1 --platform linux/arm64 --json\n",
    )
    .action(async (source: string, path: string | undefined, options: ImageOptions) => {
      await withImage(source, options, false, async (looked) => {
        const { tree } = looked.merged;
        const inode = findPath(tree, path ?? "/", true);
        const lines = await linesByInode(looked);
        const names =
          tree.type[inode] === FileType.directory
            ? Array.from(
                { length: tree.childStart[inode + 1]! - tree.childStart[inode]! },
                (_, index) => tree.childStart[inode]! + index,
              ).map((dirent) => ({
                name: bytesToText(childName(tree, dirent)),
                inode: tree.childInode[dirent]!,
              }))
            : [{ name: path ?? "/", inode }];
        if (options.json) {
          for (const { name, inode: child } of names) await print(`${JSON.stringify({ name, ...lines.get(child) })}\n`);
          return;
        }
        const rows = names.map(({ name, inode: child }) => {
          const line = lines.get(child)!;
          const target = line.target === undefined ? "" : ` -> ${line.target}`;
          return [
            `${line.type} ${line.mode}`,
            `${line.uid}:${line.gid}`,
            line.size === undefined ? "" : String(line.size),
            timeText(line),
            `${name}${target}`,
          ];
        });
        if (rows.length > 0) await print(`${formatTable([["mode", "owner", "size", "modified", "name"], ...rows])}\n`);
      });
    });

  addSourceOptions(
    image
      .command("tree <source>")
      .summary("list every entry")
      .description(
        "Every entry of the merged root file system, sorted by path. With --json every layer is read whole, since contents are hashed.",
      )
      .option("--layer <N>", "one layer instead, 0 is the lowest: whiteouts and opaque marks as overlayfs has them")
      .option("--json", "one object a line (docs/formats.md)"),
  )
    .addHelpText(
      "after",
      "\nExamples:\n  headstart image tree HOST/REPO:TAG\n  headstart image tree oci:./layout:v1 --json --layer 0\n  headstart image tree rafs:./image.boot:./blobs\n",
    )
    .action(async (source: string, options: ImageOptions) => {
      await withImage(source, options, options.json === true, async (looked) => {
        for await (const line of linesOf(looked, options.layer)) {
          if (options.json) await print(`${JSON.stringify(line)}\n`);
          else
            await print(
              `${line.mode} ${String(line.uid)}:${String(line.gid)} ${line.size ?? "-"} ${line.path}${line.target === undefined ? "" : ` -> ${line.target}`}\n`,
            );
        }
      });
    });

  addSourceOptions(
    image
      .command("cat <source> <path>")
      .summary("print a file")
      .description(
        "Print the content of a file. With an index only the units that hold it are fetched, each verified.",
      ),
  )
    .addHelpText("after", "\nExamples:\n  headstart image cat HOST/REPO:TAG /etc/os-release\n")
    .action(async (source: string, path: string, options: ImageOptions) => {
      await withImage(source, options, false, async (looked) => {
        const inode = findPath(looked.merged.tree, path, true);
        for await (const bytes of readContent(looked, inode)) {
          if (!process.stdout.write(bytes)) await once(process.stdout, "drain");
        }
      });
    });

  addSourceOptions(
    image
      .command("stat <source> <path>")
      .summary("what is said about one path")
      .description(
        "What the image says about one path: attributes, xattrs, and the layer (of a Nydus image: the blobs) that it comes from. Symlinks are not followed.",
      )
      .option("--json", "one object: the fields of docs/formats.md, layer and layer_digest (of a Nydus image: blobs)"),
  )
    .addHelpText("after", "\nExamples:\n  headstart image stat HOST/REPO:TAG /usr/bin/python3\n")
    .action(async (source: string, path: string, options: ImageOptions) => {
      await withImage(source, options, false, async (looked) => {
        const inode = findPath(looked.merged.tree, path, false);
        const line = { ...(await linesByInode(looked)).get(inode), ...looked.origin(inode) };
        if (options.json) await print(`${JSON.stringify(line)}\n`);
        else
          for (const [key, value] of Object.entries(line))
            await print(`${key.padEnd(13)} ${typeof value === "object" ? JSON.stringify(value) : String(value)}\n`);
      });
    });
}

async function withImage(
  source: string,
  options: ImageOptions,
  hashContents: boolean,
  use: (looked: LookedImage) => Promise<void>,
): Promise<void> {
  const parsed = parseSource(source);
  if (parsed.kind === "rafs") {
    await use(await lookIntoRafs(parsed, { hashContents }));
    return;
  }
  await using reader = await openNamed(source, options);
  const progress = openProgress({ quiet: options.json === true });
  const looked = await lookInto(reader, {
    platform: platformOf(options),
    hashContents,
    onLayer: (position, count, how) =>
      progress.update(`layer ${position + 1} of ${count}: ${how === "index" ? "by its index" : "reading it whole"}`),
  });
  progress.done();
  await use(looked);
}

function linesOf(looked: LookedImage, layer: string | undefined): AsyncGenerator<TreeLine> {
  if (layer === undefined) {
    const { tree, layer: origin, inode: own } = looked.merged;
    const hashes = looked.layers.map((each) => each.contentSha256);
    return treeLines(tree, hashes[0] == null ? {} : { sha256: (inode) => hashes[origin[inode]!]!(own[inode]!) });
  }
  if (looked.kind === "nydus")
    throw new HeadstartError("HS_USAGE", {
      what: `--layer ${layer}: a Nydus image is one tree, it has no layers to show`,
    });
  const number = Number(layer);
  const one = looked.layers[number];
  if (!Number.isInteger(number) || one === undefined)
    throw new HeadstartError("HS_USAGE", {
      what: `--layer ${layer}: the image has layers 0 to ${looked.layers.length - 1}`,
    });
  // inodes keep their numbers only where nothing was taken from below: names lead to the layer's own
  const shown = treeInChain(
    looked.layers.map((each) => each.tree),
    number,
  );
  const hash = one.contentSha256;
  if (hash === null) return treeLines(shown);
  return treeLines(shown, { sha256: shown === one.tree ? hash : sameContent(shown, one.tree, hash) });
}

/** Content digests of `shown`, a copy of `own` with other attributes, found by walking both side by side. */
function sameContent(
  shown: LookedImage["merged"]["tree"],
  own: typeof shown,
  hash: (inode: number) => string,
): (inode: number) => string {
  const ownOf = new Map<number, number>([[0, 0]]);
  const stack = [0];
  for (let directory = stack.pop(); directory !== undefined; directory = stack.pop()) {
    for (let dirent = shown.childStart[directory]!; dirent < shown.childStart[directory + 1]!; dirent++) {
      const inode = shown.childInode[dirent]!;
      ownOf.set(inode, own.childInode[findChild(own, ownOf.get(directory)!, childName(shown, dirent))]!);
      if (shown.type[inode] === FileType.directory) stack.push(inode);
    }
  }
  return (inode) => hash(ownOf.get(inode)!);
}

/** treeLines goes by path; here by inode of the merged tree (any of its names). */
async function linesByInode(looked: LookedImage): Promise<Map<number, TreeLine>> {
  const { tree } = looked.merged;
  const found = new Map<number, TreeLine>();
  for await (const line of treeLines(tree)) found.set(findPath(tree, line.path, false), line);
  return found;
}

function timeText(line: TreeLine): string {
  return new Date(Number(BigInt(line.mtime_ns ?? "0") / 1_000_000n)).toISOString().slice(0, 19);
}

async function print(text: string): Promise<void> {
  if (!process.stdout.write(text)) await once(process.stdout, "drain");
}
