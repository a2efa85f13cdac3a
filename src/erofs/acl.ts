/**
 * POSIX ACLs as the kernel keeps, checks, inherits and rewrites them (linux/posix_acl_xattr.h; fs/posix_acl.c: posix_acl_valid, posix_acl_create,
 * posix_acl_chmod, posix_acl_equiv_mode). Values are those of the xattrs system.posix_acl_access and system.posix_acl_default, version 2:
 * u32 version, then per entry u16 tag, u16 permissions, u32 id.
 */

import { Reader, Writer } from "../base/bytes.ts";

export const ACL_ACCESS = "system.posix_acl_access";
export const ACL_DEFAULT = "system.posix_acl_default";

const Tag = { userObj: 0x01, user: 0x02, groupObj: 0x04, group: 0x08, mask: 0x10, other: 0x20 } as const;

const TAGS: ReadonlySet<number> = new Set(Object.values(Tag));

interface AclEntry {
  readonly tag: number;
  readonly permissions: number;
  /** 0xffffffff for entries that name nobody. */
  readonly id: number;
}

export type Acl = readonly AclEntry[];

const VERSION = 2;
const NOBODY = 0xffff_ffff;

/**
 * The ACL, "none" for a value that says nothing (setting it removes the ACL), "version" for one of another version (EOPNOTSUPP), "malformed", or "unsound"
 * when single entries are right but not as a whole. The kernel looks at the last only after it knows that there can be an ACL at all.
 */
export function parseAcl(value: Uint8Array): Acl | "none" | "version" | "malformed" | "unsound" {
  if (value.byteLength === 0) return "none";
  if (value.byteLength < 4) return "malformed";
  const reader = new Reader(value, { what: "ACL" });
  if (reader.u32() !== VERSION) return "version";
  if (reader.remaining % 8 !== 0) return "malformed";
  const entries: AclEntry[] = [];
  while (reader.remaining > 0) entries.push({ tag: reader.u16(), permissions: reader.u16(), id: reader.u32() });
  if (entries.length === 0) return "none";
  if (entries.some(({ tag, id }) => !TAGS.has(tag) || (isNamed(tag) && id === NOBODY))) return "malformed";
  return isSound(entries) ? entries : "unsound";
}

export function serializeAcl(acl: Acl): Uint8Array {
  const writer = new Writer(4 + 8 * acl.length).u32(VERSION);
  for (const { tag, permissions, id } of acl) {
    writer
      .u16(tag)
      .u16(permissions)
      .u32(isNamed(tag) ? id : NOBODY);
  }
  return writer.finish();
}

/** True for an ACL of three entries: as an access ACL it is nothing but a mode. */
export function isOnlyMode(acl: Acl): boolean {
  return acl.every(({ tag }) => tag === Tag.userObj || tag === Tag.groupObj || tag === Tag.other);
}

/** What chmod makes of an access ACL: owner, mask (group where there is no mask) and other are the mode's. */
export function chmodAcl(acl: Acl, mode: number): Acl {
  const groupTag = acl.some(({ tag }) => tag === Tag.mask) ? Tag.mask : Tag.groupObj;
  return acl.map((entry) => {
    switch (entry.tag) {
      case Tag.userObj:
        return { ...entry, permissions: (mode >> 6) & 7 };
      case groupTag:
        return { ...entry, permissions: (mode >> 3) & 7 };
      case Tag.other:
        return { ...entry, permissions: mode & 7 };
      default:
        return entry;
    }
  });
}

/** The access ACL of something that is made with `mode` in a directory with this default ACL; null: none. */
export function inheritedAccess(defaults: Acl, mode: number): Acl | null {
  return isOnlyMode(defaults) ? null : chmodAcl(defaults, mode);
}

function isNamed(tag: number): boolean {
  return tag === Tag.user || tag === Tag.group;
}

/** posix_acl_valid: one owner, group and other entry, in the order of the tags; a mask where somebody is named. */
function isSound(entries: Acl): boolean {
  let state: number = Tag.userObj;
  let needsMask = false;
  for (const { tag, permissions } of entries) {
    if ((permissions & ~7) !== 0) return false;
    switch (tag) {
      case Tag.userObj:
        if (state !== Tag.userObj) return false;
        state = Tag.user;
        break;
      case Tag.user:
        if (state !== Tag.user) return false;
        needsMask = true;
        break;
      case Tag.groupObj:
        if (state !== Tag.user) return false;
        state = Tag.group;
        break;
      case Tag.group:
        if (state !== Tag.group) return false;
        needsMask = true;
        break;
      case Tag.mask:
        if (state !== Tag.group) return false;
        state = Tag.other;
        break;
      case Tag.other:
        if (state !== Tag.other && !(state === Tag.group && !needsMask)) return false;
        state = 0;
        break;
      default:
        return false;
    }
  }
  return state === 0;
}
