/** Extended attributes of a path itself (symlinks are not followed). Names are bytes on disk and nearly always ASCII; values are bytes. */

import { HeadstartError } from "../base/errors.ts";
import { call, cString, declare } from "./call.ts";
import { koffi, syscallError } from "./ffi.ts";

type Path = string | Uint8Array;

const setCall = declare<[Path, Path, Uint8Array, number, number]>(
  "int lsetxattr(const char *path, const char *name, const void *value, size_t size, int flags)",
);
const removeCall = declare<[Path, Path]>("int lremovexattr(const char *path, const char *name)");
const getCall = declare<[Path, Path, Uint8Array | null, number]>(
  "intptr_t lgetxattr(const char *path, const char *name, void *value, size_t size)",
);
const listCall = declare<[Path, Uint8Array | null, number]>(
  "intptr_t llistxattr(const char *path, void *list, size_t size)",
);

/** The kernel's own limit on a value and on a list of names (XATTR_SIZE_MAX, XATTR_LIST_MAX). */
const SIZE_MAX = 65_536;

export function setXattr(path: Path, name: Path, value: Uint8Array): void {
  call(`lsetxattr ${path}`, setCall, cString(path), cString(name), value, value.byteLength, 0);
}

export function removeXattr(path: Path, name: Path): void {
  call(`lremovexattr ${path}`, removeCall, cString(path), cString(name));
}

/** Null when there is no such attribute. Throws HS_SYSCALL. */
export function getXattr(path: Path, name: Path): Uint8Array | null {
  return sized(`lgetxattr ${path}`, (into) => getCall(cString(path), cString(name), into, into?.byteLength ?? 0));
}

/** Names in the order of the file system; empty where it has no xattrs. */
export function listXattrs(path: Path): Uint8Array[] {
  const list = sized(`llistxattr ${path}`, (into) => listCall(cString(path), into, into?.byteLength ?? 0));
  const names: Uint8Array[] = [];
  if (list === null) return names;
  for (let start = 0, end = list.indexOf(0); end >= 0; start = end + 1, end = list.indexOf(0, start)) {
    names.push(list.subarray(start, end));
  }
  return names;
}

/** Asks for the size, then for the bytes, again if they grew between. ENODATA and EOPNOTSUPP are null. */
function sized(what: string, ask: (into: Uint8Array | null) => number): Uint8Array | null {
  for (let attempt = 0; attempt < 8; attempt++) {
    const size = ask(null);
    if (size === 0) return new Uint8Array(0);
    const into = size > 0 ? new Uint8Array(Math.min(size, SIZE_MAX)) : null;
    const got = into === null ? size : ask(into);
    if (got >= 0 && into !== null) return into.subarray(0, got);
    const errno = koffi.errno();
    if (errno === koffi.os.errno.ENODATA || errno === koffi.os.errno.EOPNOTSUPP) return null;
    if (errno !== koffi.os.errno.ERANGE) throw syscallError(errno, what);
  }
  throw new HeadstartError("HS_SYSCALL", { what: `${what}: the attribute kept changing` });
}
