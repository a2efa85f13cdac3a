import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  base256,
  directory,
  END,
  entry,
  file,
  globalHeader,
  hardLink,
  header,
  longName,
  padded,
  paxBody,
  symlink,
  type TarFields,
  tar,
  wholeTar,
  withChecksum,
} from "../../../test/tar-bytes.ts";
import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { parseEntryAt, type TarEntry, TarReader } from "./records.ts";

interface Read {
  readonly entries: TarEntry[];
  readonly data: Buffer[];
}

function read(bytes: Uint8Array, chunk = bytes.byteLength || 1): Read {
  const entries: TarEntry[] = [];
  const data: Buffer[] = [];
  const reader = new TarReader(
    {
      entry(found) {
        entries.push(found);
        data.push(Buffer.alloc(0));
        return true;
      },
      data(view, offset) {
        assert.deepEqual(Buffer.from(view), Buffer.from(bytes.subarray(offset, offset + view.byteLength)));
        data.push(Buffer.concat([data.pop()!, view]));
      },
    },
    { layer: "test" },
  );
  for (let at = 0; at < bytes.byteLength; at += chunk) reader.push(bytes.subarray(at, at + chunk));
  reader.finish();
  assert.equal(reader.offset, bytes.byteLength);
  return { entries, data };
}

const text = (bytes: Uint8Array) => Buffer.from(bytes).toString("latin1");
const only = (bytes: Uint8Array) => {
  const { entries } = read(bytes);
  assert.equal(entries.length, 1);
  return entries[0]!;
};
const name = (bytes: Uint8Array) => text(only(bytes).name);

function refuses(code: string, bytes: Uint8Array): void {
  for (const chunk of [bytes.byteLength || 1, 7]) {
    assert.throws(
      () => read(bytes, chunk),
      (error) => isHeadstartError(error, "HS_LAYER_REFUSED") && error.details.refusal === code,
      `wanted ${code}`,
    );
  }
}

test("a ustar name is prefix, slash and name; an empty prefix adds no slash", () => {
  assert.equal(name(wholeTar({ name: "b", prefix: "dir/a" })), "dir/a/b");
  assert.equal(name(wholeTar({ name: "b" })), "b");
  assert.equal(
    name(wholeTar({ name: "n".repeat(100), prefix: "p".repeat(155) })),
    `${"p".repeat(155)}/${"n".repeat(100)}`,
  );
});

test("any ustar version is read", () => {
  const block = Buffer.from(header({ name: "x", prefix: "p" }));
  block.write("99", 263);
  assert.equal(name(tar(withChecksum(block), END)), "p/x");
});

test("a star header has a prefix of 131 bytes and its times must be numbers", () => {
  assert.equal(name(wholeTar({ form: "star", name: "b", prefix: "q".repeat(131) })), `${"q".repeat(131)}/b`);
  const block = Buffer.from(header({ form: "star", name: "b" }));
  block.write("nonsense", 476);
  refuses("tar-header", tar(withChecksum(block), END));
});

test("GNU headers have no prefix, but where no times stand the 155 ASCII bytes of old Go writers are one", () => {
  const times = Buffer.from(header({ form: "gnu", name: "b" }));
  times.write("14524770123\0", 345);
  assert.equal(name(tar(withChecksum(times), END)), "b");
  assert.equal(name(wholeTar({ form: "gnu", name: "b", prefix: "some/dir" })), "some/dir/b");
  const latin = Buffer.concat([Buffer.from("dir"), Buffer.from([0xe9])]);
  assert.equal(name(wholeTar({ form: "gnu", name: "b", prefix: latin })), "b");
});

test("in v7 headers, also 'ustar ' with another version, prefix and device numbers mean nothing", () => {
  const v7 = only(wholeTar({ form: "v7", name: "dev", type: "3", prefix: "p", major: 1, minor: 3 }));
  assert.deepEqual([text(v7.name), v7.devMajor, v7.devMinor], ["dev", 0, 0]);
  const block = Buffer.from(header({ form: "gnu", name: "dev", type: "3", major: 1, minor: 3, prefix: "p" }));
  block.write("1", 263);
  assert.deepEqual([only(tar(withChecksum(block), END)).devMajor], [0]);
});

