/** EROFS images in memory, for tests that need no kernel. */

import { crc32c } from "../../src/base/crc32c.ts";
import { type FileTree, FileType } from "../../src/erofs/file-tree.ts";
import { type ErofsLayout, layoutEager, layoutLazy } from "../../src/erofs/write.ts";
import { fillFromAddress } from "./random-tree.ts";

export const UUID = Buffer.from("00112233445566778899aabbccddeeff", "hex");
export const FORMS = ["lazy", "eager"] as const;
export type Form = (typeof FORMS)[number];

/** The tree laid out in one of the two forms; for the eager one data are placed in inode order with a gap now and then, as a stream leaves them. */
export function layoutAs(form: Form, tree: FileTree): ErofsLayout {
  if (form === "lazy") return layoutLazy(tree, { uuid: UUID });
  const places = new Float64Array(tree.inodeCount).fill(-1);
  let end = 4096;
  for (let inode = 0; inode < tree.inodeCount; inode++) {
    if (tree.type[inode] !== FileType.regular || tree.size[inode] === 0) continue;
    places[inode] = end;
    end += Math.ceil(tree.size[inode]! / 4096 + (inode % 10 === 0 ? 1 : 0)) * 4096;
  }
  return layoutEager(tree, places, end, { uuid: UUID });
}

/** The whole image in memory; for small ones. */
export function imageBytes(layout: ErofsLayout): Uint8Array {
  const bytes = new Uint8Array(layout.size);
  for (const part of layout.parts) bytes.set(part.bytes, part.offset);
  const { rowCount, address, length, fileOffset } = layout.placement;
  for (let row = 0; row < rowCount; row++) {
    fillFromAddress(bytes.subarray(fileOffset[row]!, fileOffset[row]! + length[row]!), address[row]!);
  }
  return bytes;
}

/** Gives a changed image a right superblock checksum again, so that what lies behind it is looked at. */
export function mendChecksum(image: Uint8Array): void {
  const view = new DataView(image.buffer, image.byteOffset);
  view.setUint32(1028, 0, true);
  view.setUint32(1028, crc32c(image.subarray(1024, 4096)), true);
}
