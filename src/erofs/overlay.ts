/**
 * What overlayfs shows of a stack of layers, computed from their trees (specs/layer.md 8), and the one small lower on top of a chain that gives implied
 * directories the attributes which a layer's own image cannot know (architecture, pull step 4). Pure functions; `trees` are lowest first, each as its
 * layer alone makes it, the first one in the role "lowest".
 */

import {
  childName,
  type FileTree,
  FileTreeBuilder,
  FileType,
  findChild,
  type InodeFields,
  inodeFieldsOf,
  isWhiteout,
  xattrName,
} from "./file-tree.ts";
import { type ChainLayer, type DirectoryAttributes, resolveChain, shownXattrs } from "./implied.ts";

export interface MergedTree {
  readonly tree: FileTree;
  /** Per inode of the tree: the layer (0 = lowest) and the inode there that its data and attributes come from. Of a directory: the topmost one. */
  readonly layer: Uint16Array;
  readonly inode: Uint32Array;
}

/** A directory of the merged view whose attributes in this chain are not those that the topmost layer's image shows. */
export interface ImpliedDirectory {
  /** One char a byte, absolute. */
  readonly path: string;
  readonly attributes: DirectoryAttributes;
}

/** The root file system that a container sees. Link counts are those of the layers, as overlayfs has them. */
export function mergeTrees(trees: readonly FileTree[]): MergedTree {
  if (trees.length === 1) return oneLayer(trees[0]!);
  const chain = resolveChain(trees);
  const builder = new FileTreeBuilder(directoryFields({ ...ROOT_ATTRIBUTES, xattrs: rootXattrs(chain) }));
  const origins: Place[] = [{ layer: Math.max(0, chain.length - 1), inode: 0 }];
  const known = chain.map(() => new Map<number, number>());
  const merged: number[] = [];
  const stack: { places: readonly Place[]; inode: number }[] = [
    { places: chain.map((_, layer) => ({ layer, inode: 0 })).reverse(), inode: 0 },
  ];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    const directories: typeof stack = [];
    for (const [name, found] of mergedChildren(chain, top.places)) {
      if (found.kind === "hidden" || found.kind === "left-out") continue;
      const bytes = Buffer.from(name, "latin1");
      const first = found.places[0]!;
      const layer = chain[first.layer]!;
      let inode = found.kind === "file" ? known[first.layer]!.get(first.inode) : undefined;
      if (inode === undefined) {
        inode = builder.addInode(
          found.kind === "file" ? fileFields(layer.tree, first.inode) : directoryFields(layer.attributes(first.inode)),
        );
        origins.push(first);
        if (found.kind === "file") known[first.layer]!.set(first.inode, inode);
        else directories.push({ places: found.places, inode });
        if (found.places.length > 1) merged.push(inode);
      }
      builder.addName(top.inode, bytes, inode);
    }
    while (directories.length > 0) stack.push(directories.pop()!);
  }
  const tree = builder.finish();
  for (const [inode, { layer, inode: own }] of origins.entries()) {
    if (tree.type[inode] !== FileType.directory) tree.nlink[inode] = chain[layer]!.tree.nlink[own]!;
  }
  for (const inode of merged) tree.nlink[inode] = 1;
  if (chain.length > 1) tree.nlink[0] = 1;
  return {
    tree,
    layer: Uint16Array.from(origins, ({ layer }) => layer),
    inode: Uint32Array.from(origins, ({ inode }) => inode),
  };
}

/** Layer `index` as its own directory looks in this chain: implied directories have what they took from below. */
export function treeInChain(trees: readonly FileTree[], index: number): FileTree {
  const chain = resolveChain(trees.slice(0, index + 1));
  const layer = chain.at(-1)!;
  if (layer.taken.size === 0 && layer.leftOut.size === 0) return layer.tree;
  const { tree } = layer;
  const copy = new FileTreeBuilder(inodeFields(layer, 0));
  const numbers = new Map<number, number>([[0, 0]]);
  const stack = [0];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    for (let dirent = tree.childStart[top]!; dirent < tree.childStart[top + 1]!; dirent++) {
      const inode = tree.childInode[dirent]!;
      if (layer.leftOut.has(inode)) continue;
      let number = numbers.get(inode);
      if (number === undefined) {
        number = copy.addInode(inodeFields(layer, inode));
        numbers.set(inode, number);
        if (tree.type[inode] === FileType.directory) stack.push(inode);
      }
      copy.addName(numbers.get(top)!, Buffer.from(childName(tree, dirent)), number);
    }
  }
  return { ...copy.finish(), hasMarks: tree.hasMarks };
}