test("a checksum over signed bytes is as good as one over unsigned bytes, a wrong one is refused", () => {
  const block = Buffer.from(header({ name: Buffer.from([0xe9, 0xe8]) }));
  const signed = block.reduce(
    (sum, byte, at) => sum + (at >= 148 && at < 156 ? 32 : byte >= 128 ? byte - 256 : byte),
    0,
  );
  assert.equal(text(only(tar(withChecksum(block, signed), END)).name), "\xe9\xe8");
  refuses("tar-header", wholeTar({ name: "x", checksum: 1 }));
});

test("octal numbers: blanks and NULs around, cut at the first NUL inside, empty is 0", () => {
  const mode = (field: string) => only(wholeTar({ name: "x", mode: field })).mode;
  assert.equal(mode("  644 \0 "), 0o644);
  assert.equal(mode("\0\0 755"), 0o755);
  assert.equal(mode("7\x005"), 7);
  assert.equal(mode(""), 0);
  for (const bad of ["-1", "8", "9", "7a", "0x1", "+7", "6 4"])
    refuses("tar-header", wholeTar({ name: "x", mode: bad }));
});

test("base 256 numbers are two's complement; more than 63 bits are refused, in unused fields as well", () => {
  assert.equal(only(wholeTar({ name: "x", uid: base256(2_097_152n, 8) })).uid, 2_097_152);
  assert.equal(only(wholeTar({ name: "x", uid: base256(-5n, 8) })).uid, 4_294_967_291);
  assert.equal(only(wholeTar({ name: "x", gid: base256(2n ** 40n + 7n, 8) })).gid, 7);
  assert.equal(only(wholeTar({ name: "x", gid: base256(2n ** 54n + 7n, 8) })).gid, 7);
  assert.equal(only(wholeTar({ name: "x", mtime: base256(-1n, 12) })).mtimeSeconds, -1);
  assert.equal(only(wholeTar({ name: "x", mtime: base256(2n ** 33n, 12) })).mtimeSeconds, 2 ** 33);
  refuses("tar-header", wholeTar({ name: "x", mtime: base256(2n ** 63n, 12) }));
  refuses("tar-header", wholeTar({ name: "x", major: "9" }));
  assert.equal(only(wholeTar({ name: "x", form: "v7", major: "9" })).devMajor, 0);
});

test("a negative size is refused for types with data and ignored for all others, which have no data", () => {
  refuses("tar-header", wholeTar({ name: "x", size: base256(-1n, 12) }));
  refuses("tar-header", wholeTar({ name: "x", size: base256(-1n, 12), pax: { size: "0" } }));
  for (const type of ["1", "2", "3", "4", "5", "6"]) {
    const { entries } = read(wholeTar({ name: "x", type, size: base256(-1n, 12) }, file("next", "abc")));
    assert.deepEqual(
      entries.map((found) => text(found.name)),
      ["x", "next"],
    );
  }
});

test("no data follow a hard link, whatever its size says", () => {
  const { entries } = read(wholeTar(hardLink("a", "b", { size: 700 }), file("next")));
  assert.deepEqual(
    entries.map((found) => found.storedSize),
    [0, 0],
  );
  refuses("tar-header", wholeTar(hardLink("a", "b", { data: "data where none may be" })));
});

test("PAX records replace the header's fields", () => {
  const found = only(
    wholeTar({
      name: "short",
      link: "short",
      uid: 1,
      pax: {
        path: "a/b",
        linkpath: "c",
        uid: "4294967301",
        gid: "-5",
        mtime: "1600000001.5",
        uname: "u",
        comment: "no",
      },
    }),
  );
  assert.deepEqual(
    [text(found.name), text(found.linkname), found.uid, found.gid, text(found.uname)],
    ["a/b", "c", 5, 4_294_967_291, "u"],
  );
  assert.deepEqual([found.mtimeSeconds, found.mtimeNanoseconds], [1_600_000_001, 500_000_000]);
  assert.equal(text(found.pax.get("comment")!), "no");
});

