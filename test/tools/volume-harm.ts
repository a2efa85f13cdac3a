/**
 * Seeded harm to a volume, by class: the same number does the same. `repaired` harm leaves a file system that e2fsck finds clean, whose meaning alone is wrong; the other
 * kind is what a bad disk does.
 */

import { FileType } from "../../src/erofs/file-tree.ts";
import { type Bucket, isBucket } from "../../src/volume/bolt/ondisk.ts";
import { readBolt } from "../../src/volume/bolt/read.ts";
import { writeBolt } from "../../src/volume/bolt/write.ts";
import { BLOCK, INODE_SIZE, XATTR_INODE_AT } from "../../src/volume/ext4/ondisk.ts";
import type { Ext4Inode } from "../../src/volume/ext4/read.ts";
import type { Ext4Patcher } from "./ext4-patcher.ts";
import { type Random, seeded } from "./random-tree.ts";

export const HARM_CLASSES = [
  "bytes",
  "modes",
  "owners",
  "xattrs",
  "link counts",
  "missing files",
  "database records",
  "gc references",
] as const;
export type HarmClass = (typeof HARM_CLASSES)[number];

interface Entry {
  readonly path: string;
  readonly name: Uint8Array;
  readonly directory: Ext4Inode;
  readonly inode: Ext4Inode;
}

/** A way to do harm: what was done, or null where this choice cannot be. */
type Way = (patient: Patient, random: Random) => string | null;

const TRIES = 400;

/** Says what was done. Throws when nothing could be. */
export function harm(patcher: Ext4Patcher, kind: HarmClass, repaired: boolean, seed: number): string {
  const random = seeded(seed);
  const patient = new Patient(patcher);
  for (let attempt = 0; attempt < TRIES; attempt++) {
    const done = random.pick((repaired ? REPAIRED : DAMAGE)[kind])(patient, random);
    if (done !== null) return done;
    patcher.undo();
  }
  throw new Error(`no harm of class ${kind} could be done with seed ${seed}`);
}

class Patient {
  readonly patcher: Ext4Patcher;
  readonly entries: readonly Entry[];

  constructor(patcher: Ext4Patcher) {
    this.patcher = patcher;
    const entries: Entry[] = [];
    const paths = new Map<number, string>([[2, ""]]);
    patcher.reader.walk({
      inode() {},
      name: (directory, name, inode) => {
        const path = `${paths.get(directory.number)}/${Buffer.from(name).toString("latin1")}`;
        if (inode.type === FileType.directory) paths.set(inode.number, path);
        if (path !== "/lost+found") entries.push({ path, name: Buffer.from(name), directory, inode });
      },
    });
    this.entries = entries;
  }

  /** Directories are equally likely, however many files they have. */
  pick(random: Random, wanted: (entry: Entry) => boolean = () => true): Entry | null {
    const byDirectory = Map.groupBy(this.entries.filter(wanted), ({ directory }) => directory.number);
    return byDirectory.size === 0 ? null : random.pick(random.pick([...byDirectory.values()]));
  }

  /** Databases have harm of their own. */
  file(random: Random): Entry | null {
    return this.pick(
      random,
      ({ inode, path }) => inode.type === FileType.regular && inode.size > 0 && !path.endsWith(".db"),
    );
  }

  database(name: string): { entry: Entry; bytes: Uint8Array; root: Bucket } {
    const entry = this.entries.find(({ path }) => path.endsWith(`/${name}`))!;
    const bytes = this.patcher.reader.read(entry.inode, 0, entry.inode.size);
    return { entry, bytes, root: readBolt(bytes, name).root };
  }

  /** False when the changed database is larger than its file. */
  writeDatabase(entry: Entry, root: Bucket): boolean {
    const bytes = writeBolt(root);
    if (bytes.byteLength > entry.inode.size) return false;
    const padded = new Uint8Array(entry.inode.size);
    padded.set(bytes);
    for (let at = 0; at < padded.byteLength; at += BLOCK) {
      if (!this.patcher.content(entry.inode, at, padded.subarray(at, at + BLOCK))) return false;
    }
    return true;
  }
}

const flipBit = (random: Random, byte: number): number => byte ^ (1 << random.below(8));

/** One bit of `length` bytes at an offset of the image. */
function flipAt(patient: Patient, random: Random, offset: number, length: number, what: string): string {
  const at = offset + random.below(length);
  patient.patcher.write(at, Uint8Array.of(flipBit(random, patient.patcher.read(at, 1)[0]!)));
  return `a bit of ${what}, byte ${at}`;
}

