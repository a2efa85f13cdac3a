/**
 * A FileTree as the JSON objects of `headstart image tree --json` (design/cli.md, "Tree lines"), and the comparison of two such listings. Key order and
 * formats are those of the expected trees in test/golden/fixture/tree.
 */

import { childName, type FileTree, FileType, symlinkTarget, xattrName, xattrValue } from "./file-tree.ts";

export type TreeLineType = "reg" | "dir" | "symlink" | "char" | "block" | "fifo" | "socket";

export interface TreeLine {
  /** Absolute, "/" is the root. Bytes that are no UTF-8 are lone surrogates U+DC80..U+DCFF. */
  readonly path: string;
  readonly type: TreeLineType;
  /** Four octal digits. */
  readonly mode: string;
  readonly uid: number;
  readonly gid: number;
  /** Nanoseconds since 1970, decimal. Null in an expected tree: the image does not say. */
  readonly mtime_ns: string | null;
  readonly nlink?: number;
  readonly size?: number;
  readonly rdev?: readonly [number, number];
  readonly target?: string;
  readonly sha256?: string;
  /** Values in hex. */
  readonly xattrs?: Readonly<Record<string, string>>;
  /** With nlink > 1: the other names of the inode that can be seen, sorted by bytes. */
  readonly linked_with?: readonly string[];
}

export interface TreeLinesOptions {
  /** Sha256 in hex of a regular file's content. Left out: the lines have no such key. */
  readonly sha256?: ((inode: number) => string | Promise<string>) | undefined;
}

const TYPES: Readonly<Record<FileType, TreeLineType>> = {
  [FileType.regular]: "reg",
  [FileType.directory]: "dir",
  [FileType.char]: "char",
  [FileType.block]: "block",
  [FileType.fifo]: "fifo",
  [FileType.socket]: "socket",
  [FileType.symlink]: "symlink",
};

/** One line an entry, ascending by path bytes. */
export async function* treeLines(tree: FileTree, options: TreeLinesOptions = {}): AsyncGenerator<TreeLine> {
  const entries = listPaths(tree);
  const names = new Map<number, string[]>();
  for (const { path, inode } of entries) {
    if (tree.type[inode] === FileType.directory || tree.nlink[inode]! < 2) continue;
    const known = names.get(inode);
    if (known === undefined) names.set(inode, [path]);
    else known.push(path);
  }
  for (const { path, inode } of entries) {
    const type = tree.type[inode]! as FileType;
    const xattrs = xattrsOf(tree, inode);
    const linked = names.get(inode)?.filter((other) => other !== path);
    const sha256 = type === FileType.regular && options.sha256 !== undefined ? await options.sha256(inode) : undefined;
    yield {
      path: bytesToText(Buffer.from(path, "latin1")),
      type: TYPES[type],
      mode: tree.mode[inode]!.toString(8).padStart(4, "0"),
      uid: tree.uid[inode]!,
      gid: tree.gid[inode]!,
      mtime_ns: nanoseconds(tree.mtimeSeconds[inode]!, tree.mtimeNanoseconds[inode]!),
      ...(type === FileType.directory ? {} : { nlink: tree.nlink[inode]! }),
      ...(type === FileType.regular || type === FileType.symlink ? { size: tree.size[inode]! } : {}),
      ...(type === FileType.char || type === FileType.block
        ? { rdev: [tree.rdevMajor[inode]!, tree.rdevMinor[inode]!] as const }
        : {}),
      ...(type === FileType.symlink ? { target: bytesToText(symlinkTarget(tree, inode)) } : {}),
      ...(sha256 === undefined ? {} : { sha256 }),
      ...(xattrs === null ? {} : { xattrs }),
      ...(linked === undefined
        ? {}
        : { linked_with: linked.map((other) => bytesToText(Buffer.from(other, "latin1"))) }),
    };
  }
}

export interface TreeDifference {
  readonly path: string;
  /** The key that differs; "missing" and "extra" for whole entries. */
  readonly key: string;
  readonly expected: unknown;
  readonly got: unknown;
}