test("the size of a PAX record counts", () => {
  const { entries, data } = read(
    wholeTar({ name: "x", size: 0, pax: { size: "5" } }, padded(Buffer.from("12345")), file("y")),
  );
  assert.deepEqual([entries[0]!.size, text(data[0]!), text(entries[1]!.name)], [5, "12345", "y"]);
  refuses("tar-header", wholeTar({ name: "x", pax: { size: "-1" } }));
});

test("PAX times: a sign, digits, a point and digits of which nine count", () => {
  const time = (mtime: string) => {
    const found = only(wholeTar({ name: "x", pax: { mtime } }));
    return [found.mtimeSeconds, found.mtimeNanoseconds];
  };
  assert.deepEqual(time("1600000001."), [1_600_000_001, 0]);
  assert.deepEqual(time("+1.0000000019"), [1, 1]);
  assert.deepEqual(time("-1.5"), [-2, 500_000_000]);
  for (const bad of ["1e9", ".5", "1.5.5", "1.-5", "x", "9223372036854775808"]) {
    refuses("pax", wholeTar({ name: "x", pax: { mtime: bad } }));
    refuses("pax", wholeTar({ name: "x", pax: { atime: bad } }));
  }
  for (const bad of ["1.5", "", " 1", "9223372036854775808", "0x1"]) {
    if (bad !== "") refuses("pax", wholeTar({ name: "x", pax: { uid: bad } }));
  }
});

test("an empty PAX value means not given, and of equal keys the last counts", () => {
  assert.equal(name(wholeTar({ name: "plain", pax: { path: "" } })), "plain");
  assert.equal(
    name(
      wholeTar({
        name: "plain",
        pax: [
          ["path", "a"],
          ["path", "b"],
        ],
      }),
    ),
    "b",
  );
  assert.equal(
    name(
      wholeTar({
        name: "plain",
        pax: [
          ["path", "a"],
          ["path", ""],
        ],
      }),
    ),
    "plain",
  );
});

test("malformed PAX records are refused", () => {
  const extended = (body: string) => wholeTar({ type: "x", name: "x", data: body }, { name: "f" });
  for (const body of [
    "10 a=b\n",
    "6 a=b\n\n",
    "8 ab=c\n",
    "x a=b\n",
    "6 ab\n\n",
    "5 =b\n",
    "6 a=bc",
    " 6 a=b\n",
    "-6 a=b\n",
    "6\n",
  ]) {
    refuses("pax", extended(body));
  }
  for (const body of ["5 a=\n", "6 a=b\n", "+7 a=b\n", "7 a=b=\n"])
    assert.equal(read(extended(body)).entries.length, 1);
  refuses("pax", wholeTar({ name: "x", pax: { path: "a\0b" } }));
  refuses("pax", wholeTar({ name: "x", pax: { "SCHILY.xattr.user.\0": "b" } }));
  assert.equal(only(wholeTar({ name: "x", pax: { "SCHILY.xattr.user.a": "a\0b" } })).pax.size, 1);
});

test("C15: a second x header before an entry replaces the whole first one", () => {
  const found = only(
    wholeTar(
      {
        type: "x",
        data: paxBody([
          ["path", "first"],
          ["uid", "7"],
        ]),
      },
      { type: "x", data: paxBody([["gid", "8"]]) },
      { name: "plain", uid: 1 },
    ),
  );
  assert.deepEqual([text(found.name), found.uid, found.gid], ["plain", 1, 8]);
});

