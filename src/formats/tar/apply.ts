/**
 * Entries, in the archive's order, to the tree of a layer: the steps of containerd's unpack (specs/layer.md 3 to 7, 9). It is their order that gives odd
 * layers their meaning, so they are kept as they are: clean the name, resolve the parent, make what is missing, marks, remove what stands there, create,
 * owner, xattrs, mode, time; directory times last.
 *
 * Entries may come from a tar or from a table of contents. Segments of the tree have the stream offset of their bytes as address. With `lowers` the
 * implied directories take their attributes from the layers below at the moment they are made; without, they are flagged and are 0755 0:0.
 *
 * Invariant: a tree comes out of finish() only when no entry was refused. Throws HS_LAYER_REFUSED and HS_LIMIT; after that the builder is useless.
 */

import { HeadstartError } from "../../base/errors.ts";
import { LIMITS, MiB } from "../../base/limits.ts";
import { type FileTree, FileType } from "../../erofs/file-tree.ts";
import { askLowers, ChainLayer } from "../../erofs/implied.ts";
import { cleanPath, joinPath, PathError, Resolver } from "../../erofs/root-path.ts";
import type { LayerRole } from "../format.ts";
import { Node, nodeView, type Segment, toFileTree } from "./nodes.ts";
import { paxText } from "./pax.ts";
import { type TarEntry, TarType } from "./records.ts";
import { type RefusalCode, refusal } from "./refusal.ts";
import { judgeXattr } from "./xattrs.ts";

export interface LayerTreeOptions {
  /** The layers below, lowest first, each resolved for the same chain: implied directories copy from them (specs/layer.md 5). Only for an upper layer. */
  readonly lowers?: readonly FileTree[];
}

export interface AddResult {
  /** The entry is a regular file whose stored bytes belong to the tree (unless a later entry removes it). */
  readonly dataWanted: boolean;
}

/** Rows of specs/layer.md 9 where containerd refuses and we do not. */
export type Contested = "C1" | "C2" | "C3" | "C5" | "C7";

const WANTED: AddResult = { dataWanted: true };
const UNWANTED: AddResult = { dataWanted: false };

const WHITEOUT_PREFIX = ".wh.";
const OPAQUE_MARK = ".wh..wh..opq";
const XATTR_PREFIX = "SCHILY.xattr.";
/** 2262-04-11T23:47:16.854775807Z: what 64 bits of nanoseconds hold. */
const TIME_MAX = { seconds: 9_223_372_036, nanoseconds: 854_775_807 };
/**
 * Memory that the entries of one layer may take, by a rough count: 1.5 million ordinary entries. Keeps a layer of nothing but headers (which compress a
 * thousandfold) from taking the process down.
 */
const MEMORY_MAX = 1024 * MiB;
const ENTRY_COST = 700;

interface DirectoryEntry {
  readonly number: number;
  readonly path: string;
  readonly seconds: number;
  readonly nanoseconds: number;
}

export class LayerTreeBuilder {
  readonly #role: LayerRole;
  readonly #layer: string;
  readonly #lowers: readonly ChainLayer[] | null;
  readonly #root = new Node(FileType.directory);
  readonly #resolver: Resolver<Node>;
  /** Same tree, whiteouts not hidden. */
  readonly #lookup: Resolver<Node>;
  readonly #directoryEntries: DirectoryEntry[] = [];
  /** Lowest: paths of removed things that an entry of their own path had made (6.2: "what was never made by an entry of its own path"). */
  readonly #removedMade = new Set<string>();
  readonly #contested = new Set<Contested>();
  #hasMarks = false;
  #memory = 0;
  #entry: TarEntry | null = null;

  /** The parent that was resolved last: most entries lie beside the one before. Dropped when anything is removed. */
  #lastParent: { readonly path: string; readonly resolved: string; readonly node: Node } | null = null;

