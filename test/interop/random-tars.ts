/** Random tars whose headers, extension records, sparse maps and ends are odd, while their names are not: what a tar reader must agree on. */

import {
  base256,
  entry,
  file,
  globalHeader,
  header,
  longName,
  padded,
  paxRecord,
  type TarFields,
  tar,
  withChecksum,
} from "../tar-bytes.ts";
import { randomNumbers } from "./random-layers.ts";

type Random = () => number;

const pick = <T>(random: Random, from: readonly T[]): T => from[Math.floor(random() * from.length)]!;

export function randomTar(seed: number): Uint8Array {
  const random = randomNumbers(seed);
  const parts: Uint8Array[] = [];
  const count = 1 + Math.floor(random() * 3);
  for (let index = 0; index < count; index++) parts.push(oddEntry(random, `n${index}`));
  return Buffer.concat([...parts, ...oddEnd(random)]);
}

const NUMBERS = [
  "644",
  "0000644",
  " 644 ",
  "\x344",
  "644\0 7",
  "",
  "\0\0\0",
  "8",
  "-1",
  "7a",
  "6 4",
  "0x1",
  "+7",
  "777777777777",
];

function oddNumber(random: Random, length: number): string | Uint8Array {
  if (random() < 0.7) return pick(random, NUMBERS);
  const values = [0n, 5n, -1n, 2n ** 31n, 2n ** 32n + 7n, 2n ** 55n - 1n, -(2n ** 40n), 2n ** 62n, 2n ** 63n];
  return base256(pick(random, values), length);
}

function oddEntry(random: Random, name: string): Uint8Array {
  const plain: TarFields = {
    name,
    type: pick(random, ["0", "0", "0", "", "5", "2", "1", "6", "3"]),
    link: "n0",
    data: "",
  };
  const withData =
    plain.type === "0" || plain.type === "" ? { ...plain, data: "x".repeat(Math.floor(random() * 1100)) } : plain;
  switch (Math.floor(random() * 12)) {
    case 0: {
      const field = pick(random, ["mode", "uid", "gid", "mtime", "major", "minor"] as const);
      return entry({
        ...withData,
        form: pick(random, ["ustar", "gnu", "v7"]),
        [field]: oddNumber(random, field === "mtime" ? 12 : 8),
      });
    }
    case 1:
      return entry({ ...withData, size: oddNumber(random, 12) });
    case 2:
      return entry({
        ...withData,
        form: pick(random, ["ustar", "gnu", "v7", "star"]),
        prefix: pick(random, ["p", "p/q", "p".repeat(131), "1234567 ", "caf\xe9", ""]),
      });
    case 3: {
      const block = Buffer.from(header({ ...plain, type: "0" }));
      block[Math.floor(random() * 512)] = Math.floor(random() * 256);
      return Buffer.from(random() < 0.7 ? withChecksum(block) : block);
    }
    case 4:
      return tar({ type: "x", data: oddRecords(random) }, withData);
    case 5:
      return tar(
        { type: "x", data: oddRecords(random) },
        { type: pick(random, ["x", "g"]), data: oddRecords(random), name: "g" },
        withData,
      );
    case 6:
      return tar(
        ...shuffled(random, [
          longName("L", `${name}-long`),
          longName("K", "n0"),
          entry({ type: "x", data: oddRecords(random) }),
        ]),
        withData,
      );
    case 7:
      return oddSparse(random, name);
    case 8:
      return tar(globalHeader({ comment: "c" }, pick(random, ["g", "n0", "n1"])), withData);
    case 9:
      return entry({ ...withData, name: `${name}/` });
    default:
      return entry(withData);
  }
}