test("C15: GNU long names beat PAX ones, in any order; the last L counts; an empty one is not given", () => {
  const x = entry({
    type: "x",
    data: paxBody([
      ["path", "pax"],
      ["linkpath", "paxlink"],
    ]),
  });
  for (const order of [
    [x, longName("L", "gnu"), longName("K", "gnulink")],
    [longName("L", "gnu"), longName("K", "gnulink"), x],
    [longName("L", "lost"), longName("L", "gnu"), x, longName("K", "gnulink")],
  ]) {
    const found = only(wholeTar(...order, symlink("plain", "plainlink")));
    assert.deepEqual([text(found.name), text(found.linkname)], ["gnu", "gnulink"]);
  }
  assert.equal(name(wholeTar(longName("L", "gnu"), longName("L", ""), file("plain"))), "plain");
  assert.equal(name(wholeTar(longName("L", "cut\0behind"), file("plain"))), "cut");
});

test("extension headers of more than 1 MiB are refused, exactly 1 MiB is read", () => {
  const longest = entry({ type: "L", name: "x", data: Buffer.alloc(1024 * 1024, "n") });
  assert.equal(only(tar(longest, file("x"), END)).name.byteLength, 1024 * 1024);
  refuses("pax", tar(entry({ type: "L", name: "x", data: Buffer.alloc(1024 * 1024 + 1, "n") }), file("x"), END));
  refuses("pax", tar(header({ type: "x", size: 2 ** 30 }), END));
});

test("extension records with no entry after them have no effect", () => {
  assert.equal(read(wholeTar(longName("L", "x"))).entries.length, 0);
  assert.equal(read(tar({ type: "x", data: paxBody([["path", "x"]]) })).entries.length, 0);
});

test("C14: a global header is an entry of its own name, its values mean nothing and what came before it is lost", () => {
  const { entries } = read(
    wholeTar(
      { type: "x", data: paxBody([["path", "lost"]]) },
      longName("L", "lost too"),
      globalHeader({ uid: "1000", mtime: "nonsense" }, "g-name"),
      file("plain"),
    ),
  );
  assert.deepEqual(
    entries.map((found) => [text(found.name), String.fromCharCode(found.type), found.uid]),
    [
      ["g-name", "g", 0],
      ["plain", "0", 0],
    ],
  );
  assert.equal(text(read(wholeTar(globalHeader({ path: "from-record" }))).entries[0]!.name), "from-record");
});

test("type NUL is a directory when the final name ends in a slash, type 0 is regular with any name", () => {
  const type = (...parts: (TarFields | Uint8Array)[]) => String.fromCharCode(only(wholeTar(...parts)).type);
  assert.equal(type({ type: "", name: "a/" }), "5");
  assert.equal(type({ type: "", name: "a" }), "0");
  assert.equal(type({ type: "0", name: "a/" }), "0");
  assert.equal(type({ type: "", name: "a", pax: { path: "b/" } }), "5");
  assert.equal(type(longName("L", "c"), { type: "", name: "a/" }), "0");
});

const SPARSE_DATA = "A".repeat(10) + "B".repeat(5);
const sparse = (pax: TarFields["pax"], data: string | Uint8Array = SPARSE_DATA) =>
  wholeTar({ name: "GNUSparseFile.0/s", pax: pax!, data }, file("next"));
const PIECES = [
  { offset: 100, length: 10 },
  { offset: 1000, length: 5 },
];

test("sparse 0.0: offsets and sizes of pieces alternate in the records", () => {
  const pairs = PIECES.flatMap(({ offset, length }) => [
    ["GNU.sparse.offset", String(offset)] as const,
    ["GNU.sparse.numbytes", String(length)] as const,
  ]);
  const [found] = read(sparse([["GNU.sparse.size", "2000"], ["GNU.sparse.numblocks", "2"], ...pairs])).entries;
  assert.deepEqual([found!.size, found!.storedSize, found!.sparse], [2000, 15, PIECES]);
  refuses("pax", sparse([["GNU.sparse.size", "2000"], ["GNU.sparse.numblocks", "2"], ...pairs.reverse()]));
});

