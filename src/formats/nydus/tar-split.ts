/** The part `tar.split` of blobs that headstart wrote (write/tar-split.ts draws it): names and numbers that its writer and reader share. */

/** At most 16 bytes: a name of the table of contents. */
export const TAR_SPLIT_NAME = "tar.split";
export const TAR_SPLIT_MAGIC = Buffer.from("HSTARSP1", "latin1");
export const TarSplitRecord = { end: 0, literal: 1, run: 2, slice: 3, blob: 4 } as const;
