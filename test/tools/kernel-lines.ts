/** A mounted directory as tree lines: what the kernel says, in the form of the expected trees (test/golden/fixture/tree). */

import { createHash } from "node:crypto";
import { once } from "node:events";
import { constants, lstatSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { Worker } from "node:worker_threads";
import { isHeadstartError } from "../../src/base/errors.ts";
import { bytesToText, type TreeLine, type TreeLineType } from "../../src/erofs/tree-lines.ts";
import { getXattr, listXattrs } from "../../src/linux/xattr.ts";

const TYPES: Readonly<Record<number, TreeLineType>> = {
  [constants.S_IFREG]: "reg",
  [constants.S_IFDIR]: "dir",
  [constants.S_IFLNK]: "symlink",
  [constants.S_IFCHR]: "char",
  [constants.S_IFBLK]: "block",
  [constants.S_IFIFO]: "fifo",
};

/** Times from `unpackedNs` on are the unpacker's clock: null. Names that readdir has and lookup has not (ghosts of overlayfs) are left out. */
export function kernelLines(root: string, unpackedNs: bigint): TreeLine[] {
  const found: { path: Buffer; real: Buffer; key: string | null }[] = [];
  const stack: Buffer[] = [Buffer.from("/")];
  const inodes = new Map<string, Buffer[]>();
  for (let path = stack.pop(); path !== undefined; path = stack.pop()) {
    const real = Buffer.concat([Buffer.from(root), path]);
    const stat = lstatSync(real, { bigint: true, throwIfNoEntry: false });
    if (stat === undefined) continue;
    const key = stat.isDirectory() || stat.nlink < 2n ? null : `${stat.dev} ${stat.ino}`;
    found.push({ path, real, key });
    if (key !== null) inodes.set(key, [...(inodes.get(key) ?? []), path]);
    if (!stat.isDirectory()) continue;
    const prefix = path.byteLength === 1 ? path : Buffer.concat([path, Buffer.from("/")]);
    for (const name of readdirSync(real, { encoding: "buffer" })) stack.push(Buffer.concat([prefix, name]));
  }
  return found
    .sort((a, b) => Buffer.compare(a.path, b.path))
    .map(({ path, real, key }) => {
      const stat = lstatSync(real, { bigint: true });
      const type = TYPES[Number(stat.mode) & constants.S_IFMT]!;
      const xattrs = listXattrs(real).map((name) => [
        bytesToText(name),
        Buffer.from(readXattr(real, name)).toString("hex"),
      ]);
      return {
        path: bytesToText(path),
        type,
        mode: (Number(stat.mode) & 0o7777).toString(8).padStart(4, "0"),
        uid: Number(stat.uid),
        gid: Number(stat.gid),
        mtime_ns: stat.mtimeNs >= unpackedNs && stat.mtimeNs < unpackedNs + 10n ** 13n ? null : String(stat.mtimeNs),
        ...(type === "dir" ? {} : { nlink: Number(stat.nlink) }),
        ...(type === "reg" || type === "symlink" ? { size: Number(stat.size) } : {}),
        ...(type === "char" || type === "block" ? { rdev: deviceNumbers(stat.rdev) } : {}),
        ...(type === "symlink" ? { target: bytesToText(readlinkSync(real, { encoding: "buffer" })) } : {}),
        ...(type === "reg" ? { sha256: createHash("sha256").update(readFileSync(real)).digest("hex") } : {}),
        ...(xattrs.length > 0 ? { xattrs: Object.fromEntries(xattrs) as Record<string, string> } : {}),
        ...(key === null
          ? {}
          : {
              linked_with: inodes
                .get(key)!
                .filter((other) => !other.equals(path))
                .sort(Buffer.compare)
                .map((other) => bytesToText(other)),
            }),
      };
    });
}

/** The same in a thread: for trees whose reads wait for something in this process. */
export async function kernelLinesApart(root: string, unpackedNs: bigint): Promise<TreeLine[]> {
  const worker = new Worker(new URL("./kernel-lines.worker.ts", import.meta.url), { workerData: { root, unpackedNs } });
  const [lines] = (await once(worker, "message")) as [TreeLine[]];
  return lines;
}

/** A file capability of no bytes is listed but cannot be read (EINVAL). */
function readXattr(path: Uint8Array, name: Uint8Array): Uint8Array {
  try {
    return getXattr(path, name) ?? new Uint8Array(0);
  } catch (error) {
    if (isHeadstartError(error, "HS_SYSCALL") && error.details.errnoName === "EINVAL") return new Uint8Array(0);
    throw error;
  }
}

/** glibc gnu_dev_major, gnu_dev_minor. */
function deviceNumbers(rdev: bigint): readonly [number, number] {
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & ~0xfffn);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & ~0xffn);
  return [Number(major & 0xffff_ffffn), Number(minor & 0xffff_ffffn)];
}
