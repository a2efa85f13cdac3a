/** xxHash, 32 bits: the EROFS xattr name filter is built with it (xxHash specification, "XXH32 algorithm description"). */

const PRIME1 = 0x9e3779b1;
const PRIME2 = 0x85ebca77;
const PRIME3 = 0xc2b2ae3d;
const PRIME4 = 0x27d4eb2f;
const PRIME5 = 0x165667b1;

export function xxh32(bytes: Uint8Array, seed: number): number {
  const length = bytes.length;
  let position = 0;
  let hash: number;
  if (length >= 16) {
    let a = (seed + PRIME1 + PRIME2) | 0;
    let b = (seed + PRIME2) | 0;
    let c = seed | 0;
    let d = (seed - PRIME1) | 0;
    for (; position + 16 <= length; position += 16) {
      a = round(a, word(bytes, position));
      b = round(b, word(bytes, position + 4));
      c = round(c, word(bytes, position + 8));
      d = round(d, word(bytes, position + 12));
    }
    hash = (rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18)) | 0;
  } else {
    hash = (seed + PRIME5) | 0;
  }
  hash = (hash + length) | 0;
  for (; position + 4 <= length; position += 4) {
    hash = Math.imul(rotate((hash + Math.imul(word(bytes, position), PRIME3)) | 0, 17), PRIME4);
  }
  for (; position < length; position++) {
    hash = Math.imul(rotate((hash + Math.imul(bytes[position]!, PRIME5)) | 0, 11), PRIME1);
  }
  hash = Math.imul(hash ^ (hash >>> 15), PRIME2);
  hash = Math.imul(hash ^ (hash >>> 13), PRIME3);
  return (hash ^ (hash >>> 16)) >>> 0;
}

function round(lane: number, input: number): number {
  return Math.imul(rotate((lane + Math.imul(input, PRIME2)) | 0, 13), PRIME1);
}

function rotate(value: number, bits: number): number {
  return (value << bits) | (value >>> (32 - bits));
}

function word(bytes: Uint8Array, position: number): number {
  return bytes[position]! | (bytes[position + 1]! << 8) | (bytes[position + 2]! << 16) | (bytes[position + 3]! << 24);
}