/** The directories that `impliedLower` is made for, without their ancestors; ascending by nothing in particular. */
export function impliedAttributes(trees: readonly FileTree[]): ImpliedDirectory[] {
  return changedPlaces(resolveChain(trees)).flatMap(({ path, attributes, changed }) =>
    changed && attributes !== null ? [{ path, attributes }] : [],
  );
}

/**
 * The lower to put on top of a chain, or null when none is needed. It holds the directories whose attributes differ, with their ancestors (which look
 * as they do anyway), and for each directory that is not there at all (C7) what stands below it, or a whiteout.
 */
export function impliedLower(trees: readonly FileTree[]): FileTree | null {
  if (trees.length < 2) return null;
  const chain = resolveChain(trees);
  if (chain.every(({ taken, leftOut }) => taken.size === 0 && leftOut.size === 0)) return null;
  const places = changedPlaces(chain);
  if (places.length === 0) return null;
  const builder = new FileTreeBuilder(directoryFields({ ...ROOT_ATTRIBUTES, xattrs: rootXattrs(chain) }));
  const inodes = new Map<Visited, number>();
  for (const place of places) {
    const inode = builder.addInode(place.fields);
    inodes.set(place, inode);
    const parent = place.parent === null ? 0 : inodes.get(place.parent)!;
    builder.addName(parent, Buffer.from(place.name, "latin1"), inode);
  }
  return builder.finish();
}

interface Place {
  readonly layer: number;
  readonly inode: number;
}

type MergedName =
  /** A whiteout decides. `covered` here and below: a directory that is left out stands above the first place, so the raw stack shows that one. */
  | { readonly kind: "hidden"; readonly covered: boolean }
  /** Nothing but directories that are left out in this chain. */
  | { readonly kind: "left-out" }
  | { readonly kind: "file"; readonly places: readonly [Place]; readonly covered: boolean }
  | { readonly kind: "directory"; readonly places: Place[]; open: boolean; readonly covered: boolean };

const ROOT_ATTRIBUTES = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 } as const;

const WHITEOUT: InodeFields = {
  type: FileType.char,
  mode: 0,
  uid: 0,
  gid: 0,
  mtimeSeconds: 0,
  mtimeNanoseconds: 0,
};

/** Names of a merged directory; `places` are its parts, topmost first. */
function mergedChildren(chain: readonly ChainLayer[], places: readonly Place[]): Map<string, MergedName> {
  const names = new Map<string, MergedName>();
  for (const { layer, inode: directory } of places) {
    const { tree } = chain[layer]!;
    for (let dirent = tree.childStart[directory]!; dirent < tree.childStart[directory + 1]!; dirent++) {
      const name = Buffer.from(childName(tree, dirent)).toString("latin1");
      const above = names.get(name);
      const found = layBelow(above, chain, { layer, inode: tree.childInode[dirent]! });
      if (found !== above) names.set(name, found);
    }
  }
  return names;
}

/** One name of a merged directory; undefined: no layer has it. */
function mergedChild(chain: readonly ChainLayer[], places: readonly Place[], name: Uint8Array): MergedName | undefined {
  let found: MergedName | undefined;
  for (const { layer, inode } of places) {
    const { tree } = chain[layer]!;
    const dirent = findChild(tree, inode, name);
    if (dirent >= 0) found = layBelow(found, chain, { layer, inode: tree.childInode[dirent]! });
  }
  return found;
}

/** What a name is when a lower layer that has it comes below what the layers above have made of it. */
function layBelow(above: MergedName | undefined, chain: readonly ChainLayer[], place: Place): MergedName {
  if (above !== undefined && above.kind !== "left-out" && !(above.kind === "directory" && above.open)) return above;
  const { tree, leftOut } = chain[place.layer]!;
  const isDirectory = tree.type[place.inode] === FileType.directory;
  if (isDirectory && leftOut.has(place.inode)) return above ?? { kind: "left-out" };
  if (above?.kind === "directory") {
    if (isDirectory) above.places.push(place);
    above.open = isDirectory && !isOpaque(tree, place.inode);
    return above;
  }
  const covered = above !== undefined;
  if (isDirectory) return { kind: "directory", places: [place], open: !isOpaque(tree, place.inode), covered };
  return isWhiteout(tree, place.inode) ? { kind: "hidden", covered } : { kind: "file", places: [place], covered };
}

