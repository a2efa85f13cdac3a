/**
 * The hash of directory indexes: half MD4 over a name in pieces of 32 bytes (fs/ext4/hash.c, ext4fs_dirhash with DX_HASH_HALF_MD4). Bytes are
 * signed, as the superblock flag that we write says; `unsigned` is the other flavour, which the reader meets.
 */

const MD4_START = [0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476] as const;
const ROUND1 = [0, 1, 2, 3, 4, 5, 6, 7] as const;
const ROUND2 = [1, 3, 5, 7, 0, 2, 4, 6] as const;
const ROUND3 = [3, 7, 2, 6, 1, 5, 0, 4] as const;
const SHIFTS1 = [3, 7, 11, 19] as const;
const SHIFTS2 = [3, 5, 9, 13] as const;
const SHIFTS3 = [3, 9, 11, 15] as const;
/** A hash that htree readers use as their end mark. */
const HTREE_EOF = 0xfffffffe;

const rotate = (value: number, by: number) => (value << by) | (value >>> (32 - by));

export interface NameHash {
  /** Lowest bit clear: it marks an index key whose hash goes on from the block before. */
  readonly hash: number;
  readonly minor: number;
}

/** The words that hashing starts from: `seed` as it lies in the superblock (16 bytes), the MD4 constants where it is all zero. */
export function hashState(seed: Uint8Array): Int32Array {
  const view = new DataView(seed.buffer, seed.byteOffset, 16);
  const words = Int32Array.from({ length: 4 }, (_, index) => view.getUint32(index * 4, true));
  return words.every((word) => word === 0) ? Int32Array.from(MD4_START) : words;
}

export function hashName(name: Uint8Array, start: Int32Array, unsigned = false): NameHash {
  const state = Int32Array.from(start);
  const words = new Int32Array(8);
  for (let at = 0; at < name.byteLength; at += 32) {
    pieceToWords(name, at, words, unsigned);
    halfMd4(state, words);
  }
  let hash = (state[1]! & ~1) >>> 0;
  if (hash === HTREE_EOF) hash -= 2;
  return { hash, minor: state[2]! >>> 0 };
}

/** str2hashbuf: the rest of the name's length fills what the name does not. */
function pieceToWords(name: Uint8Array, at: number, words: Int32Array, unsigned: boolean): void {
  const rest = name.byteLength - at;
  const length = Math.min(rest, 32);
  const byte = rest & 0xff;
  const pad = byte | (byte << 8) | (byte << 16) | (byte << 24);
  words.fill(pad);
  let word = pad;
  for (let index = 0; index < length; index++) {
    const value = name[at + index]!;
    word = ((unsigned || value < 128 ? value : value - 256) + (word << 8)) | 0;
    words[index >> 2] = word;
    if ((index & 3) === 3) word = pad;
  }
}

function halfMd4(state: Int32Array, words: Int32Array): void {
  let [a, b, c, d] = state as unknown as [number, number, number, number];
  for (let step = 0; step < 24; step++) {
    const at = step & 7;
    let sum: number;
    let shift: number;
    if (step < 8) {
      sum = (d ^ (b & (c ^ d))) + words[ROUND1[at]!]!;
      shift = SHIFTS1[step & 3]!;
    } else if (step < 16) {
      sum = ((b & c) + ((b ^ c) & d) + words[ROUND2[at]!]! + 0x5a827999) | 0;
      shift = SHIFTS2[step & 3]!;
    } else {
      sum = ((b ^ c ^ d) + words[ROUND3[at]!]! + 0x6ed9eba1) | 0;
      shift = SHIFTS3[step & 3]!;
    }
    const next = rotate((a + sum) | 0, shift);
    a = d;
    d = c;
    c = b;
    b = next;
  }
  state[0] = (state[0]! + a) | 0;
  state[1] = (state[1]! + b) | 0;
  state[2] = (state[2]! + c) | 0;
  state[3] = (state[3]! + d) | 0;
}
