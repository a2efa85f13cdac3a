/** Random images of odd layers, from a seed: names that clash, links into and out of everything, marks, implied parents, ACLs, every kind of header. */

import { base256, END, globalHeader, longName, paxBody, type TarFields, tar } from "../tar-bytes.ts";

/** Numbers in [0, 1) from a seed (mulberry32). */
export function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function randomImage(seed: number): Uint8Array[] {
  const random = randomNumbers(seed);
  const count = 1 + Math.floor(random() * 3);
  return Array.from({ length: count }, () => randomLayer(random));
}

type Random = () => number;

const pick = <T>(random: Random, from: readonly T[]): T => from[Math.floor(random() * from.length)]!;
const chance = (random: Random, part: number) => random() < part;

function randomLayer(random: Random): Uint8Array {
  const parts = Array.from({ length: 1 + Math.floor(random() * 9) }, () => randomEntry(random));
  return tar(...parts, END);
}

function randomEntry(random: Random): Uint8Array {
  const kind = random();
  const name = randomName(random);
  const common: TarFields = {
    name,
    mode: pick(random, [0o644, 0o755, 0o700, 0o1777, 0o2775, 0o4711, 0o640, 0o000]),
    uid: pick<number | Uint8Array>(random, [0, 0, 0, 1000, 70_000, base256(-1n, 8), base256(2n ** 32n + 5n, 8)]),
    gid: pick<number | Uint8Array>(random, [0, 0, 0, 42, 1000, base256(2n ** 32n - 1n, 8)]),
    mtime: pick<number | Uint8Array>(random, [
      0,
      1_600_000_000,
      1_700_000_000,
      base256(-5n, 12),
      base256(2n ** 33n, 12),
    ]),
    xattrs: randomXattrs(random),
  };
  if (kind < 0.25)
    return tar({ ...common, type: pick(random, ["0", "0", ""]), data: "x".repeat(Math.floor(random() * 700)) });
  if (kind < 0.5) return tar({ ...common, type: "5", name: chance(random, 0.5) ? `${name}/` : name });
  if (kind < 0.62) return tar({ ...common, type: "2", link: randomTarget(random), mode: 0o777 });
  if (kind < 0.72) return tar({ ...common, type: "1", link: randomTarget(random) });
  if (kind < 0.76) {
    const zero = chance(random, 0.6);
    return tar({
      ...common,
      type: "3",
      major: zero ? 0 : 1,
      minor: zero ? 0 : 3,
      form: pick(random, ["ustar", "v7", "gnu"]),
    });
  }
  if (kind < 0.77) return tar({ ...common, type: "4", major: 7, minor: 300 });
  if (kind < 0.79) return tar({ ...common, type: "6" });
  if (kind < 0.81) return globalHeader({ comment: "c" }, name);
  if (kind < 0.92)
    return tar({
      ...common,
      name: `${directoryOf(random)}.wh.${pick(random, NAMES)}`,
      type: pick(random, ["0", "0", "5", "7"]),
    });
  if (kind < 0.97) return tar({ ...common, name: `${directoryOf(random)}.wh..wh..opq` });
  if (kind < 0.98) return tar(longName("L", name), { ...common, name: "short", type: "0" });
  if (kind < 0.99) {
    return tar(
      { type: "x", data: paxBody([["path", "lost"]]) },
      { type: "x", data: paxBody([["mtime", "1600000001.25"]]) },
      { ...common, xattrs: {} },
    );
  }
  return tar({ ...common, type: "0", name: `${directoryOf(random)}.wh.${pick(random, NAMES)}/${pick(random, NAMES)}` });
}

const NAMES = ["a", "b", "c", "d"];

function directoryOf(random: Random): string {
  const depth = Math.floor(random() * 3);
  return Array.from({ length: depth }, () => `${pick(random, NAMES)}/`).join("");
}

function randomName(random: Random): string {
  const plain = `${directoryOf(random)}${pick(random, NAMES)}`;
  const odd = random();
  if (odd < 0.85) return plain;
  if (odd < 0.88) return `./${plain}`;
  if (odd < 0.91) return `/${plain}`;
  if (odd < 0.93) return plain.replaceAll("/", "//");
  if (odd < 0.95) return `${plain}/../${pick(random, NAMES)}`;
  if (odd < 0.97) return `../${plain}`;
  if (odd < 0.98) return `${plain}/.`;
  return pick(random, [".", "/", "", "a/..", ".."]);
}