const flipContent: Way = (patient, random) => {
  const entry = patient.file(random);
  if (entry === null) return null;
  const at = random.below(entry.inode.size);
  const old = patient.patcher.reader.read(entry.inode, at, 1)[0]!;
  return patient.patcher.content(entry.inode, at, Uint8Array.of(flipBit(random, old)))
    ? `byte ${at} of ${entry.path}`
    : null;
};

const zeroContent: Way = (patient, random) => {
  const entry = patient.file(random);
  if (entry === null) return null;
  const at = random.below(entry.inode.size);
  const old = patient.patcher.reader.read(entry.inode, at, Math.min(64, entry.inode.size - at));
  if (old.every((byte) => byte === 0)) return null;
  return patient.patcher.content(entry.inode, at, new Uint8Array(old.byteLength))
    ? `${old.byteLength} bytes from ${at} of ${entry.path} are zeros`
    : null;
};

const shorten: Way = (patient, random) => {
  const entry = patient.file(random);
  // within its last block: the blocks stay as they are
  if (entry === null || entry.inode.size % BLOCK < 2) return null;
  patient.patcher.inode(entry.inode.number, (view, at) =>
    view.setUint32(at.i_size_lo, (entry.inode.size - 1) % 2 ** 32, true),
  );
  return `${entry.path} is a byte shorter`;
};

const flipMetadata: Way = (patient, random) => {
  const { patcher } = patient;
  const { groups, superblock } = patcher.reader;
  const entry = patient.pick(random)!;
  switch (random.below(5)) {
    case 0:
      return flipAt(patient, random, 1024, 1024, "the superblock");
    case 1:
      return flipAt(patient, random, BLOCK, superblock.groups * 64, "the group descriptors");
    case 2:
      return flipAt(patient, random, groups[0]!.blockBitmap * BLOCK, BLOCK, "a block bitmap");
    case 3:
      return flipAt(patient, random, groups[0]!.inodeBitmap * BLOCK, superblock.inodesPerGroup / 8, "an inode bitmap");
    default:
      return flipAt(patient, random, patcher.inodeOffset(entry.inode.number), INODE_SIZE, `the inode of ${entry.path}`);
  }
};

const flipDirectory: Way = (patient, random) => {
  const entry = patient.pick(random, ({ inode }) => inode.type === FileType.directory)!;
  const { physical } = patient.patcher.reader.extents(entry.inode).extents[0]!;
  return flipAt(patient, random, physical * BLOCK, BLOCK - 12, `the directory ${entry.path}`);
};

function inodeField(
  repair: boolean,
  what: string,
  change: (
    entry: Entry,
    view: DataView,
    at: Parameters<Parameters<Ext4Patcher["inode"]>[1]>[1],
    random: Random,
  ) => void,
): Way {
  return (patient, random) => {
    const entry = patient.pick(random, ({ inode }) => inode.type !== FileType.symlink || what !== "mode");
    if (entry === null) return null;
    patient.patcher.inode(entry.inode.number, (view, at) => change(entry, view, at, random), repair);
    return `${what} of ${entry.path}`;
  };
}

const mode = (repair: boolean) =>
  inodeField(repair, "mode", (_entry, view, at, random) => {
    view.setUint16(at.i_mode, view.getUint16(at.i_mode, true) ^ (1 << random.below(12)), true);
  });

const owner = (repair: boolean) =>
  inodeField(repair, "owner", (_entry, view, at, random) => {
    const field = random.pick([at.i_uid, at.i_gid, at.i_uid_high, at.i_gid_high]);
    view.setUint16(field, view.getUint16(field, true) ^ (1 + random.below(0xffff)), true);
  });

const hasXattrs = ({ inode, path }: Entry, patient: Patient) =>
  inode.type !== FileType.symlink && !path.endsWith(".db") && patient.patcher.reader.xattrs(inode).length > 0;

const damageXattr: Way = (patient, random) => {
  const entry = patient.pick(random, (each) => hasXattrs(each, patient));
  if (entry === null) return null;
  const { inode } = entry;
  if (inode.xattrBlock > 0) {
    return flipAt(patient, random, inode.xattrBlock * BLOCK, BLOCK, `the xattr block of ${entry.path}`);
  }
  const start = patient.patcher.inodeOffset(inode.number) + XATTR_INODE_AT;
  return flipAt(patient, random, start, INODE_SIZE - XATTR_INODE_AT, `the xattrs of ${entry.path}`);
};