  /** `layer` names the layer in errors: its digest. */
  constructor(role: LayerRole, layer: string, options: LayerTreeOptions = {}) {
    this.#role = role;
    this.#layer = layer;
    this.#lowers = options.lowers?.map((tree) => new ChainLayer(tree)) ?? null;
    this.#root.mode = 0o755;
    this.#root.made = true;
    this.#resolver = new Resolver(nodeView(this.#root, role === "upper"));
    this.#lookup = new Resolver(nodeView(this.#root, false));
  }

  /** What containerd would have refused in this layer so far; C7 is known only with `lowers`. */
  get contested(): ReadonlySet<Contested> {
    return this.#contested;
  }

  add(entry: TarEntry): AddResult {
    this.#entry = entry;
    this.#account(ENTRY_COST + entry.name.byteLength + entry.linkname.byteLength);
    const path = this.#cleanName(entry);
    if (path === "/") return UNWANTED;
    const slash = path.lastIndexOf("/");
    const base = path.slice(slash + 1);
    const parent = this.#parent(slash === 0 ? "/" : path.slice(0, slash));
    if (base.startsWith(WHITEOUT_PREFIX)) {
      this.#mark(parent, base, entry);
      return UNWANTED;
    }
    const there = parent.node.children!.get(base);
    const isDirectory = entry.type === TarType.directory;
    if (there !== undefined && !(isDirectory && there.children !== null)) this.#remove(parent, base, there);
    if (entry.type === TarType.globalHeader) {
      if (this.#role === "lowest") this.#removedMade.add(childPath(parent.resolved, base));
      return UNWANTED;
    }
    const node = this.#create(entry, parent.node, base);
    if (isDirectory) {
      node.made = true;
      this.#account(path.length);
      const time = boundTime(entry);
      this.#directoryEntries.push({ number: entry.number, path, ...time });
    }
    this.#setAttributes(node, entry);
    return node.segments.length > 0 && entry.type === TarType.regular ? WANTED : UNWANTED;
  }

  /** The layer's tree, after the last entry. `hasMarks` is true if any mark was met, whatever became of it. */
  finish(): FileTree {
    this.#setDirectoryTimes();
    if (this.#lowers !== null) leaveOutBlocked(this.#root);
    const tree = toFileTree(this.#root);
    return tree.hasMarks === this.#hasMarks ? tree : { ...tree, hasMarks: tree.hasMarks || this.#hasMarks };
  }

  #cleanName(entry: TarEntry): string {
    const name = paxText(entry.name);
    if (name.includes("\0")) throw this.#refuse("name", "a NUL in the name");
    const path = cleanName(name);
    if (path.length > LIMITS.pathBytes) throw this.#refuse("name", `the path is longer than ${LIMITS.pathBytes} bytes`);
    if (path.length > LIMITS.nameBytes) {
      const names = path.split("/");
      for (let index = 0; index < names.length; index++) {
        // a whiteout's own name is longer by its prefix
        const mark = index === names.length - 1 && names[index]!.startsWith(WHITEOUT_PREFIX);
        if (names[index]!.length > LIMITS.nameBytes + (mark ? WHITEOUT_PREFIX.length : 0)) {
          throw this.#refuse("name", `a component of the path is longer than ${LIMITS.nameBytes} bytes`);
        }
      }
    }
    return path;
  }

  /** Resolves the parent in this layer's tree and makes what is missing (specs/layer.md 4.1, steps 2 and 3). */
  #parent(path: string): { readonly path: string; readonly resolved: string; readonly node: Node } {
    if (this.#lastParent !== null && this.#lastParent.path === path) return this.#lastParent;
    const resolved = this.#resolve(path, "parent");
    let node = this.#root;
    let end = 0;
    while (end < resolved.length && resolved !== "/") {
      const start = end + 1;
      end = resolved.indexOf("/", start);
      if (end < 0) end = resolved.length;
      const name = resolved.slice(start, end);
      let child = node.children!.get(name);
      if (child === undefined) {
        child = this.#makeImplied(node, name, resolved.slice(0, end));
      } else if (child.children === null) {
        if (this.#role === "lowest" || !child.isWhiteout) {
          throw this.#refuse("parent", "a parent of the entry is no directory");
        }
        // C5: below a whiteout of this layer stands a new directory that shows nothing of the layers below
        this.#contested.add("C5");
        child = this.#makeDirectory(node, name);
        child.opaque = true;
      }
      node = child;
    }
    this.#lastParent = { path, resolved, node };
    return this.#lastParent;
  }

  #makeDirectory(parent: Node, name: string): Node {
    const directory = new Node(FileType.directory);
    directory.inherit(parent, 0o755);
    parent.children!.set(name, directory);
    this.#account(ENTRY_COST + name.length);
    return directory;
  }

  #makeImplied(parent: Node, name: string, path: string): Node {
    const directory = this.#makeDirectory(parent, name);
    directory.implied = true;
    if (this.#lowers === null || this.#role === "lowest") return directory;
    const source = askLowers(this.#lowers, path);
    if (source.kind === "blocked") {
      this.#contested.add("C7");
      directory.blocked = true;
      directory.gid = 0;
    }
    if (source.kind === "directory") {
      const { attributes } = source;
      directory.uid = attributes.uid;
      directory.gid = attributes.gid;
      directory.chmod(attributes.mode);
      directory.mtimeSeconds = attributes.mtimeSeconds;
      directory.mtimeNanoseconds = attributes.mtimeNanoseconds;
      for (const [xattr, value] of attributes.xattrs) directory.setXattr(xattr, value);
    }
    return directory;
  }

  #resolve(path: string, code: RefusalCode): string {
    try {
      const resolved = this.#resolver.resolve(path);
      if (resolved.length <= LIMITS.pathBytes) return resolved;
      throw new PathError("too-long");
    } catch (error) {
      if (!(error instanceof PathError)) throw error;
      throw this.#refuse(code, PATH_REASONS[error.reason]);
    }
  }

  /** Specs/layer.md 6. */
  #mark(parent: { readonly resolved: string; readonly node: Node }, base: string, entry: TarEntry): void {
    this.#hasMarks = true;
    if (base === OPAQUE_MARK) {
      if (this.#role === "lowest") this.#removeUnmade(parent);
      else if (parent.node !== this.#root) parent.node.opaque = true;
      return;
    }
    const name = base.slice(WHITEOUT_PREFIX.length);
    if (name === "" || name === "." || name === "..") throw this.#refuse("whiteout-name", "a whiteout of no name");
    const there = parent.node.children!.get(name);
    if (this.#role === "lowest") {
      if (there !== undefined) this.#remove(parent, name, there);
      return;
    }
    if (there === undefined) {
      const whiteout = new Node(FileType.char);
      whiteout.inherit(parent.node, 0);
      whiteout.chown(entry.uid, entry.gid);
      parent.node.children!.set(name, whiteout);
    } else if (there.children !== null) {
      // a new directory, nothing from below
      this.#contested.add("C2");
      there.opaque = true;
      if (there.implied) this.#makeOwn(there, parent.node);
    } else {
      // what stands there stays
      this.#contested.add(there.isWhiteout ? "C3" : "C1");
    }
  }

  /** An implied directory that takes nothing from below any more. */
  #makeOwn(directory: Node, parent: Node): void {
    directory.implied = false;
    directory.blocked = false;
    directory.uid = 0;
    directory.gid = 0;
    directory.mtimeSeconds = 0;
    directory.mtimeNanoseconds = 0;
    directory.xattrs = null;
    directory.inherit(parent, 0o755);
  }

  #remove(parent: { readonly resolved: string; readonly node: Node }, name: string, node: Node): void {
    parent.node.children!.delete(name);
    this.#lastParent = null;
    if (this.#role === "lowest") this.#rememberMade(childPath(parent.resolved, name), node);
  }

  #rememberMade(path: string, node: Node): void {
    const stack: [string, Node][] = [[path, node]];
    for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
      if (top[1].children === null || top[1].made) {
        this.#account(top[0].length);
        this.#removedMade.add(top[0]);
      }
      for (const [name, child] of top[1].children ?? []) stack.push([childPath(top[0], name), child]);
    }
  }

  /** An opaque mark in the lowest layer removes what was never made by an entry of its own path, with all that is in it. */
  #removeUnmade(parent: { readonly resolved: string; readonly node: Node }): void {
    const stack = [parent];
    for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
      for (const [name, child] of top.node.children!) {
        if (child.children === null) continue;
        const resolved = childPath(top.resolved, name);
        if (child.made || this.#removedMade.has(resolved)) stack.push({ resolved, node: child });
        else this.#remove(top, name, child);
      }
    }
  }

  #create(entry: TarEntry, parent: Node, base: string): Node {
    const mode = entry.mode & 0o7777;
    let node: Node;
    switch (entry.type) {
      case TarType.directory: {
        const there = parent.children!.get(base);
        if (there !== undefined) {
          if (there.implied) there.impliedFirst = true;
          there.implied = false;
          there.blocked = false;
          return there;
        }
        node = new Node(FileType.directory);
        break;
      }
      case TarType.regular:
        node = new Node(FileType.regular);
        node.size = entry.size;
        node.segments = this.#segments(entry);
        break;
      case TarType.symlink: {
        const target = paxText(entry.linkname);
        if (target.length === 0 || target.length > LIMITS.symlinkBytes || target.includes("\0")) {
          throw this.#refuse("name", `a symlink's target is empty or longer than ${LIMITS.symlinkBytes} bytes`);
        }
        node = new Node(FileType.symlink);
        node.target = target;
        break;
      }
      case TarType.char:
      case TarType.block:
        node = new Node(entry.type === TarType.char ? FileType.char : FileType.block);
        // what mknod(2) has room for
        node.rdevMajor = entry.devMajor & 0xfff;
        node.rdevMinor = entry.devMinor & 0xf_ffff;
        break;
      case TarType.fifo:
        node = new Node(FileType.fifo);
        break;
      case TarType.hardLink:
        node = this.#linkTarget(entry);
        parent.children!.set(base, node);
        return node;
      default:
        throw this.#refuse("type", `an entry of type ${JSON.stringify(String.fromCharCode(entry.type))}`);
    }
    node.inherit(parent, node.type === FileType.symlink ? 0o777 : mode);
    parent.children!.set(base, node);
    return node;
  }

  #segments(entry: TarEntry): readonly Segment[] {
    if (entry.sparse === null) {
      if (entry.size === 0) return [];
      return [{ fileOffset: 0, length: entry.size, address: entry.dataOffset }];
    }
    const segments: Segment[] = [];
    let address = entry.dataOffset;
    for (const { offset, length } of entry.sparse) {
      if (length > 0) segments.push({ fileOffset: offset, length, address });
      address += length;
    }
    if (address - entry.dataOffset !== entry.storedSize) {
      throw this.#refuse("sparse", "the data are more or less than the pieces of the sparse file");
    }
    this.#account(segments.length * 24);
    return segments;
  }

  /** The target is asked for in this layer's tree as it is now: links in its directory part are followed, the last component is not. */
  #linkTarget(entry: TarEntry): Node {
    const name = paxText(entry.linkname);
    if (name.includes("\0")) throw this.#refuse("link", "a NUL in the hard link's target");
    const slash = name.lastIndexOf("/");
    // without the usual "./" or "/" in front the path is one that needs no cleaning
    const directory = slash < 0 ? "/" : this.#resolve(`/${name.slice(0, slash).replace(/^(?:\.?\/)+/, "")}`, "link");
    const target = this.#lookup.at(joinPath(directory, name.slice(slash + 1)));
    if (target === undefined) throw this.#refuse("link", "the hard link's target is not in this layer, or not yet");
    if (target.children !== null) throw this.#refuse("link", "the hard link's target is a directory");
    return target;
  }

  /** Owner, xattrs, mode, time, in this order (specs/layer.md 7). */
  #setAttributes(node: Node, entry: TarEntry): void {
    node.chown(entry.uid, entry.gid);
    for (const [key, value] of entry.pax) {
      if (!key.startsWith(XATTR_PREFIX)) continue;
      const name = key.slice(XATTR_PREFIX.length);
      const verdict = judgeXattr(node.type, name, value);
      if (verdict === "drop") continue;
      if (verdict !== "set") throw this.#refuse("xattr", verdict.reason);
      this.#account(ENTRY_COST / 4 + name.length + value.byteLength);
      node.setXattr(name, value);
    }
    if (node.type !== FileType.symlink) node.chmod(entry.mode & 0o7777);
    const time = boundTime(entry);
    node.mtimeSeconds = time.seconds;
    node.mtimeNanoseconds = time.nanoseconds;
  }

  /** For every directory entry in order its name is resolved again, and what is found gets its time (specs/layer.md 4.1 step 8). */
  #setDirectoryTimes(): void {
    for (const { number, path, seconds, nanoseconds } of this.#directoryEntries) {
      let node: Node | undefined;
      try {
        node = this.#lookup.at(this.#lookup.resolve(path));
      } catch (error) {
        if (!(error instanceof PathError)) throw error;
      }
      if (node === undefined) {
        throw refusal("directory-lost", "the directory of this entry is not there at the end of the archive", {
          layer: this.#layer,
          entry: number,
          name: path,
        });
      }
      node.mtimeSeconds = seconds;
      node.mtimeNanoseconds = nanoseconds;
    }
  }

  #account(bytes: number): void {
    this.#memory += bytes;
    if (this.#memory > MEMORY_MAX) {
      throw new HeadstartError("HS_LIMIT", {
        what: `layer ${this.#layer}: its names and attributes take more than ${MEMORY_MAX} bytes`,
      });
    }
  }

  #refuse(code: RefusalCode, reason: string): HeadstartError {
    const entry = this.#entry!;
    return refusal(code, reason, {
      layer: this.#layer,
      entry: entry.number,
      name: entry.name,
      offset: entry.headerOffset,
    });
  }
}