test("sparse 0.1: a map in one record, and a name of its own that beats all others", () => {
  const records = { "GNU.sparse.map": "100,10,1000,5", "GNU.sparse.numblocks": "2", "GNU.sparse.name": "real" };
  const [found] = read(sparse({ ...records, "GNU.sparse.realsize": "2000" })).entries;
  assert.deepEqual([text(found!.name), found!.size, found!.sparse], ["real", 2000, PIECES]);
  const [both] = read(sparse({ ...records, "GNU.sparse.size": "1500", "GNU.sparse.realsize": "2000" })).entries;
  assert.equal(both!.size, 1500);
  for (const bad of [
    { ...records, "GNU.sparse.size": "1004" },
    { ...records, "GNU.sparse.size": "x" },
    { ...records, "GNU.sparse.size": "-1" },
    { ...records, "GNU.sparse.size": "2000", "GNU.sparse.numblocks": "3" },
    { ...records, "GNU.sparse.size": "2000", "GNU.sparse.map": "1000,5,100,10" },
    { ...records, "GNU.sparse.size": "2000", "GNU.sparse.map": "100,10,105,5" },
    { ...records, "GNU.sparse.size": "2000", "GNU.sparse.map": "100,10,-1,5" },
    { ...records, "GNU.sparse.size": String(2n ** 62n) },
  ]) {
    refuses("sparse", sparse(bad));
  }
  refuses("sparse", wholeTar({ type: "5", name: "d", pax: { ...records, "GNU.sparse.size": "2000" } }));
});

test("sparse 1.0: the map stands in the first blocks of the data", () => {
  const records = {
    "GNU.sparse.major": "1",
    "GNU.sparse.minor": "0",
    "GNU.sparse.realsize": "2000",
    "GNU.sparse.name": "s",
  };
  const data = Buffer.concat([padded(Buffer.from("2\n100\n10\n1000\n5\n")), Buffer.from(SPARSE_DATA)]);
  const { entries, data: contents } = read(sparse(records, data));
  assert.deepEqual([entries[0]!.size, entries[0]!.storedSize, entries[0]!.sparse], [2000, 15, PIECES]);
  assert.equal(text(contents[0]!), SPARSE_DATA);
  assert.equal(text(entries[1]!.name), "next");
  // a map of several blocks
  const many = Array.from({ length: 300 }, (_, index) => `${index * 10}\n5\n`).join("");
  const long = Buffer.concat([padded(Buffer.from(`300\n${many}`)), Buffer.alloc(1500)]);
  assert.equal(read(sparse({ ...records, "GNU.sparse.realsize": "3000" }, long)).entries[0]!.sparse!.length, 300);
  refuses("sparse", sparse(records, Buffer.from("2\n100\n10\n")));
  refuses("sparse", sparse(records, padded(Buffer.from("x\n"))));
  refuses("sparse", sparse(records, padded(Buffer.from("9999999\n1\n"))));
  refuses("sparse", sparse(records, padded(Buffer.from("1\n5\n"))));
});

test("another sparse version is a plain file with its plain name", () => {
  const [found] = read(sparse({ "GNU.sparse.major": "2", "GNU.sparse.minor": "0", "GNU.sparse.name": "real" })).entries;
  assert.deepEqual([text(found!.name), found!.sparse, found!.size], ["GNUSparseFile.0/s", null, 15]);
});

test("two zero blocks end the archive, whatever follows", () => {
  assert.equal(read(tar(file("a"), END, file("b"))).entries.length, 1);
  assert.equal(read(tar(file("a"), END, Buffer.from("garbage"))).entries.length, 1);
});

test("an archive may end at an entry border, after one zero block, or inside the last file's padding", () => {
  assert.equal(read(tar(file("a", "x"))).entries.length, 1);
  assert.equal(read(tar(file("a", "x"), new Uint8Array(512))).entries.length, 1);
  assert.equal(read(file("a", "x").subarray(0, 700)).entries.length, 1);
  assert.equal(read(new Uint8Array(0)).entries.length, 0);
});

