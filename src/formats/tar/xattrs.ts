/** Which xattrs of an archive a layer has, and which values are refused (specs/layer.md 7.6; containerd archive/tar_unix.go, setxattr; Linux fs/xattr.c). */

import { LIMITS } from "../../base/limits.ts";
import { ACL_ACCESS, ACL_DEFAULT, parseAcl } from "../../erofs/acl.ts";
import { FileType } from "../../erofs/file-tree.ts";

export const CAPABILITY = "security.capability";

/** "set", "drop", or the reason of the refusal. `type` is the inode's. */
export function judgeXattr(
  type: FileType,
  name: string,
  value: Uint8Array,
): "set" | "drop" | { readonly reason: string } {
  if (name.startsWith("trusted.")) return "drop";
  if (name === "" || name.length > LIMITS.nameBytes) return { reason: "an xattr's name is empty or over 255 bytes" };
  if (value.byteLength > LIMITS.xattrValueBytes) {
    return { reason: `an xattr of ${value.byteLength} bytes, at most ${LIMITS.xattrValueBytes} are possible` };
  }
  if (name === "user." || name === "security.") return { reason: `an xattr is called "${name}"` };
  if (name.startsWith("user.")) return type === FileType.regular || type === FileType.directory ? "set" : "drop";
  // an empty one is stored unchecked, and cannot be read back: so it is here
  if (name === CAPABILITY)
    return value.byteLength === 0 || isCapability(value) ? "set" : { reason: "a malformed security.capability" };
  if (name.startsWith("security.")) return "set";
  if (name === ACL_ACCESS || name === ACL_DEFAULT) {
    const acl = parseAcl(value);
    if (acl === "version") return "drop";
    if (acl === "malformed") return { reason: `a malformed ${name}` };
    if (type === FileType.symlink) return "drop";
    if (acl === "unsound") return { reason: `a malformed ${name}` };
    if (name === ACL_DEFAULT && acl !== "none" && type !== FileType.directory) {
      return { reason: "a default ACL on something that is no directory" };
    }
    return "set";
  }
  return "drop";
}

/** struct vfs_cap_data of revision 2 (20 bytes) or vfs_ns_cap_data of revision 3 (24 bytes); bit 0 is the effective flag (linux/capability.h). */
function isCapability(value: Uint8Array): boolean {
  if (value.byteLength !== 20 && value.byteLength !== 24) return false;
  const revision = value.byteLength === 20 ? 0x02 : 0x03;
  return (value[0]! & ~1) === 0 && value[1] === 0 && value[2] === 0 && value[3] === revision;
}
