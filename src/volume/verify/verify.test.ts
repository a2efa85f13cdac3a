import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import {
  appendFileSync,
  chmodSync,
  chownSync,
  cpSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { gunzipSync } from "node:zlib";
import { fsckExt4 } from "../../../test/tools/ext4-image.ts";
import { Ext4Patcher } from "../../../test/tools/ext4-patcher.ts";
import { harm } from "../../../test/tools/volume-harm.ts";
import {
  FIXTURE_SOURCE,
  INDEX_SOURCE,
  makeVolume,
  STORES,
  TINY_SOURCE,
  unpackGoldenImage,
} from "../../../test/tools/volumes.ts";
import { PROJECT } from "../../base/project.ts";
import { removeXattr, setXattr } from "../../linux/xattr.ts";
import { parseSource } from "../../oci/reference.ts";
import { type Bucket, isBucket } from "../bolt/ondisk.ts";
import { readBolt } from "../bolt/read.ts";
import { writeBolt } from "../bolt/write.ts";
import { goTime, varint } from "../containerd-db.ts";
import type { Ext4Inode } from "../ext4/read.ts";
import { readHotList } from "../hot.ts";
import { makeSkeleton, makeSnapshot } from "../layout/containerd.ts";
import type { VolumeManifest } from "../manifest.ts";
import type { Rule } from "./findings.ts";
import { type Verification, verifyVolume } from "./verify.ts";

const directory = mkdtempSync(join(tmpdir(), "headstart-verify-"));
after(() => rmSync(directory, { recursive: true }));
const pristine = join(directory, "pristine");
let manifest: VolumeManifest;
let counter = 0;

before(async () => {
  manifest = await makeVolume(pristine, [FIXTURE_SOURCE, TINY_SOURCE]);
});

const verify = (path: string, sources: readonly string[] = []): Promise<Verification> =>
  verifyVolume({
    path,
    sources: sources.map((source) => ({ source: parseSource(source), open: {} })),
    signal: new AbortController().signal,
  });

/** A copy to do harm to; PATH.json goes with it unless `described` is false. */
function copy(described = true): string {
  const path = join(directory, `copy-${++counter}`);
  execFileSync("cp", ["-a", pristine, path]);
  if (described) cpSync(`${pristine}.json`, `${path}.json`);
  return path;
}

async function assertFound(path: string, rule: Rule, words: RegExp): Promise<void> {
  const { ok, differences } = await verify(path);
  assert.equal(ok, false);
  const found = differences.filter((one) => one.rule === rule && words.test(`${one.place}: ${one.message}`));
  assert.ok(found.length > 0, JSON.stringify(differences, null, 1));
}

const layerOf = (depth: number) => manifest.images.find((image) => image.layers.length === 3)!.layers[depth]!;
const files = (root: string, depth: number) => join(root, STORES.snapshots, String(layerOf(depth).snapshotId), "fs");

test("a directory as it was built is right, and all of it is proven", async () => {
  const result = await verify(pristine, [FIXTURE_SOURCE, TINY_SOURCE]);
  assert.deepEqual([result.ok, result.differences, result.unproven], [true, [], []]);
  assert.deepEqual([result.kind, result.checked.images, result.checked.provenSnapshots], ["directory", 2, 5]);
});

for (const layout of ["bottlerocket", "al2023"] as const) {
  test(`a ${layout} disk as it was built is right; bytes where nothing lies are said, a bit elsewhere is found by its block too`, async () => {
    const disk = join(directory, `${layout}.img`);
    await makeVolume(disk, [TINY_SOURCE], { layout });
    const result = await verify(disk);
    assert.deepEqual([result.ok, result.differences, result.unproven], [true, [], []]);
    assert.equal(result.kind, layout === "bottlerocket" ? "gpt" : "ext4");
    assert.equal(result.checked.blocks, statSync(disk).size / 524_288);
    using patcher = new Ext4Patcher(disk, layout === "bottlerocket" ? 1 << 20 : 0);
    patcher.write(statSync(disk).size - 5 * 524_288, Uint8Array.of(1));
    const { ok, unproven } = await verify(disk);
    assert.deepEqual([ok, unproven.map(({ what }) => what)], [true, ["blocks that nothing lies in"]]);
    patcher.undo();
    harm(patcher, "modes", true, 1);
    const rules = (await verify(disk)).differences.map(({ rule }) => rule);
    assert.ok(rules.includes("provenance") && rules.some((rule) => rule !== "provenance"), String(rules));
  });
}

test("a disk with hot files is right, and what it says of them is compared too", async () => {
  const list = join(directory, "hot");
  writeFileSync(list, "/bin/tool\n/etc/*\n");
  for (const layout of ["bottlerocket", "al2023"] as const) {
    const disk = join(directory, `${layout}-hot.img`);
    const { hot } = await makeVolume(disk, [TINY_SOURCE], { layout, hot: readHotList(list) });
    assert.ok(hot !== undefined && hot.region[1] > 0);
    assert.deepEqual((await verify(disk)).differences, []);
    using patcher = new Ext4Patcher(disk, layout === "bottlerocket" ? 1 << 20 : 0);
    let warm: Ext4Inode | undefined;
    patcher.reader.walk({
      inode() {},
      name(_directory, name, inode) {
        if (Buffer.from(name).toString() === "warm.json") warm = inode;
      },
    });
    patcher.content(warm!, 30, Buffer.from("7"));
    await assertFound(disk, "store", /warm.json: its text is/);
  }
});

test("an image by another writer is right: without PATH.json, with SELinux labels, in a bare file system", async () => {
  const image = join(directory, "warm.img");
  unpackGoldenImage("warm.img.gz", image);
  const result = await verify(image, [TINY_SOURCE]);
  assert.deepEqual([result.ok, result.differences, result.kind], [true, [], "ext4"]);
  assert.equal(result.checked.provenSnapshots, 2);
  using patcher = new Ext4Patcher(image);
  const { reader } = patcher;
  let labelled = 0;
  reader.walk({
    inode(inode) {
      if (labelled === 0 && inode.number > 20 && reader.xattrs(inode).length === 1) labelled = inode.number;
    },
    name() {},
  });
  assert.ok(patcher.xattrs(labelled, []));
  fsckExt4(image);
  const harmed = await verify(image);
  assert.deepEqual(
    harmed.differences.map(({ rule, message }) => [rule, message]),
    [["selinux", "the label is none, should be system_u:object_r:cache_t:s0"]],
  );
});

test("the databases that a real containerd left are right where its layers are unpacked", async () => {
  const root = join(directory, "foreign");
  const built = await makeVolume(root, [TINY_SOURCE]);
  rmSync(`${root}.json`);
  for (const [name, path] of [
    ["meta.db", STORES.meta],
    ["metadata.db", STORES.backend],
  ] as const) {
    const golden = join(PROJECT, `test/golden/volume/containerd-1.6.20/${name}.gz`);
    writeFileSync(join(root, path), gunzipSync(readFileSync(golden)));
  }
  mkdirSync(join(root, "io.containerd.runtime.v2.task"), { mode: 0o711 });
  mkdirSync(join(root, "tmpmounts"), { mode: 0o700 });
  const { ok, differences, unproven, checked } = await verify(root);
  assert.deepEqual([ok, differences, checked.provenSnapshots], [true, [], built.images[0]!.layers.length]);
  assert.ok(unproven.some(({ what, count }) => what === "folders of other plug-ins" && count === 2));
});

test("an index that was fetched for all platforms is right where one of them is unpacked", async () => {
  const root = join(directory, "platforms");
  const { images } = await makeVolume(root, [INDEX_SOURCE]);
  rmSync(`${root}.json`);
  const fixture = join(PROJECT, "test/golden/fixture/oci/blobs/sha256");
  const read = (digest: string) => readFileSync(join(fixture, digest.slice(7)));
  const index = JSON.parse(read(images[0]!.digest).toString()) as { manifests: { digest: string }[] };
  const other = index.manifests.find(({ digest }) => digest !== images[0]!.manifest)!.digest;
  const { config, layers } = JSON.parse(read(other).toString()) as {
    config: { digest: string };
    layers: { digest: string }[];
  };
  const time = goTime(manifest.options.time);
  const record = (digest: string, labels: readonly (readonly [string, string])[]): [string, Bucket] => {
    writeFileSync(join(root, STORES.blobs, digest.slice(7)), read(digest), { mode: 0o444 });
    const texts = new Map(labels.map(([name, value]) => [name, Buffer.from(value)] as const));
    const fields: [string, Uint8Array | Bucket][] = [
      ["createdat", time],
      ["labels", { sequence: 0, entries: texts }],
      ["size", varint(read(digest).byteLength)],
      ["updatedat", time],
    ];
    return [digest, { sequence: 0, entries: new Map(fields.filter(([name]) => name !== "labels" || texts.size > 0)) }];
  };
  const kept = layers.map(({ digest }, position) => [`containerd.io/gc.ref.content.l.${position}`, digest] as const);
  const added = [
    record(other, [["containerd.io/gc.ref.content.config", config.digest], ...kept]),
    record(config.digest, []),
  ];
  const sorted = (entries: Iterable<[string, Uint8Array | Bucket]>) =>
    new Map([...entries].sort(([a], [b]) => (a < b ? -1 : 1)));
  edit(root, STORES.meta, ["v1", "k8s.io", "content", "blob"], (bucket) => ({
    ...bucket,
    entries: sorted([...bucket.entries, ...added]),
  }));
  await assertFound(root, "gc-reference", new RegExp(`no label keeps the manifest ${other}`));
  edit(root, STORES.meta, ["v1", "k8s.io", "content", "blob", images[0]!.digest, "labels"], (bucket) => ({
    ...bucket,
    entries: sorted([...bucket.entries, ["containerd.io/gc.ref.content.m.1", Buffer.from(other)]]),
  }));
  const { ok, differences, unproven, checked } = await verify(root);
  assert.deepEqual([ok, differences, checked.provenSnapshots], [true, [], 3]);
  assert.ok(unproven.some(({ what }) => what === "images of other platforms"));
});

test("without blobs the layers are not proven, and said not to be; from their source they are", async () => {
  const root = join(directory, "dropped");
  await makeVolume(root, [FIXTURE_SOURCE], { blobs: false });
  const alone = await verify(root);
  assert.deepEqual([alone.ok, alone.checked.provenSnapshots], [true, 0]);
  assert.deepEqual(alone.unproven.map(({ what, count }) => [what, count]).sort(), [
    ["blobs of layers", 3],
    ["layers", 3],
  ]);
  const proven = await verify(root, [FIXTURE_SOURCE]);
  assert.deepEqual([proven.ok, proven.checked.provenSnapshots], [true, 3]);
  const path = join(root, STORES.snapshots, "1/fs/etc");
  chmodSync(path, 0o700);
  assert.equal((await verify(root)).ok, true, "nobody can know");
  assert.equal((await verify(root, [FIXTURE_SOURCE])).ok, false);
});

test("a source whose image is another one is a difference", async () => {
  const root = join(directory, "tiny");
  await makeVolume(root, [TINY_SOURCE]);
  const { ok, differences } = await verify(root, [FIXTURE_SOURCE]);
  assert.deepEqual([ok, differences.map(({ rule }) => rule)], [false, ["source"]]);
});

/** What users and tools do to volumes: each has to be named by its place and its rule. */
const HARMS: Readonly<
  Record<string, { readonly rule: Rule; readonly words: RegExp; readonly harm: (root: string) => void }>
> = {
  "a lost opaque mark": {
    rule: "layer",
    words: /\/opaque: the xattr trusted.overlay.opaque is missing/,
    harm: (root) => removeXattr(join(files(root, 1), "opaque"), "trusted.overlay.opaque"),
  },
  "a lost capability": {
    rule: "layer",
    words: /the xattr security.capability is missing/,
    harm(root) {
      const at = files(root, 0);
      for (const name of readdirSync(join(at, "bin"))) {
        try {
          removeXattr(join(at, "bin", name), "security.capability");
        } catch {
          // most have none
        }
      }
    },
  },
  "a broken hard link": {
    rule: "layer",
    words: /hard-b: (the link count is 1|is linked with other names)/,
    harm(root) {
      const path = join(files(root, 0), "etc/hard-b");
      execFileSync("cp", ["-p", path, `${path}.copy`]);
      renameSync(`${path}.copy`, path);
    },
  },
  "a link from outside": {
    rule: "layer",
    words: /the link count is 2, should be 1/,
    harm: (root) => linkSync(join(files(root, 0), "etc/keep"), `${root}.link`),
  },
  "a wrong owner": {
    rule: "layer",
    words: /etc\/keep: the owner is 5:0/,
    harm: (root) => chownSync(join(files(root, 0), "etc/keep"), 5, 0),
  },
  "a wrong mode of a directory of the store": {
    rule: "store",
    words: /work: the mode is 0755, should be 0711/,
    harm: (root) => chmodSync(join(root, STORES.snapshots, "2/work"), 0o755),
  },
  "a wrong time": {
    rule: "layer",
    words: /etc\/keep: the time in ns/,
    harm: (root) => utimesSync(join(files(root, 0), "etc/keep"), 1, 1),
  },
  "an xattr too many": {
    rule: "layer",
    words: /user.new/,
    harm: (root) => setXattr(join(files(root, 0), "etc/keep"), "user.new", Buffer.of(1)),
  },
  "a stray file in a layer": {
    rule: "layer",
    words: /stray: the layer has no such entry/,
    harm: (root) => writeFileSync(join(files(root, 2), "stray"), ""),
  },
  "a stray file in the store": {
    rule: "stray-file",
    words: /ingest\/x/,
    harm: (root) => writeFileSync(join(root, "io.containerd.content.v1.content/ingest/x"), ""),
  },
  "a stray snapshot": { rule: "stray-file", words: /snapshots\/9/, harm: (root) => makeSnapshot(root, 9) },
  "a file that is missing": {
    rule: "layer",
    words: /etc\/keep: missing/,
    harm: (root) => unlinkSync(join(files(root, 0), "etc/keep")),
  },
  "a file with more at its end": {
    rule: "layer",
    words: /etc\/keep: the size/,
    harm: (root) => appendFileSync(join(files(root, 0), "etc/keep"), "x"),
  },
  "a truncated blob": {
    rule: "blob",
    words: /the blob's size|HS_SIZE_MISMATCH/,
    harm(root) {
      const path = join(root, STORES.blobs, layerOf(1).digest.slice(7));
      truncateSync(path, statSync(path).size - 1);
    },
  },
  "a changed blob": {
    rule: "blob",
    words: /HS_DIGEST_MISMATCH/,
    harm(root) {
      const path = join(root, STORES.blobs, layerOf(1).digest.slice(7));
      const bytes = readFileSync(path);
      bytes[bytes.byteLength >> 1]! ^= 1;
      writeFileSync(path, bytes);
    },
  },
  "a blob that is missing": {
    rule: "blob",
    words: /there is no such file/,
    harm: (root) => unlinkSync(join(root, STORES.blobs, layerOf(1).digest.slice(7))),
  },
  "a changed configuration": {
    rule: "blob",
    words: /its digest is/,
    harm: (root) => appendFileSync(join(root, STORES.blobs, manifest.images[0]!.config.slice(7)), " "),
  },
  "two snapshots that changed places": {
    rule: "layer",
    words: /fs/,
    harm(root) {
      const at = (id: number | string) => join(root, STORES.snapshots, String(id));
      renameSync(at(1), at("x"));
      renameSync(at(2), at(1));
      renameSync(at("x"), at(2));
    },
  },
  "a database that is none": {
    rule: "database",
    words: /no bbolt file/,
    harm: (root) => writeFileSync(join(root, STORES.meta), Buffer.alloc(8192)),
  },
  "a sequence below its numbers": {
    rule: "snapshot",
    words: /above the bucket's sequence 1/,
    harm: (root) =>
      edit(root, STORES.meta, ["v1", "k8s.io", "snapshots", "overlayfs"], (bucket) => ({ ...bucket, sequence: 1 })),
  },
  "a GC reference that is missing": {
    rule: "gc-reference",
    words: /gc.ref.content.l.1 is missing/,
    harm(root) {
      const path = ["v1", "k8s.io", "content", "blob", manifest.images[0]!.manifest, "labels"];
      edit(root, STORES.meta, path, (bucket) => without(bucket, "containerd.io/gc.ref.content.l.1"));
    },
  },
  "a blob that nothing keeps": {
    rule: "gc-reference",
    words: /no image leads to this blob/,
    harm(root) {
      edit(root, STORES.meta, ["v1", "k8s.io", "content", "blob"], (bucket) => {
        const [, any] = [...bucket.entries][0]!;
        return { ...bucket, entries: new Map([...bucket.entries, [`sha256:${"f".repeat(64)}`, any]]) };
      });
    },
  },
  "databases of two builds": {
    rule: "snapshot",
    words: /meta.db does not know this snapshot|has no snapshot/,
    harm(root) {
      edit(root, STORES.backend, ["v1", "snapshots"], (bucket) => without(bucket, [...bucket.entries.keys()][0]!));
    },
  },
  "a name that no build gave": {
    rule: "image",
    words: /the build gave no image this name/,
    harm(root) {
      edit(root, STORES.meta, ["v1", "k8s.io", "images"], (bucket) => {
        const [, any] = [...bucket.entries].at(0)!;
        return {
          ...bucket,
          entries: new Map(
            [["docker.io/library/other:1", any], ...bucket.entries].sort(([a], [b]) => (a! < b! ? -1 : 1)) as [
              string,
              Bucket,
            ][],
          ),
        };
      });
    },
  },
  "a PATH.json that is none": {
    rule: "provenance",
    words: /no description of a volume/,
    harm: (root) => writeFileSync(`${root}.json`, "{}"),
  },
  "a PATH.json of another volume": {
    rule: "provenance",
    words: /meta.db: its sha256 is/,
    harm(root) {
      const text = readFileSync(`${root}.json`, "utf8");
      const { subject } = JSON.parse(text) as { subject: { digest: { sha256: string } }[] };
      writeFileSync(`${root}.json`, text.replace(subject[0]!.digest.sha256, "0".repeat(64)));
    },
  },
  "parameters of another build": {
    rule: "provenance",
    words: /the parameter blobs is drop, should be keep/,
    harm: (root) =>
      writeFileSync(`${root}.json`, readFileSync(`${root}.json`, "utf8").replace('"blobs": "keep"', '"blobs": "drop"')),
  },
  "an input that is not named": {
    rule: "provenance",
    words: /is not among the inputs/,
    harm(root) {
      const document = JSON.parse(readFileSync(`${root}.json`, "utf8")) as {
        predicate: { buildDefinition: { resolvedDependencies: unknown[] } };
      };
      document.predicate.buildDefinition.resolvedDependencies.splice(3, 1);
      writeFileSync(`${root}.json`, JSON.stringify(document));
    },
  },
};

for (const [name, { rule, words, harm: harmRoot }] of Object.entries(HARMS)) {
  test(`${name} is found, and named`, async () => {
    const root = copy();
    harmRoot(root);
    await assertFound(root, rule, words);
  });
}

/** The database with one of its buckets changed. */
function edit(root: string, name: string, path: readonly string[], change: (bucket: Bucket) => Bucket): void {
  const file = join(root, name);
  const changed = (bucket: Bucket, rest: readonly string[]): Bucket => {
    const [first, ...more] = rest;
    if (first === undefined) return change(bucket);
    const inner = bucket.entries.get(first);
    assert.ok(isBucket(inner), `${first} of ${path.join("/")}`);
    return { ...bucket, entries: new Map(bucket.entries).set(first, changed(inner, more)) };
  };
  const mtime = lstatSync(file).mtime;
  writeFileSync(file, writeBolt(changed(readBolt(readFileSync(file), file).root, path)));
  utimesSync(file, mtime, mtime);
}

function without(bucket: Bucket, name: string): Bucket {
  const entries = new Map(bucket.entries);
  assert.ok(entries.delete(name), name);
  return { ...bucket, entries };
}

test("only the first 20 differences are told, and all of them counted", async () => {
  const root = copy(false);
  const many = join(files(root, 0), "many");
  for (const name of readdirSync(many)) chmodSync(join(many, name), 0o600);
  const { differences, differenceCount } = await verify(root);
  assert.equal(differences.length, 20);
  assert.equal(differenceCount, readdirSync(many).length);
});

test("a damaged partition table, primary or backup, and bytes where nothing belongs are found", async () => {
  const disk = join(directory, "table.img");
  await makeVolume(disk, [TINY_SOURCE], { layout: "bottlerocket" });
  rmSync(`${disk}.json`);
  using patcher = new Ext4Patcher(disk);
  const { size } = statSync(disk);
  const cases: readonly (readonly [at: number, words: RegExp])[] = [
    [512, /no signature/],
    [512 + 60, /checksum is wrong/],
    [1024 + 56, /checksum of its entries is wrong/],
    [size - 512, /no signature/],
    [size - 33 * 512, /checksum of its entries is wrong/],
    [100_000, /is not zero, and belongs to nothing/],
    [size - 100_000, /is not zero, and belongs to nothing/],
    [1_048_576 + 10, /first 1024 bytes are not zero/],
  ];
  for (const [at, words] of cases) {
    patcher.write(at, Uint8Array.of(patcher.read(at, 1)[0]! ^ 0x40));
    const { ok, differences } = await verify(disk);
    assert.equal(ok, false);
    assert.match(differences.map((one) => `${one.place}: ${one.message}`).join("\n"), words, String(at));
    patcher.undo();
  }
});

test("a journal of another size, one that was not replayed and one that is too small to grow are found", async () => {
  const disk = join(directory, "journal.img");
  await makeVolume(disk, [TINY_SOURCE], { layout: "al2023" });
  rmSync(`${disk}.json`);
  using patcher = new Ext4Patcher(disk);
  const { superblock } = patcher.reader;
  const number = superblock.journalInode;
  const { physical } = patcher.reader.extents(patcher.reader.inode(number)).extents[0]!;
  const word = (index: number, value: number) => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32BE(value);
    patcher.write(physical * 4096 + index * 4, bytes);
  };
  const cases: readonly (readonly [harm: () => void, words: RegExp])[] = [
    [() => patcher.inode(number, (view, at) => view.setUint32(at.i_size_lo, 10, true)), /clean journal|too few/],
    [() => word(7, 1), /not that of a clean journal/],
    [() => word(8, 5), /not that of a clean journal/],
    [() => word(0, 0), /not that of a clean journal/],
    [() => patcher.inode(number, (view, at) => view.setUint32(at.i_size_lo, 4096 * 1024, true)), /too few to grow/],
  ];
  for (const [harmJournal, words] of cases) {
    harmJournal();
    const { ok, differences } = await verify(disk);
    assert.equal(ok, false);
    assert.match(differences.map(({ message }) => message).join("\n"), words);
    patcher.undo();
  }
});

test("what is no volume is said to be none", async () => {
  const empty = join(directory, "empty");
  makeSkeletonOf(empty);
  const { ok, differences } = await verify(empty);
  assert.deepEqual([ok, differences.map(({ rule }) => rule)], [false, ["database", "database"]]);
  const nothing = join(directory, "nothing");
  await assert.rejects(verify(nothing), { code: "HS_NOT_FOUND" });
  writeFileSync(nothing, Buffer.alloc(8 << 20));
  await assert.rejects(verify(nothing), { code: "HS_FORMAT_UNSUPPORTED" });
  const folder = join(directory, "folder");
  mkdirSync(folder);
  assert.deepEqual((await verify(folder)).differences[0]?.message, "no root of containerd is here");
});

function makeSkeletonOf(path: string): void {
  mkdirSync(path);
  makeSkeleton(path, new Set(["sha256"]));
}

test("an interrupt ends the work", async () => {
  const stop = new AbortController();
  const verifying = verifyVolume({
    path: pristine,
    sources: [],
    signal: stop.signal,
    onProgress: ({ layers }) => {
      if (layers === 1) stop.abort(new Error("enough"));
    },
  });
  await assert.rejects(verifying, /enough/);
});