const PATH_REASONS = {
  "not-directory": "a parent of the path is no directory",
  loop: "a loop of symlinks, or more than 255 of them",
  "too-long": "the path is too long with its symlinks followed",
  "too-costly": "the symlinks of this layer are a maze",
} as const;

/** Times that containerd does not take become 0. */
function boundTime(entry: TarEntry): { readonly seconds: number; readonly nanoseconds: number } {
  const seconds = entry.mtimeSeconds;
  const nanoseconds = entry.mtimeNanoseconds;
  const late = seconds > TIME_MAX.seconds || (seconds === TIME_MAX.seconds && nanoseconds > TIME_MAX.nanoseconds);
  return seconds < 0 || late ? { seconds: 0, nanoseconds: 0 } : { seconds, nanoseconds };
}

/** cleanPath, quickly for the names that nearly all entries have: nothing to clean but "./" or "/" in front and one slash behind. */
function cleanName(name: string): string {
  const start = name.startsWith("./") ? 2 : name.startsWith("/") ? 1 : 0;
  const end = name.length > start && name.endsWith("/") ? name.length - 1 : name.length;
  const core = start === 0 && end === name.length ? name : name.slice(start, end);
  return core === "" || UNCLEAN.test(core) ? cleanPath(name) : `/${core}`;
}

/** A component that is empty or of dots. */
const UNCLEAN = /^\/|\/\/|\/$|(?:^|\/)\.\.?(?:\/|$)/;

function childPath(directory: string, name: string): string {
  return directory === "/" ? `/${name}` : `${directory}/${name}`;
}

/** C7: an implied directory in whose way a lower layer has a non-directory is left out when nothing but marks is below it. */
function leaveOutBlocked(root: Node): void {
  const stack = [root];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    for (const [name, child] of top.children!) {
      if (child.children === null) continue;
      if (child.blocked && child.implied && holdsOnlyMarks(child)) top.children!.delete(name);
      else stack.push(child);
    }
  }
}

function holdsOnlyMarks(directory: Node): boolean {
  const stack = [directory];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    for (const child of top.children!.values()) {
      if (child.children !== null) {
        if (!child.implied) return false;
        stack.push(child);
      } else if (!child.isWhiteout) return false;
    }
  }
  return true;
}
