/** mknod(2): devices, fifos and sockets, which Node cannot make. */

import { call, cString, declare } from "./call.ts";

const mknodCall = declare<[string | Uint8Array, number, bigint]>(
  "int mknod(const char *path, uint32_t mode, uint64_t device)",
);

const KINDS = { fifo: 0o010000, char: 0o020000, block: 0o060000, socket: 0o140000 } as const;

/** The umask applies. Throws HS_SYSCALL. */
export function makeNode(
  path: string | Uint8Array,
  node: { kind: keyof typeof KINDS; mode: number; major?: number; minor?: number },
): void {
  call(`mknod ${path}`, mknodCall, cString(path), KINDS[node.kind] | node.mode, makeDevice(node));
}

/** gnu_dev_makedev: the C library's 64-bit device number. */
function makeDevice(device: { major?: number; minor?: number }): bigint {
  const major = BigInt(device.major ?? 0);
  const minor = BigInt(device.minor ?? 0);
  return (minor & 0xffn) | ((major & 0xfffn) << 8n) | ((minor & ~0xffn) << 12n) | ((major & ~0xfffn) << 32n);
}