const changeXattr: Way = (patient, random) => {
  const entry = patient.pick(random, (each) => hasXattrs(each, patient));
  if (entry === null) return null;
  const old = patient.patcher.reader.xattrs(entry.inode);
  const index = random.below(old.length);
  const name = Buffer.from(old[index]!.name).toString("latin1");
  if (name.startsWith("system.")) return null;
  const value = Uint8Array.from(old[index]!.value);
  if (value.byteLength === 0) return null;
  const at = random.below(value.byteLength);
  value[at] = flipBit(random, value[at]!);
  const changed = old.map((xattr, each) => (each === index ? { ...xattr, value } : xattr));
  return patient.patcher.xattrs(entry.inode.number, changed) ? `value of ${name} of ${entry.path}` : null;
};

const removeXattr: Way = (patient, random) => {
  const entry = patient.pick(random, (each) => hasXattrs(each, patient));
  if (entry === null) return null;
  const old = patient.patcher.reader.xattrs(entry.inode);
  const index = random.below(old.length);
  const left = old.filter((_, each) => each !== index);
  const name = Buffer.from(old[index]!.name).toString("latin1");
  return patient.patcher.xattrs(entry.inode.number, left) ? `${name} of ${entry.path} is gone` : null;
};

const addXattr: Way = (patient, random) => {
  const entry = patient.pick(
    random,
    ({ inode }) => inode.type === FileType.regular || inode.type === FileType.directory,
  )!;
  if (entry.inode.xattrBlock > 0) return null;
  const name = Buffer.from(random.pick(["user.x", "trusted.overlay.opaque", "security.capability"]));
  const old = patient.patcher.reader.xattrs(entry.inode);
  if (old.some((xattr) => name.equals(xattr.name))) return null;
  const value = Buffer.from(
    name.toString() === "security.capability" ? "0100000200200000000000000000000000000000" : "79",
    "hex",
  );
  return patient.patcher.xattrs(entry.inode.number, [...old, { name, value }]) ? `${name} on ${entry.path}` : null;
};

const damageLinks: Way = (patient, random) => {
  const entry = patient.pick(random)!;
  const by = random.pick([-1, 1, 2]);
  const repair = random.chance(0.5);
  patient.patcher.inode(
    entry.inode.number,
    (view, at) => view.setUint16(at.i_links_count, (entry.inode.nlink + by) & 0xffff, true),
    repair,
  );
  return `link count of ${entry.path}, by ${by}`;
};

/** A name leads to another file of its type: both have the right number of names. */
const relink: Way = (patient, random) => {
  const { patcher } = patient;
  const entry = patient.pick(random, ({ inode }) => inode.type !== FileType.directory);
  if (entry === null) return null;
  const other = patient.pick(
    random,
    ({ inode }) => inode.type === entry.inode.type && inode.number !== entry.inode.number,
  );
  if (other === null) return null;
  patcher.dirent(entry.directory, entry.name, (view) => view.setUint32(0, other.inode.number, true));
  patcher.links(other.inode.number, 1);
  patcher.dropLink(entry.inode);
  return `${entry.path} is linked with ${other.path}`;
};

const damageName: Way = (patient, random) => {
  const entry = patient.pick(random)!;
  patient.patcher.removeName(entry.directory, entry.name, random.chance(0.5));
  return `the name ${entry.path} is gone, its inode is not`;
};

const renameFile: Way = (patient, random) => {
  const { patcher } = patient;
  const entry = patient.pick(
    random,
    ({ directory, name }) => (directory.flags & 0x1000) === 0 && name.byteLength < 250,
  )!;
  const changed = Uint8Array.from(entry.name);
  const at = random.below(changed.byteLength);
  changed[at] = 0x61 + random.below(26);
  const taken = patient.entries.some(
    ({ directory, name }) => directory.number === entry.directory.number && Buffer.compare(name, changed) === 0,
  );
  if (taken) return null;
  patcher.dirent(entry.directory, entry.name, (view) => {
    new Uint8Array(view.buffer, view.byteOffset + 8, changed.byteLength).set(changed);
  });
  return `${entry.path} has another name`;
};

const removeFile: Way = (patient, random) => {
  const { patcher } = patient;
  const entry = patient.pick(
    random,
    ({ inode }) => inode.type !== FileType.directory || patcher.reader.readdir(inode).entries.length === 0,
  )!;
  patcher.removeFile(entry.directory, entry.name, entry.inode);
  return `${entry.path} is gone`;
};

/** A place in a tree of buckets. */
interface Place {
  readonly path: readonly string[];
  readonly value: Uint8Array | Bucket;
}