interface Visited {
  readonly parent: Visited | null;
  readonly name: string;
  readonly path: string;
  /** What the lower has there. */
  readonly fields: InodeFields;
  /** Null where it is no directory. */
  readonly attributes: DirectoryAttributes | null;
  readonly changed: boolean;
}

/** Names on the way to directories that differ in a chain, as a tree: all that is looked at, since whole images have many names. */
type Ways = Map<string, Ways>;

function waysToChanges(chain: readonly ChainLayer[]): Ways {
  const root: Ways = new Map();
  for (const { changedPaths } of chain) {
    for (const path of changedPaths) {
      let at = root;
      for (const name of path.slice(1).split("/")) {
        const next: Ways = at.get(name) ?? new Map();
        at.set(name, next);
        at = next;
      }
    }
  }
  return root;
}

/** What of the merged view needs another look than the raw stack gives it, and its ancestors before it. */
function changedPlaces(chain: readonly ChainLayer[]): Visited[] {
  const wanted = new Set<Visited>();
  const order: Visited[] = [];
  const stack: { self: Visited | null; places: readonly Place[]; ways: Ways }[] = [
    { self: null, places: chain.map((_, layer) => ({ layer, inode: 0 })).reverse(), ways: waysToChanges(chain) },
  ];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    for (const [name, ways] of top.ways) {
      const found = mergedChild(chain, top.places, Buffer.from(name, "latin1"));
      if (found === undefined) continue;
      const path = `${top.self?.path ?? ""}/${name}`;
      const here = { parent: top.self, name, path };
      let self: Visited;
      if (found.kind === "directory") {
        const first = found.places[0]!;
        const layer = chain[first.layer]!;
        const attributes = layer.attributes(first.inode);
        const changed = found.covered || layer.taken.has(first.inode);
        self = { ...here, fields: directoryFields(attributes), attributes, changed };
      } else if (found.kind === "left-out" || (found.kind === "hidden" && found.covered)) {
        self = { ...here, fields: WHITEOUT, attributes: null, changed: true };
      } else if (found.kind === "file" && found.covered) {
        // a symlink that leads nowhere: of anything else containerd makes a directory (C7)
        const [first] = found.places;
        self = { ...here, fields: fileFields(chain[first.layer]!.tree, first.inode), attributes: null, changed: true };
      } else continue;
      order.push(self);
      if (self.changed)
        for (let at: Visited | null = self; at !== null && !wanted.has(at); at = at.parent) wanted.add(at);
      if (found.kind === "directory") stack.push({ self, places: found.places, ways });
    }
  }
  return order.filter((place) => wanted.has(place));
}

/** A one-layer image is a bind mount, no overlayfs: a char device 0:0 shows as a device. */
function oneLayer(tree: FileTree): MergedTree {
  return { tree, layer: new Uint16Array(tree.inodeCount), inode: Uint32Array.from(tree.type, (_, inode) => inode) };
}

function isOpaque(tree: FileTree, inode: number): boolean {
  for (let index = tree.xattrStart[inode]!; index < tree.xattrStart[inode + 1]!; index++) {
    if (Buffer.from(xattrName(tree, index)).toString("latin1") === "trusted.overlay.opaque") return true;
  }
  return false;
}

function rootXattrs(chain: readonly ChainLayer[]): ReadonlyMap<string, Uint8Array> {
  const top = chain.at(-1);
  return top === undefined ? new Map() : shownXattrs(top.tree, 0);
}

function directoryFields(attributes: DirectoryAttributes): InodeFields {
  const { xattrs, ...rest } = attributes;
  return { ...rest, type: FileType.directory, xattrs: xattrList(xattrs) };
}

function fileFields(tree: FileTree, inode: number): InodeFields {
  return { ...inodeFieldsOf(tree, inode), xattrs: xattrList(shownXattrs(tree, inode)) };
}

/** An inode of a layer in its chain, with its opaque mark. */
function inodeFields(layer: ChainLayer, inode: number): InodeFields {
  const { tree } = layer;
  if (tree.type[inode] !== FileType.directory) return fileFields(tree, inode);
  const fields = directoryFields(layer.attributes(inode));
  if (!isOpaque(tree, inode)) return fields;
  const opaque = { name: Buffer.from("trusted.overlay.opaque"), value: Buffer.from("y") };
  return { ...fields, xattrs: [...fields.xattrs!, opaque] };
}

function xattrList(xattrs: ReadonlyMap<string, Uint8Array>) {
  return [...xattrs].map(([name, value]) => ({ name: Buffer.from(name, "latin1"), value }));
}