/** What differs, in the order of the paths. A null in an expected line is not compared. */
export function compareTreeLines(expected: Iterable<TreeLine>, got: Iterable<TreeLine>): TreeDifference[] {
  const differences: TreeDifference[] = [];
  const rest = new Map<string, TreeLine>();
  for (const line of got) rest.set(line.path, line);
  for (const want of expected) {
    const have = rest.get(want.path);
    rest.delete(want.path);
    if (have === undefined) {
      differences.push({ path: want.path, key: "missing", expected: want, got: undefined });
      continue;
    }
    for (const key of new Set([...Object.keys(want), ...Object.keys(have)]) as Set<keyof TreeLine>) {
      if (want[key] === null) continue;
      if (canonical(want[key]) !== canonical(have[key])) {
        differences.push({ path: want.path, key, expected: want[key], got: have[key] });
      }
    }
  }
  for (const have of rest.values()) {
    differences.push({ path: have.path, key: "extra", expected: undefined, got: have });
  }
  return differences;
}

/** UTF-8; bytes that are none become U+DC80..U+DCFF (Python's surrogateescape). */
export function bytesToText(bytes: Uint8Array): string {
  try {
    return STRICT.decode(copyIfShared(bytes));
  } catch {
    let text = "";
    for (let index = 0; index < bytes.byteLength; ) {
      const length = sequenceLength(bytes, index);
      if (length === 0) text += String.fromCharCode(0xdc00 + bytes[index++]!);
      else {
        text += STRICT.decode(copyIfShared(bytes.subarray(index, index + length)));
        index += length;
      }
    }
    return text;
  }
}

/** The reverse of `bytesToText`: lone surrogates U+DC80..U+DCFF are the bytes that they stand for. */
export function textToBytes(text: string): Uint8Array {
  const parts: Uint8Array[] = [];
  // with the flag u a pair is one character, so what matches stands alone
  for (const [part] of text.matchAll(/[\udc80-\udcff]|[^\udc80-\udcff]+/gu)) {
    const code = part.charCodeAt(0);
    const isEscape = part.length === 1 && code >= 0xdc80 && code <= 0xdcff;
    parts.push(isEscape ? Uint8Array.of(code & 0xff) : Buffer.from(part));
  }
  return Buffer.concat(parts);
}

const STRICT = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** TextDecoder takes no shared memory. */
function copyIfShared(bytes: Uint8Array): Uint8Array {
  return bytes.buffer instanceof SharedArrayBuffer ? Uint8Array.from(bytes) : bytes;
}

/** Length of the well-formed UTF-8 sequence at `index`, 0 if there is none. */
function sequenceLength(bytes: Uint8Array, index: number): number {
  const lead = bytes[index]!;
  const length =
    lead < 0x80
      ? 1
      : lead >= 0xc2 && lead < 0xe0
        ? 2
        : lead >= 0xe0 && lead < 0xf0
          ? 3
          : lead >= 0xf0 && lead < 0xf5
            ? 4
            : 0;
  if (length === 0 || index + length > bytes.byteLength) return 0;
  try {
    STRICT.decode(copyIfShared(bytes.subarray(index, index + length)));
    return length;
  } catch {
    return 0;
  }
}

function listPaths(tree: FileTree): { path: string; inode: number }[] {
  const entries = [{ path: "/", inode: 0 }];
  const stack = [{ path: "", inode: 0 }];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    for (let dirent = tree.childStart[top.inode]!; dirent < tree.childStart[top.inode + 1]!; dirent++) {
      const inode = tree.childInode[dirent]!;
      const path = `${top.path}/${Buffer.from(childName(tree, dirent)).toString("latin1")}`;
      entries.push({ path, inode });
      if (tree.type[inode] === FileType.directory) stack.push({ path, inode });
    }
  }
  // one char a byte: the order of code units is the order of bytes
  return entries.sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0));
}

function xattrsOf(tree: FileTree, inode: number): Record<string, string> | null {
  const start = tree.xattrStart[inode]!;
  const end = tree.xattrStart[inode + 1]!;
  if (start === end) return null;
  const xattrs: [string, string][] = [];
  for (let index = start; index < end; index++) {
    xattrs.push([bytesToText(xattrName(tree, index)), Buffer.from(xattrValue(tree, index)).toString("hex")]);
  }
  return Object.fromEntries(xattrs);
}

function nanoseconds(seconds: number, fraction: number): string {
  return (BigInt(seconds) * 1_000_000_000n + BigInt(fraction)).toString();
}

/** JSON with sorted keys: objects and arrays are compared by content. */
function canonical(value: unknown): string | undefined {
  return JSON.stringify(value, (_key, inner: unknown) =>
    inner !== null && typeof inner === "object" && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  );
}