test("one zero block with something behind, cut blocks and cut data are refused", () => {
  refuses("tar-header", tar(file("a"), new Uint8Array(512), file("b")));
  refuses("tar-cut", new Uint8Array(300));
  refuses("tar-cut", new Uint8Array(700));
  refuses("tar-cut", file("a", "x".repeat(100)).subarray(0, 550));
  refuses("tar-cut", entry({ type: "x", data: paxBody([["path", "x"]]) }).subarray(0, 515));
  refuses("tar-header", Buffer.alloc(512, 1));
});

test("errors say which entry it was, with its name escaped and its offset", () => {
  try {
    read(wholeTar(file("first", "abc"), { name: "bad\n\xff", pax: { mtime: "x" } }));
    assert.fail("not refused");
  } catch (error) {
    assert.ok(error instanceof HeadstartError);
    assert.deepEqual(
      [error.details.refusal, error.details.entry, error.details.name, error.details.offset],
      ["pax", 2, "bad\\x0a\\xc3\\xbf", 1024],
    );
  }
});

test("header and data offsets of entries are places in the stream", () => {
  const { entries } = read(
    wholeTar(file("a", "abc"), { name: "b", data: "x", pax: { path: "c" } }, longName("L", "d"), directory("x")),
  );
  assert.deepEqual(
    entries.map((found) => [found.headerOffset, found.dataOffset]),
    [
      [0, 512],
      [1024, 1024 + 1536],
      [3072, 3072 + 1536],
    ],
  );
});

test("the headers of one entry parse alone; more or fewer do not", () => {
  const bytes = tar(file("first", "abc"), { name: "b", data: "x", pax: { path: "c" } });
  const found = parseEntryAt(bytes.subarray(1024, 2560), 1024, "test");
  assert.deepEqual([text(found.name), found.headerOffset, found.dataOffset, found.storedSize], ["c", 1024, 2560, 1]);
  for (const [start, end] of [
    [0, 1024],
    [1024, 2048],
    [0, 2560],
    [512, 1024],
  ] as const) {
    assert.throws(
      () => parseEntryAt(bytes.subarray(start, end), start, "test"),
      (error) => isHeadstartError(error, "HS_INDEX_MISMATCH", "HS_LAYER_REFUSED"),
    );
  }
  assert.throws(() => parseEntryAt(tar(globalHeader(), file("x")), 0, "test"));
});

test("however the bytes are cut, the same entries and data come out", () => {
  const bytes = wholeTar(
    file("a", "x".repeat(1500)),
    longName("L", `long/${"n".repeat(600)}`),
    file("b", "y".repeat(512)),
    {
      name: "s",
      pax: { "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "900" },
      data: Buffer.concat([padded(Buffer.from("1\n7\n3\n")), Buffer.from("abc")]),
    },
    globalHeader({ comment: "c" }),
    directory("d"),
  );
  const whole = read(bytes);
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 1700 }), (chunk) => {
      assert.deepEqual(read(bytes, chunk), whole);
    }),
    { numRuns: 60 },
  );
});

test("random bytes in a tar give entries or a typed error, never a crash", () => {
  const bytes = wholeTar(
    file("a", "x".repeat(600)),
    { name: "b", pax: { path: "c", mtime: "1.5" } },
    longName("L", "d"),
    symlink("e", "f"),
  );
  const change = fc.record({ at: fc.nat(bytes.byteLength - 1), value: fc.nat(255), mend: fc.boolean() });
  fc.assert(
    fc.property(fc.array(change, { maxLength: 6 }), fc.nat(bytes.byteLength), (changes, cut) => {
      const mutated = Buffer.from(bytes);
      for (const { at, value, mend } of changes) {
        mutated[at] = value;
        const start = at - (at % 512);
        if (mend) mutated.set(withChecksum(mutated.subarray(start, start + 512)), start);
      }
      try {
        read(mutated.subarray(0, cut === 0 ? undefined : cut));
      } catch (error) {
        assert.ok(isHeadstartError(error, "HS_LAYER_REFUSED", "HS_LIMIT"), String(error));
      }
    }),
    { numRuns: 500 },
  );
});
