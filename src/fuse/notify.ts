/** Notifications to the kernel (specs/erofs-fuse.md 12): an out header with unique 0 and the code in place of the error, then the payload. One write(2) each. */

import { NOTIFY_INVAL_ENTRY_OUT, NOTIFY_STORE_OUT, NotifyCode, OUT_HEADER, ROOT_NODEID } from "./ondisk.ts";

/** Room in front of the data of a STORE. */
export const STORE_ROOM = OUT_HEADER.size + NOTIFY_STORE_OUT.size;

function writeHeader(bytes: Uint8Array, code: number): DataView {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  view.setUint32(OUT_HEADER.offsets.len, bytes.byteLength, true);
  view.setInt32(OUT_HEADER.offsets.error, code, true);
  return view;
}

/** The kernel sends again every request that was read and not answered, with bit 63 of `unique` set. Linux 6.9. */
export function resend(): Uint8Array {
  const bytes = new Uint8Array(OUT_HEADER.size);
  writeHeader(bytes, NotifyCode.resend);
  return bytes;
}

/** Makes of STORE_ROOM bytes and the data behind them a STORE: data go into the page cache of the node at `offset`. */
export function fillStore(bytes: Uint8Array, nodeid: number, offset: number): void {
  const view = writeHeader(bytes, NotifyCode.store);
  const at = OUT_HEADER.size;
  view.setBigUint64(at + NOTIFY_STORE_OUT.offsets.nodeid, BigInt(nodeid), true);
  view.setBigUint64(at + NOTIFY_STORE_OUT.offsets.offset, BigInt(offset), true);
  view.setUint32(at + NOTIFY_STORE_OUT.offsets.size, bytes.byteLength - STORE_ROOM, true);
}

/** The name is gone from the root directory. */
export function invalEntry(name: string): Uint8Array {
  const encoded = Buffer.from(name, "latin1");
  const bytes = new Uint8Array(OUT_HEADER.size + NOTIFY_INVAL_ENTRY_OUT.size + encoded.byteLength + 1);
  const view = writeHeader(bytes, NotifyCode.invalEntry);
  const at = OUT_HEADER.size;
  view.setBigUint64(at + NOTIFY_INVAL_ENTRY_OUT.offsets.parent, BigInt(ROOT_NODEID), true);
  view.setUint32(at + NOTIFY_INVAL_ENTRY_OUT.offsets.namelen, encoded.byteLength, true);
  bytes.set(encoded, at + NOTIFY_INVAL_ENTRY_OUT.size);
  return bytes;
}