function randomTarget(random: Random): string {
  const plain = `${directoryOf(random)}${pick(random, NAMES)}`;
  const odd = random();
  if (odd < 0.55) return plain;
  if (odd < 0.7) return `/${plain}`;
  if (odd < 0.8) return `../${plain}`;
  if (odd < 0.88) return `${plain}/../${pick(random, NAMES)}`;
  if (odd < 0.92) return pick(random, [".", "..", "/", "../..", "./a", "a/", "b//c"]);
  return pick(random, NAMES);
}

/** u32 version 2, then entries of u16 tag, u16 permissions, u32 id. */
function acl(...entries: readonly (readonly [number, number, number?])[]): Uint8Array {
  const bytes = Buffer.alloc(4 + 8 * entries.length);
  bytes.writeUInt32LE(2, 0);
  for (const [index, [tag, permissions, id]] of entries.entries()) {
    bytes.writeUInt16LE(tag, 4 + 8 * index);
    bytes.writeUInt16LE(permissions, 6 + 8 * index);
    bytes.writeUInt32LE(id ?? 0xffff_ffff, 8 + 8 * index);
  }
  return bytes;
}

const NAMED_ACL = acl([1, 7], [2, 5, 1000], [4, 5], [0x10, 7], [0x20, 4]);
const PLAIN_ACL = acl([1, 7], [4, 1], [0x20, 0]);

/** Another version, no entries, a cut one, an unknown tag, nobody named, no mask where one is needed, a wrong order, more than rwx. */
const ODD_ACLS = [
  Buffer.from([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
  Buffer.from([2, 0, 0, 0]),
  Buffer.from([2, 0, 0, 0, 1]),
  acl([3, 7], [4, 5], [0x20, 4]),
  acl([1, 7], [2, 5, 0xffff_ffff], [4, 5], [0x10, 7], [0x20, 4]),
  acl([1, 7], [2, 5, 1000], [4, 5], [0x20, 4]),
  acl([4, 5], [1, 7], [0x20, 4]),
  acl([1, 15], [4, 5], [0x20, 4]),
  acl([1, 7], [4, 5], [0x10, 3], [0x20, 4]),
  acl([1, 7], [2, 5, 1000], [2, 4, 1000], [4, 5], [8, 1, 5], [0x10, 7], [0x20, 4]),
];

function randomXattrs(random: Random): Record<string, string | Uint8Array> {
  if (chance(random, 0.65)) return {};
  const value = pick(random, ["v", "w", ""]);
  switch (Math.floor(random() * 10)) {
    case 0:
      return { "user.x": value, "user.y": "y" };
    case 1:
      return { "security.capability": Buffer.from("0100000200040000000000000000000000000000", "hex") };
    case 2:
      return { "system.posix_acl_default": pick(random, [NAMED_ACL, PLAIN_ACL, ""]) };
    case 3:
      return { "system.posix_acl_access": pick(random, [NAMED_ACL, PLAIN_ACL, ""]) };
    case 4:
      return { "trusted.overlay.opaque": "y", "trusted.x": value };
    case 5:
      return { "user.overlay.opaque": "y" };
    case 6:
      return { "security.x": value };
    case 7:
      return { other: value, "system.other": value, "foo.bar": value };
    case 8:
      return { [pick(random, ["system.posix_acl_access", "system.posix_acl_default"])]: pick(random, ODD_ACLS) };
    default:
      return pick(random, [
        { "user.": value },
        { "security.": value },
        { "trusted.": value },
        { "security.capability": value },
        { "security.capability": Buffer.from("0100000300040000000000000000000000000000e8030000", "hex") },
        { "user.z": "z" },
        { [`user.${"n".repeat(250)}`]: "long" },
        { [`user.${"n".repeat(251)}`]: "too long" },
        { [`other${"n".repeat(251)}`]: "too long" },
      ]);
  }
}
