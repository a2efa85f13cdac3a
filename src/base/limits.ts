/** Named limits on what a file or the network may claim. Each says why it has its value. */

export const MiB = 1024 * 1024;
export const GiB = 1024 * MiB;

export const LIMITS = {
  /** A manifest or index: registries cap at 4 MiB, some indexes of very many platforms are larger. */
  manifestBytes: 8 * MiB,
  /** An image configuration. */
  configBytes: 8 * MiB,
  /** A zTOC: a 32.7 GB image has about 260 MB of them (specs/soci.md 2.5). */
  ztocBytes: 512 * MiB,
  /** Decoded bytes of one unit: what one decode may allocate (specs/soci.md B17). */
  unitDecodedBytes: 256 * MiB,
  /** Stored bytes of one unit: deflate can at worst expand by 5 bytes in 64 KiB. */
  unitStoredBytes: 257 * MiB,
  /** A path inside a layer, counted with a leading slash (specs/layer.md 3). */
  pathBytes: 4095,
  nameBytes: 255,
  symlinkBytes: 4095,
  /** PAX or GNU long name data of one entry (specs/layer.md 2.3). */
  paxBytes: MiB,
  /** EROFS keeps u16 value sizes (specs/layer.md 7.6). */
  xattrValueBytes: 65_535,
  /** Entries of one layer. A 512-byte header each: 20 million are 10 GB of headers alone. */
  layerEntries: 20_000_000,
  /** Bytes of one layer, unpacked: keeps every address inside one 2^44 space. */
  layerBytes: 2 ** 44,
  /** Address spaces of all blobs of one image over data files: a bit for each 4 KiB makes 32 MiB of this. */
  imageDataBytes: 2 ** 40,
  /** Layers of one image: overlayfs takes 500 lowers, builders stop at 127. */
  imageLayers: 500,
  /** gRPC messages, as containerd's own limit. */
  grpcMessageBytes: 16 * MiB,
  /** A token answer is 1-4 KiB, two tokens are at most 32: hence 128 KiB. */
  tokenAnswerBytes: 128 * 1024,
  /** An error body of a registry, of which we show the start. */
  errorBodyBytes: 64 * 1024,
} as const;
