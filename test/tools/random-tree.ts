/**
 * Trees with everything that a layer can hold, made from a seed: the same number gives the same tree. For tests of the EROFS writer and of whatever else takes
 * a FileTree.
 */

import { type FileTree, FileTreeBuilder, FileType, type InodeFields } from "../../src/erofs/file-tree.ts";

export interface Random {
  /** 0 <= value < 1. */
  (): number;
  /** An integer, 0 <= value < below. */
  below(below: number): number;
  pick<T>(choices: readonly T[]): T;
  chance(probability: number): boolean;
}

/** mulberry32. */
export function seeded(seed: number): Random {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let value = Math.imul(state ^ (state >>> 15), state | 1);
    value ^= value + Math.imul(value ^ (value >>> 7), value | 61);
    return ((value ^ (value >>> 14)) >>> 0) / 2 ** 32;
  };
  return Object.assign(next, {
    below: (below: number) => Math.floor(next() * below),
    pick: <T>(choices: readonly T[]): T => choices[Math.floor(next() * choices.length)]!,
    chance: (probability: number) => next() < probability,
  });
}

/** The byte at an address of the imagined stream: what a file's data are. Never zero, so that a hole is seen. */
export function fillFromAddress(bytes: Uint8Array, address: number): Uint8Array {
  for (let index = 0; index < bytes.length; index++) {
    const at = address + index;
    bytes[index] = ((at % 251) ^ (Math.floor(at / 251) % 127)) | 1;
  }
  return bytes;
}

const text = (value: string) => Buffer.from(value);
const ODD_NAMES = [
  ...["!", "-", "-x", "!x", ".!", ".-", "..x", "...", ". ", ".a", " ", "\n", "\\", "a\tb", "*"],
  ...["é", "\u{ffff}", "\u{10000}", "\u{e000}", "日本", "x".repeat(255)],
].map(text);
const BASE_TIME = 1_700_000_000;
/** A valid v2 capability (cap_net_raw=ep), as security.capability holds it. */
const CAPABILITY = Buffer.from("0100000200200000000000000000000000000000", "hex");

/** An access or default ACL: user::rwx, user:1000:r-x, group::r-x, mask::rwx, other::r-x (linux/posix_acl_xattr.h). */
function acl(): Uint8Array {
  const entries = [
    [0x01, 7, 0xffffffff],
    [0x02, 5, 1000],
    [0x04, 5, 0xffffffff],
    [0x10, 7, 0xffffffff],
    [0x20, 5, 0xffffffff],
  ] as const;
  const bytes = Buffer.alloc(4 + entries.length * 8);
  bytes.writeUInt32LE(2, 0);
  entries.forEach(([tag, permissions, id], index) => {
    bytes.writeUInt16LE(tag, 4 + index * 8);
    bytes.writeUInt16LE(permissions, 6 + index * 8);
    bytes.writeUInt32LE(id, 8 + index * 8);
  });
  return bytes;
}

function randomName(random: Random): Uint8Array {
  if (random.chance(0.2)) return random.pick(ODD_NAMES);
  if (random.chance(0.6)) return text(`${random.pick(["lib", "bin", "file", "x", "py"])}-${random.below(1000)}.txt`);
  const name = Buffer.alloc(1 + random.below(random.chance(0.2) ? 255 : 20));
  for (let index = 0; index < name.length; index++) {
    do name[index] = 1 + random.below(255);
    while (name[index] === 0x2f);
  }
  return name.equals(text(".")) || name.equals(text("..")) ? text("dots") : name;
}

function attributes(random: Random): Pick<InodeFields, "mode" | "uid" | "gid" | "mtimeSeconds" | "mtimeNanoseconds"> {
  const id = () => (random.chance(0.7) ? 0 : random.pick([1, 1000, 65_534, 65_535, 65_536, 2 ** 31, 0xfffffffe]));
  const plainTime = random.chance(0.6);
  return {
    mode: random.chance(0.7) ? random.pick([0o755, 0o644, 0o600]) : random.below(0o10000),
    uid: id(),
    gid: id(),
    mtimeSeconds: plainTime
      ? BASE_TIME
      : random.pick([0, 1, -1, -1_577_836_800, 2 ** 33 + 5, BASE_TIME, BASE_TIME + 1]),
    mtimeNanoseconds: plainTime || random.chance(0.3) ? 0 : random.pick([1, 999_999_999, 123_456_789]),
  };
}

function xattrs(random: Random, type: FileType, largeBytes: number): { name: Uint8Array; value: Uint8Array }[] {
  if (random.chance(0.75)) return [];
  const found = new Map<string, Uint8Array>();
  if (type === FileType.regular || type === FileType.directory) {
    for (let count = random.below(4); count > 0; count--) {
      found.set(
        `user.${"n".repeat(1 + random.below(40))}${count}`,
        fillFromAddress(Buffer.alloc(random.below(60)), count),
      );
    }
    if (random.chance(0.05)) found.set("user.large", fillFromAddress(Buffer.alloc(largeBytes), 5));
    if (random.chance(0.3)) found.set("system.posix_acl_access", acl());
  }
  if (type === FileType.regular && random.chance(0.3)) found.set("security.capability", CAPABILITY);
  if (type === FileType.directory && random.chance(0.3)) found.set("trusted.overlay.opaque", text("y"));
  if (type === FileType.directory && random.chance(0.3)) found.set("system.posix_acl_default", acl());
  if (random.chance(0.3)) found.set("security.ima", fillFromAddress(Buffer.alloc(1 + random.below(30)), 9));
  return [...found].map(([name, value]) => ({ name: text(name), value }));
}

