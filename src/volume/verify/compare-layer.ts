/**
 * One layer as its tar says it against the files of its snapshot: names, types, modes, owners, times, devices, targets, xattrs, hard links and contents
 * (specs/warm-volume.md 5.2). Two trees are walked side by side; contents are hashed, never held. security.selinux is left out: on a disk selinux.ts checks labels, in a
 * directory they are the host's.
 */

import { compareBytes } from "../../base/bytes.ts";
import {
  childName,
  type FileTree,
  FileType,
  INODE_IMPLIED,
  isWhiteout,
  symlinkTarget,
  xattrName,
  xattrValue,
} from "../../erofs/file-tree.ts";
import { bytesToText } from "../../erofs/tree-lines.ts";
import type { Findings } from "./findings.ts";
import { hashContent, type StoredTree } from "./stored-tree.ts";

export interface LayerComparison {
  readonly expected: FileTree;
  /** Hex, of an inode of the expected tree. */
  readonly sha256: (inode: number) => string;
  readonly stored: StoredTree;
  /** The snapshot's `fs` in the stored tree. */
  readonly root: number;
  /** For messages: "/…/snapshots/3/fs". */
  readonly place: string;
  readonly findings: Findings;
  /** What the unpacker's clock gives (whiteouts, directories without an entry, the root): compared with these, or not at all. Nanoseconds since 1970. */
  readonly clock: readonly bigint[] | null;
  /** False: a layer below could not be read, so attributes of directories without an entry of their own are not known. */
  readonly impliedKnown: boolean;
  readonly onBytes: (count: number) => void;
}

export async function compareLayer(comparison: LayerComparison): Promise<void> {
  await new Comparing(comparison).run();
}

const TYPE_NAMES: Readonly<Record<number, string>> = Object.fromEntries(
  Object.entries(FileType).map(([name, number]) => [number, name]),
);
export const LABEL = "security.selinux";

class Comparing {
  readonly #c: LayerComparison;
  /** Expected inode -> stored inode, and back, of everything that has several names in either tree. */
  readonly #toStored = new Map<number, number>();
  readonly #toExpected = new Map<number, number>();

  constructor(comparison: LayerComparison) {
    this.#c = comparison;
  }

  async run(): Promise<void> {
    const { expected, stored, findings, root, place } = this.#c;
    this.#attributes(0, root, place);
    const stack = [{ want: 0, have: root, path: place }];
    for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
      for (const { name, want, have } of pairs(expected, top.want, stored.tree, top.have)) {
        const path = `${top.path}/${bytesToText(name)}`;
        if (have === null) findings.add("layer", path, "missing");
        else if (want === null) findings.add("layer", path, "the layer has no such entry");
        else if (await this.#entry(want, have, path)) stack.push({ want, have, path });
      }
    }
  }