function places(root: Bucket, path: readonly string[] = []): Place[] {
  return [...root.entries].flatMap(([name, value]) => {
    const own = { path: [...path, name], value };
    return isBucket(value) ? [own, ...places(value, own.path)] : [own];
  });
}

/** The tree with one place changed; null: removed. */
function replaced(root: Bucket, path: readonly string[], value: Uint8Array | Bucket | null, as?: string): Bucket {
  const [name, ...rest] = path;
  const entries = new Map(root.entries);
  if (rest.length > 0) entries.set(name!, replaced(entries.get(name!) as Bucket, rest, value, as));
  else {
    entries.delete(name!);
    if (value !== null) entries.set(as ?? name!, value);
  }
  return { ...root, entries: new Map([...entries].sort(([a], [b]) => (a < b ? -1 : 1))) };
}

const isReference = ({ path }: Place) => path.at(-1)!.startsWith("containerd.io/gc.ref.");
const shown = (path: readonly string[]) => path.map((name) => Buffer.from(name, "latin1").toString()).join("/");

/** One byte of a key or value, in the pages as they lie. */
function damageRecord(wanted: (place: Place) => boolean): Way {
  return (patient, random) => {
    const { entry, bytes, root } = patient.database(random.pick(["meta.db", "metadata.db"]));
    const found = places(root).filter((place) => wanted(place) && !isBucket(place.value));
    if (found.length === 0) return null;
    const { path, value } = random.pick(found);
    const record = Buffer.concat([Buffer.from(path.at(-1)!, "latin1"), value as Uint8Array]);
    // the same record may stand in several pages: only what is unique is surely in use
    const at = Buffer.from(bytes).indexOf(record);
    if (record.byteLength === 0 || at < 0 || Buffer.from(bytes).indexOf(record, at + 1) >= 0) return null;
    const target = at + random.below(record.byteLength);
    const ok = patient.patcher.content(entry.inode, target, Uint8Array.of(flipBit(random, bytes[target]!)));
    return ok ? `a bit of ${shown(path)}` : null;
  };
}

function changeRecord(wanted: (place: Place) => boolean): Way {
  return (patient, random) => {
    const { entry, root } = patient.database(random.pick(["meta.db", "metadata.db"]));
    const found = places(root).filter((place) => wanted(place));
    if (found.length === 0) return null;
    const { path, value } = random.pick(found);
    const name = shown(path);
    if (random.chance(0.25)) {
      return patient.writeDatabase(entry, replaced(root, path, null)) ? `${name} is gone` : null;
    }
    if (isBucket(value)) {
      const sequence = value.sequence + random.pick([-1, 1]);
      if (sequence < 0) return null;
      return patient.writeDatabase(entry, replaced(root, path, { ...value, sequence })) ? `sequence of ${name}` : null;
    }
    if (random.chance(0.25)) {
      const key = `${path.at(-1)!}0`;
      return patient.writeDatabase(entry, replaced(root, path, value, key)) ? `${name} has another key` : null;
    }
    const other = random.chance(0.5) ? random.pick(places(root).filter((place) => !isBucket(place.value))).value : null;
    const changed = other === null ? Uint8Array.from(value) : (other as Uint8Array);
    if (other === null) {
      if (changed.byteLength === 0) return null;
      const at = random.below(changed.byteLength);
      changed[at] = flipBit(random, changed[at]!);
    } else if (Buffer.compare(changed, value) === 0) return null;
    return patient.writeDatabase(entry, replaced(root, path, changed)) ? `value of ${name}` : null;
  };
}

const DAMAGE: Readonly<Record<HarmClass, readonly Way[]>> = {
  bytes: [flipContent, flipMetadata, flipMetadata, flipDirectory],
  modes: [mode(false)],
  owners: [owner(false)],
  xattrs: [damageXattr],
  "link counts": [damageLinks],
  "missing files": [damageName],
  "database records": [damageRecord((place) => !isReference(place))],
  "gc references": [damageRecord(isReference)],
};

const REPAIRED: Readonly<Record<HarmClass, readonly Way[]>> = {
  bytes: [flipContent, zeroContent, shorten],
  modes: [mode(true)],
  owners: [owner(true)],
  xattrs: [changeXattr, removeXattr, addXattr],
  "link counts": [relink],
  "missing files": [removeFile, removeFile, renameFile],
  "database records": [changeRecord((place) => !isReference(place))],
  "gc references": [changeRecord(isReference)],
};