/**
 * Some `entries` inodes: deep and wide directories, odd and long names, hard links to files of all kinds, devices, whiteouts, fifos, sockets, symlinks
 * up to 4095 bytes, xattrs, ACLs, capabilities, empty files, sparse ones (over 4 GiB with `large`). Large xattrs have
 * `xattrBytes`: ext4 takes less than EROFS. Addresses are of one stream with gaps, as a tar has.
 */
export function randomTree(seed: number, options: { entries: number; large?: boolean; xattrBytes?: number }): FileTree {
  const random = seeded(seed);
  const builder = new FileTreeBuilder(attributes(random));
  const taken: { names: Set<string>; path: number }[] = [{ names: new Set(), path: 0 }];
  const directories = [0];
  const others: number[] = [];
  let address = 512;
  const nameIn = (directory: number): Uint8Array => {
    const { names } = taken[directory]!;
    for (;;) {
      const name = names.size < 200 ? randomName(random) : text(`n${names.size}${"y".repeat(random.below(30))}`);
      const key = Buffer.from(name).toString("latin1");
      if (names.has(key)) continue;
      names.add(key);
      return name;
    }
  };
  const segmentsOf = (size: number, sparse: boolean) => {
    const segments: { fileOffset: number; length: number; address: number }[] = [];
    const add = (fileOffset: number, length: number) => {
      segments.push({ fileOffset, length, address });
      address += Math.ceil(length / 512) * 512 + 512;
    };
    if (!sparse) {
      if (size > 0) add(0, size);
      return segments;
    }
    for (let at = random.below(size); at < size; at += 1 + random.below(Math.ceil(size / 3))) {
      const length = Math.min(1 + random.below(6000), size - at);
      add(at, length);
      at += length;
    }
    return segments;
  };
  for (let count = 1; count < options.entries; count++) {
    // the last directory goes deeper, any other goes wider
    const directory = random.chance(0.3) ? directories.at(-1)! : random.pick(directories);
    const name = nameIn(directory);
    if (others.length > 0 && random.chance(0.05)) {
      builder.addName(directory, name, random.pick(others));
      continue;
    }
    const type = random.pick([1, 1, 1, 1, 1, 1, 2, 2, 3, 4, 5, 6, 7, 7] as const);
    const depthLeft = 3000 - taken[directory]!.path - name.length - 1;
    const common = {
      type: type as FileType,
      ...attributes(random),
      xattrs: xattrs(random, type, options.xattrBytes ?? 9000),
    };
    let inode: number;
    if (type === FileType.directory && depthLeft > 300) {
      inode = builder.addInode({ ...common, implied: random.chance(0.1), impliedFirst: random.chance(0.1) });
      directories.push(inode);
      taken[inode] = { names: new Set(), path: taken[directory]!.path + name.length + 1 };
    } else if (type === FileType.char || type === FileType.block) {
      const whiteout = type === FileType.char && random.chance(0.4);
      inode = builder.addInode({
        ...common,
        rdevMajor: whiteout ? 0 : 1 + random.below(0xfff),
        rdevMinor: whiteout ? 0 : random.below(0x100000),
      });
      others.push(inode);
    } else if (type === FileType.symlink) {
      const length = 1 + random.below(random.chance(0.1) ? 4095 : 60);
      inode = builder.addInode({ ...common, mode: 0o777, target: fillFromAddress(Buffer.alloc(length), length) });
      others.push(inode);
    } else if (type === FileType.fifo || type === FileType.socket) {
      inode = builder.addInode(common);
      others.push(inode);
    } else {
      const size = random.pick([0, 1, 13, 4095, 4096, 4097, 8192, random.below(20_000), random.below(20_000)]);
      const sparse = size > 0 && random.chance(0.2);
      inode = builder.addInode({ ...common, type: FileType.regular, size, segments: segmentsOf(size, sparse) });
      others.push(inode);
    }
    builder.addName(directory, name, inode);
  }
  if (options.large) {
    const size = 5 * 2 ** 30 + 123;
    const segments = [
      { fileOffset: 0, length: 100, address },
      { fileOffset: 2 ** 32 - 50, length: 4096, address: address + 1024 },
      { fileOffset: size - 7, length: 7, address: address + 8192 },
    ];
    const inode = builder.addInode({ ...attributes(random), type: FileType.regular, size, segments });
    builder.addName(0, text("over 4 GiB"), inode);
  }
  return builder.finish();
}