function oddRecords(random: Random): Uint8Array {
  const count = Math.floor(random() * 4);
  const records = Array.from({ length: count }, () => {
    const [key, values] = pick(random, [
      ["path", ["pax-name", "", "a\0b", "pax/name/"]],
      ["linkpath", ["n0", "", "a\0b"]],
      ["uid", ["5", "-5", "+5", "4294967301", "x", "", "1.5", "99999999999999999999"]],
      ["gid", ["6", "07", "0x6"]],
      ["size", ["0", "5", "-1", "x"]],
      [
        "mtime",
        ["1600000001.5", "1600000001.", "+1", "-1.5", "1e9", ".5", "1.5.5", "", "1.123456789123", "99999999999"],
      ],
      ["atime", ["1", "x", "1700000000.25"]],
      ["ctime", ["1", "x"]],
      ["uname", ["u", "u\0"]],
      ["hdrcharset", ["BINARY"]],
      ["SCHILY.xattr.user.x", ["v", "", "a\0b"]],
      ["SCHILY.xattr.user.\0", ["v"]],
      ["", ["v"]],
      ["k=k", ["v"]],
      ["GNU.sparse.major", ["1", "0", "2"]],
      ["comment", ["v"]],
    ] as const);
    const record = Buffer.from(paxRecord(key, pick(random, values)));
    const damage = random();
    if (damage < 0.04) return record.subarray(0, record.byteLength - 1);
    if (damage < 0.06) return Buffer.concat([Buffer.from(" "), record]);
    if (damage < 0.08) return Buffer.concat([Buffer.from("0"), record]);
    if (damage < 0.1) return Buffer.from(`3 ${key}`);
    return record;
  });
  return Buffer.concat(records);
}

function oddSparse(random: Random, name: string): Uint8Array {
  const data = "abcdefgh".repeat(80).slice(0, pick(random, [15, 15, 15, 14, 600]));
  const size = pick(random, ["2000", "1005", "1004", "-1", "x"]);
  const pieces = pick(random, [
    [100, 10, 1000, 5],
    [100, 10, 1000, 5],
    [0, 15],
    [1000, 5, 100, 10],
    [100, 10, 105, 5],
    [0, 0, 10, 15],
    [100, 10, 1000, 5, 1005, 0],
    [],
  ] as number[][]);
  const sizeKey = pick(random, ["GNU.sparse.size", "GNU.sparse.realsize"]);
  const type = pick(random, ["0", "0", "0", "5"]);
  switch (Math.floor(random() * 3)) {
    case 0: {
      const pairs = pieces.map(
        (value, index) => [index % 2 === 0 ? "GNU.sparse.offset" : "GNU.sparse.numbytes", String(value)] as const,
      );
      if (random() < 0.1) pairs.reverse();
      return entry({
        type,
        name,
        data,
        pax: [[sizeKey, size], ["GNU.sparse.numblocks", String(pieces.length / 2)], ...pairs],
      });
    }
    case 1: {
      const count = pieces.length / 2 + (random() < 0.1 ? 1 : 0);
      return entry({
        type,
        name,
        data,
        pax: {
          [sizeKey]: size,
          "GNU.sparse.map": pieces.join(","),
          "GNU.sparse.numblocks": String(count),
          "GNU.sparse.name": pick(random, ["", "sparse-name"]),
        },
      });
    }
    default: {
      const map = [pieces.length / 2, ...pieces].map((value) => `${value}\n`).join("");
      const body = Buffer.concat([padded(Buffer.from(random() < 0.9 ? map : `${map}x\n`.slice(1))), Buffer.from(data)]);
      const minor = pick(random, ["0", "0", "0", "1"]);
      return entry({
        type,
        name,
        data: body,
        pax: { [sizeKey]: size, "GNU.sparse.major": "1", "GNU.sparse.minor": minor, "GNU.sparse.name": "sparse-name" },
      });
    }
  }
}

function shuffled<T>(random: Random, items: T[]): T[] {
  return items
    .map((item) => [random(), item] as const)
    .sort(([a], [b]) => a - b)
    .map(([, item]) => item);
}

function oddEnd(random: Random): Uint8Array[] {
  return pick(random, [
    [new Uint8Array(1024)],
    [new Uint8Array(1024)],
    [new Uint8Array(1024)],
    [],
    [new Uint8Array(512)],
    [new Uint8Array(300)],
    [new Uint8Array(700)],
    [new Uint8Array(512), file("behind-one-zero")],
    [new Uint8Array(1024), file("behind-the-end")],
    [new Uint8Array(1024), Buffer.from("garbage")],
    [file("cut", "x".repeat(600)).subarray(0, 512 + 300)],
    [file("cut", "x".repeat(600)).subarray(0, 512 + 700)],
    [entry({ type: "x", data: paxRecord("path", "lost") })],
    [entry({ type: "x", data: paxRecord("path", "lost") }).subarray(0, 515)],
  ] as Uint8Array[][]);
}