  /** True for a directory in both. */
  async #entry(want: number, have: number, path: string): Promise<boolean> {
    const { expected, stored, findings } = this.#c;
    const type = expected.type[want]!;
    if (stored.tree.type[have] !== type) {
      findings.differs("layer", path, "the type", TYPE_NAMES[stored.tree.type[have]!], TYPE_NAMES[type]);
      return false;
    }
    if (type === FileType.directory) {
      this.#attributes(want, have, path);
      return true;
    }
    const known = this.#link(want, have, path);
    if (known) return false;
    this.#attributes(want, have, path);
    if (stored.links(have) !== expected.nlink[want]) {
      findings.differs("layer", path, "the link count", stored.links(have), expected.nlink[want]);
    }
    if (type === FileType.regular) await this.#content(want, have, path);
    if (type === FileType.symlink) {
      const [target, wanted] = [symlinkTarget(stored.tree, have), symlinkTarget(expected, want)];
      if (compareBytes(target, wanted) !== 0) {
        findings.differs("layer", path, "the target", bytesToText(target), bytesToText(wanted));
      }
    }
    if (type === FileType.char || type === FileType.block) {
      const device = (tree: FileTree, inode: number) => `${tree.rdevMajor[inode]}:${tree.rdevMinor[inode]}`;
      if (device(stored.tree, have) !== device(expected, want)) {
        findings.differs("layer", path, "the device", device(stored.tree, have), device(expected, want));
      }
    }
    return false;
  }

  /** True when this pair of inodes was compared under another name. Names of one inode must be names of one inode in the other tree. */
  #link(want: number, have: number, path: string): boolean {
    const { expected, stored, findings } = this.#c;
    if (expected.nlink[want]! < 2 && stored.tree.nlink[have]! < 2) return false;
    const otherHave = this.#toStored.get(want);
    const otherWant = this.#toExpected.get(have);
    if (otherHave === undefined && otherWant === undefined) {
      this.#toStored.set(want, have);
      this.#toExpected.set(have, want);
      return false;
    }
    if (otherHave === have && otherWant === want) return true;
    findings.add("layer", path, "is linked with other names than in the layer");
    return false;
  }

  #attributes(want: number, have: number, path: string): void {
    const { expected, findings, impliedKnown } = this.#c;
    const { tree } = this.#c.stored;
    if (!impliedKnown && expected.flags[want] !== 0) {
      findings.open("directories", "layers below that describe them could not be read");
      return;
    }
    if (tree.mode[have] !== expected.mode[want] && expected.type[want] !== FileType.symlink) {
      findings.differs("layer", path, "the mode", octal(tree.mode[have]!), octal(expected.mode[want]!));
    }
    const owner = (of: FileTree, inode: number) => `${of.uid[inode]}:${of.gid[inode]}`;
    if (owner(tree, have) !== owner(expected, want)) {
      findings.differs("layer", path, "the owner", owner(tree, have), owner(expected, want));
    }
    this.#time(want, have, path);
    this.#xattrs(want, have, path);
  }

  #time(want: number, have: number, path: string): void {
    const { expected, stored, findings, clock } = this.#c;
    const wanted = nanoseconds(expected, want);
    const found = nanoseconds(stored.tree, have);
    if (found === wanted) return;
    const isClock = want === 0 || isWhiteout(expected, want) || (expected.flags[want]! & INODE_IMPLIED) !== 0;
    if (isClock && (clock === null || clock.includes(found))) return;
    findings.differs("layer", path, "the time in ns", found, wanted);
  }

  #xattrs(want: number, have: number, path: string): void {
    const wanted = xattrsOf(this.#c.expected, want);
    const found = xattrsOf(this.#c.stored.tree, have);
    for (const [name, value] of wanted) {
      const got = found.get(name);
      if (got !== value) this.#c.findings.differs("layer", path, `the xattr ${name}`, got, value);
    }
    for (const name of found.keys()) {
      if (!wanted.has(name))
        this.#c.findings.add("layer", path, `has an xattr ${name} that the layer does not give it`);
    }
  }

  async #content(want: number, have: number, path: string): Promise<void> {
    const { expected, stored, findings, sha256, onBytes } = this.#c;
    const size = stored.tree.size[have]!;
    if (size !== expected.size[want]) {
      findings.differs("layer", path, "the size", size, expected.size[want]);
      return;
    }
    if (size === 0) return;
    const got = await hashContent(stored, have, "sha256", onBytes);
    if (got !== sha256(want)) findings.differs("layer", path, "the content's sha256", got, sha256(want));
  }
}

interface Pair {
  readonly name: Uint8Array;
  readonly want: number | null;
  readonly have: number | null;
}

/** Names of two directories, ascending as both are. */
function* pairs(expected: FileTree, want: number, stored: FileTree, have: number): Generator<Pair> {
  let left = expected.childStart[want]!;
  let right = stored.childStart[have]!;
  const leftEnd = expected.childStart[want + 1]!;
  const rightEnd = stored.childStart[have + 1]!;
  while (left < leftEnd || right < rightEnd) {
    const order =
      left === leftEnd
        ? 1
        : right === rightEnd
          ? -1
          : compareBytes(childName(expected, left), childName(stored, right));
    yield {
      name: order <= 0 ? childName(expected, left) : childName(stored, right),
      want: order <= 0 ? expected.childInode[left]! : null,
      have: order >= 0 ? stored.childInode[right]! : null,
    };
    if (order <= 0) left++;
    if (order >= 0) right++;
  }
}

/** Hex values by name. */
function xattrsOf(tree: FileTree, inode: number): Map<string, string> {
  const xattrs = new Map<string, string>();
  for (let index = tree.xattrStart[inode]!; index < tree.xattrStart[inode + 1]!; index++) {
    const name = Buffer.from(xattrName(tree, index)).toString("latin1");
    if (name !== LABEL) xattrs.set(name, Buffer.from(xattrValue(tree, index)).toString("hex"));
  }
  return xattrs;
}

function nanoseconds(tree: FileTree, inode: number): bigint {
  return BigInt(tree.mtimeSeconds[inode]!) * 1_000_000_000n + BigInt(tree.mtimeNanoseconds[inode]!);
}

function octal(mode: number): string {
  return mode.toString(8).padStart(4, "0");
}
