/**
 * The 21 cases that containerd demands of every snapshotter (containerd core/snapshots/testsuite; specs/containerd.md 8), by name and meaning, against a gRPC
 * client: nothing here knows whose snapshotter it is. Mounts are performed for real, so it needs root.
 */

import assert from "node:assert/strict";
import {
  chmodSync,
  chownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError } from "@connectrpc/connect";
import {
  type Info,
  Kind,
  type Snapshots,
} from "../../src/gen/github.com/containerd/containerd/api/services/snapshots/v1/snapshots_pb.ts";
import { mountAll } from "../fakes/mounting.ts";

export type SnapshotsClient = Client<typeof Snapshots>;

export interface SnapshotterUnderTest extends AsyncDisposable {
  readonly client: SnapshotsClient;
  /** Closes the snapshotter itself; may be called twice. */
  close(): Promise<void>;
}

export interface SuiteOptions {
  /** Whether a directory of a lower layer can be renamed: overlayfs says EXDEV unless mounted with redirect_dir=on, as for containerd's own overlayfs snapshotter. */
  readonly renamesLowerDirectories: boolean;
}

interface Context {
  readonly subject: SnapshotterUnderTest;
  readonly client: SnapshotsClient;
  readonly work: string;
}

const LABELS = { "containerd.io/gc.root": "suite" };

/** Registers the suite. `factory` makes a snapshotter whose state lies below the given directory. */
export function snapshotterSuite(
  name: string,
  factory: (root: string) => Promise<SnapshotterUnderTest>,
  options: SuiteOptions,
): void {
  const run = (title: string, body: (context: Context) => Promise<void>) =>
    test(title, async () => {
      const directory = mkdtempSync(join(tmpdir(), "snapshotter-suite-"));
      const umask = process.umask(0);
      try {
        await using subject = await factory(join(directory, "root"));
        const work = join(directory, "work");
        mkdirSync(work);
        await body({ subject, client: subject.client, work });
      } finally {
        process.umask(umask);
        rmSync(directory, { recursive: true, force: true });
      }
    });
  describe(`containerd's snapshotter suite: ${name}`, () => {
    run("1 Basic: a snapshot is prepared, written, committed, built upon, viewed and removed from leaf to root", basic);
    run("2 StatActive: an active snapshot has its key, its kind and no parent", statActive);
    run("3 StatComitted: a committed snapshot has its name, its kind and no parent", statCommitted);
    run("4 TransitivityTest: parents lead from snapshot to snapshot", transitivity);
    run("5 PreareViewFailingtest: a key is taken once, whatever the kind", prepareViewFailing);
    run("6 Update: labels change by mask, nothing else does", update);
    run("7 Remove: a removed key or name can be used again at once", remove);
    run("8 Walk: filters select by kind, name, parent and label", walk);
    run("9 LayerFileupdate: changes of equal size within one second are not lost", layerFileUpdate);
    run("10 RemoveDirectoryInLowerLayer: a directory made again hides what the old one held", removeDirectoryInLower);
    run("11 Chown: changed owners survive the commit", chown);
    run("12 DirectoryPermissionOnCommit: owners of directories survive over three layers", directoryPermission);
    run("13 RemoveIntermediateSnapshot: a snapshot with children cannot be removed", removeIntermediate);
    run("14 DeletedFilesInChildSnapshot: a deletion holds through an empty layer above", deletedFiles);
    run("15 MoveFileFromLowerLayer: files move, and are hard-linked, out of a lower layer", moveFile);
    run("16 ViewReadonly: nobody writes into a mounted view", viewReadonly);
    run("17 StatInWalk: stat may be called during a walk and says the same", statInWalk);
    run("18 CloseTwice: closing twice is fine", closeTwice);
    run("19 RootPermission: the root of a fresh mount has mode 0755", rootPermission);
    run(
      `20 Rename: files${options.renamesLowerDirectories ? " and directories" : ""} of a lower layer are renamed`,
      (c) => rename(c, options.renamesLowerDirectories),
    );
    run("21 128LayersMount: 128 layers show what one directory shows", layers128);
  });
}

async function basic({ client, work }: Context): Promise<void> {
  const initial: Change = (root) => {
    writeFileSync(join(root, "foo"), "foo\n", { mode: 0o777 });
    mkdirSync(join(root, "a"), 0o755);
    mkdirSync(join(root, "a/b"), 0o755);
    mkdirSync(join(root, "a/b/c"), 0o755);
  };
  const difference: Change = (root) => {
    writeFileSync(join(root, "bar"), "bar\n", { mode: 0o777 });
    writeFileSync(join(root, "foo"), "bar\n", { mode: 0o777 });
    rmSync(join(root, "a/b"), { recursive: true });
  };
  const flat = makeDirectory(work, "flat");
  initial(flat);
  const preparing = makeDirectory(work, "preparing");
  const committed = join(work, "committed");
  {
    using _ = mountAll((await client.prepare({ key: preparing, labels: LABELS })).mounts, preparing);
    initial(preparing);
  }
  await client.commit({ name: committed, key: preparing, labels: LABELS });
  const first = await stat(client, committed);
  assert.equal(first.parent, "");
  assert.equal(first.kind, Kind.COMMITTED);
  await rejects(client.stat({ key: preparing }), Code.NotFound);

  const next = makeDirectory(work, "nextlayer");
  const nextCommitted = join(work, "committed-next");
  {
    using _ = mountAll((await client.prepare({ key: next, parent: committed, labels: LABELS })).mounts, next);
    assertSameTree(next, flat);
    difference(next);
    difference(flat);
    const active = await stat(client, next);
    assert.equal(active.parent, committed);
    assert.equal(active.kind, Kind.ACTIVE);
  }
  await client.commit({ name: nextCommitted, key: next, labels: LABELS });
  const second = await stat(client, nextCommitted);
  assert.equal(second.parent, committed);
  assert.equal(second.kind, Kind.COMMITTED);
  await rejects(client.stat({ key: next }), Code.NotFound);

  const walked = new Map((await list(client)).map((info) => [info.name, info]));
  for (const info of [first, second]) assert.deepEqual(walked.get(info.name), info);

  const view = makeDirectory(work, "nextnextlayer");
  {
    using _ = mountAll((await client.view({ key: view, parent: nextCommitted, labels: LABELS })).mounts, view);
    assertSameTree(view, flat);
  }
  await client.remove({ key: view });
  await rejects(client.remove({ key: committed }), Code.FailedPrecondition, /remove/);
  await client.remove({ key: nextCommitted });
  await client.remove({ key: committed });
}

async function statActive({ client, work }: Context): Promise<void> {
  const preparing = makeDirectory(work, "preparing");
  using _ = mountAll((await client.prepare({ key: preparing, labels: LABELS })).mounts, preparing);
  writeFileSync(join(preparing, "foo"), "foo\n");
  const info = await stat(client, preparing);
  assert.deepEqual([info.name, info.kind, info.parent], [preparing, Kind.ACTIVE, ""]);
}

async function statCommitted({ client, work }: Context): Promise<void> {
  const name = await commitChange(client, work, "", (root) => writeFileSync(join(root, "foo"), "foo\n"), "committed");
  const info = await stat(client, name);
  assert.deepEqual([info.name, info.kind, info.parent], ["committed", Kind.COMMITTED, ""]);
}

async function transitivity({ client, work }: Context): Promise<void> {
  const a = await commitChange(client, work, "", (root) => writeFileSync(join(root, "foo"), "foo\n"), "snapA");
  const b = await commitChange(client, work, a, (root) => writeFileSync(join(root, "foo"), "foo bar\n"), "snapB");
  assert.equal((await stat(client, a)).parent, "");
  assert.equal((await stat(client, b)).parent, a);
  assert.equal((await stat(client, (await stat(client, b)).parent)).parent, "");
}

async function prepareViewFailing({ client, work }: Context): Promise<void> {
  const parent = await commitChange(client, work, "", () => undefined, "snapA");
  await client.prepare({ key: "newlayer", parent, labels: LABELS });
  await rejects(client.view({ key: "newlayer", parent, labels: LABELS }), Code.AlreadyExists);
  await client.prepare({ key: "prepLayer", parent, labels: LABELS });
  await rejects(client.prepare({ key: "prepLayer", parent, labels: LABELS }), Code.AlreadyExists);
  await client.view({ key: "viewLayer", parent, labels: LABELS });
  await rejects(client.view({ key: "viewLayer", parent, labels: LABELS }), Code.AlreadyExists);
}

async function update({ client }: Context): Promise<void> {
  const begun = Date.now();
  await client.prepare({ key: "c1-a", labels: LABELS });
  await client.commit({ name: "c1", key: "c1-a", labels: LABELS });
  await client.prepare({ key: "c2-a", parent: "c1", labels: LABELS });
  await client.commit({ name: "c2", key: "c2-a", labels: LABELS });
  await client.prepare({ key: "a1", parent: "c2", labels: LABELS });
  await client.prepare({ key: "a2", labels: LABELS });
  await client.view({ key: "v1", parent: "c2", labels: LABELS });
  await client.view({ key: "v2", labels: LABELS });
  const ended = Date.now() + 1;
  const cases: [string, Kind, string][] = [
    ["c1", Kind.COMMITTED, ""],
    ["c2", Kind.COMMITTED, "c1"],
    ["a1", Kind.ACTIVE, "c2"],
    ["a2", Kind.ACTIVE, ""],
    ["v1", Kind.VIEW, "c2"],
    ["v2", Kind.VIEW, ""],
  ];
  for (const [name, kind, parent] of cases) {
    const info = await stat(client, name);
    assert.deepEqual([info.name, info.kind, info.parent], [name, kind, parent]);
    assert.ok(milliseconds(info.createdAt) >= begun && milliseconds(info.createdAt) <= ended, `${name}: created_at`);
    assert.deepEqual(info.createdAt, info.updatedAt);
    await updateOne(client, info);
  }
}

async function updateOne(client: SnapshotsClient, original: Info): Promise<void> {
  const { name } = original;
  const send = async (labels: Record<string, string>, paths?: string[]) => {
    const request = { info: { name, parent: "doesnotexist", kind: Kind.UNKNOWN, labels } };
    return (await client.update(paths === undefined ? request : { ...request, updateMask: { paths } })).info!;
  };
  const replaced = { l1: "v1", l2: "v2", l3: "v3", ...LABELS };
  const begun = Date.now();
  const whole = await send(replaced);
  assert.ok(milliseconds(whole.updatedAt) >= begun && milliseconds(whole.updatedAt) <= Date.now() + 1, "updated_at");
  assert.deepEqual([whole.name, whole.kind, whole.parent], [name, original.kind, original.parent]);
  assert.deepEqual(whole.createdAt, original.createdAt);
  assert.deepEqual({ ...whole.labels }, replaced);
  const partial = await send({ l1: "updated", l4: "v4" }, ["labels.l1", "labels.l2"]);
  assert.deepEqual({ ...partial.labels }, { l1: "updated", l3: "v3", ...LABELS });
  const masked = await send({ l4: "v4", ...LABELS }, ["labels"]);
  assert.deepEqual({ ...masked.labels }, { l4: "v4", ...LABELS });
  await rejects(send({}, ["parent"]), Code.InvalidArgument);
  assert.deepEqual((await stat(client, name)).parent, original.parent);
}

async function remove({ client }: Context): Promise<void> {
  await client.prepare({ key: "committed-a", labels: LABELS });
  await client.commit({ name: "committed-1", key: "committed-a", labels: LABELS });
  await client.prepare({ key: "reuse-1", parent: "committed-1", labels: LABELS });
  await client.remove({ key: "reuse-1" });
  await client.view({ key: "reuse-1", parent: "committed-1", labels: LABELS });
  await client.remove({ key: "reuse-1" });
  await client.prepare({ key: "reuse-1", labels: LABELS });
  await client.remove({ key: "committed-1" });
  await client.commit({ name: "committed-1", key: "reuse-1", labels: LABELS });
}

async function walk({ client }: Context): Promise<void> {
  const labels = { "containerd.io/gc.root": "check-walk" };
  await client.prepare({ key: "a-np", labels });
  await client.prepare({ key: "p-tmp", labels });
  await client.commit({ name: "p", key: "p-tmp", labels });
  await client.prepare({ key: "a", parent: "p", labels });
  await client.view({ key: "v", parent: "p", labels });
  await client.prepare({ key: "p-wl-tmp", labels });
  await client.commit({ name: "p-wl", key: "p-wl-tmp", labels: { l: "1", ...labels } });
  await client.prepare({ key: "a-wl", parent: "p-wl", labels: { l: "2", ...labels } });
  await client.view({ key: "v-wl", parent: "p-wl", labels: { l: "3", ...labels } });
  await client.prepare({ key: "a-np-wl", labels: { l: "2", ...labels } });
  const root = 'labels."containerd.io/gc.root"==check-walk';
  const cases: [string[], string[]][] = [
    [[root], ["a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"]],
    [[`kind==active,${root}`], ["a-np", "a", "a-wl", "a-np-wl"]],
    [[`kind==view,${root}`], ["v", "v-wl"]],
    [[`kind==committed,${root}`], ["p", "p-wl"]],
    [
      ["name==p", "name==a-np-wl"],
      ["p", "a-np-wl"],
    ],
    [["name==a-wl,labels.l"], ["a-wl"]],
    [["parent==p"], ["a", "v"]],
    [[`parent!="",${root}`], ["a", "v", "a-wl", "v-wl"]],
    [["labels.l"], ["p-wl", "a-wl", "v-wl", "a-np-wl"]],
    [["labels.l==2"], ["a-wl", "a-np-wl"]],
  ];
  for (const [filters, expected] of cases) {
    const names = (await list(client, filters)).map((info) => info.name);
    assert.deepEqual(names.toSorted(), expected.toSorted(), filters.join(" or "));
  }
}

async function layerFileUpdate(context: Context): Promise<void> {
  const lower: Change = (root) => {
    mkdirSync(join(root, "etc"), 0o700);
    writeFileSync(join(root, "etc/hosts"), "mydomain 10.0.0.1", { mode: 0o644 });
    writeFileSync(join(root, "etc/profile"), "PATH=/usr/bin", { mode: 0o644 });
  };
  const upper: Change = (root) => {
    writeFileSync(join(root, "etc/hosts"), "mydomain 10.0.0.2", { mode: 0o644 });
    writeFileSync(join(root, "etc/profile"), "PATH=/usr/bin", { mode: 0o666 });
    mkdirSync(join(root, "root"), 0o700);
    writeFileSync(join(root, "root/.bashrc"), "PATH=/usr/sbin:/usr/bin", { mode: 0o644 });
  };
  for (let round = 0; round < 5; round++) {
    // each round begins at a second's boundary: both edits have the same mtime in seconds
    if (round > 0) await new Promise((resolve) => setTimeout(resolve, 1000 - (Date.now() % 1000)));
    await checkChain(context, [lower, upper]);
  }
}

async function removeDirectoryInLower(context: Context): Promise<void> {
  await checkChain(context, [
    (root) => {
      mkdirSync(join(root, "lib"), 0o700);
      writeFileSync(join(root, "lib/hidden"), "", { mode: 0o644 });
    },
    (root) => {
      rmSync(join(root, "lib"), { recursive: true });
      mkdirSync(join(root, "lib"), 0o700);
      writeFileSync(join(root, "lib/not-hidden"), "", { mode: 0o644 });
    },
    (root) => writeFileSync(join(root, "lib/newfile"), "", { mode: 0o644 }),
  ]);
}

async function chown(context: Context): Promise<void> {
  const paths = ["opt", "opt/a", "opt/a/b", "opt/a/b/file.txt"];
  await checkChain(context, [
    (root) => {
      for (const path of paths.slice(0, 3)) mkdirSync(join(root, path), 0o700);
      writeFileSync(join(root, paths[3]!), "hello", { mode: 0o644 });
    },
    (root) => {
      for (const path of paths) chownSync(join(root, path), 1, 1);
    },
  ]);
}

async function directoryPermission(context: Context): Promise<void> {
  const give = (root: string, id: number, ...paths: string[]) => {
    for (const path of paths) chownSync(join(root, path), id, id);
  };
  await checkChain(context, [
    (root) => {
      for (const path of ["dir1", "dir2", "dir3", "dir4", "dir5"]) mkdirSync(join(root, path), 0o700);
      for (const path of ["dir4/f1", "dir5/f1"]) writeFileSync(join(root, path), "...", { mode: 0o644 });
      give(root, 1, "dir1", "dir2", "dir3", "dir5", "dir5/f1");
    },
    (root) => {
      give(root, 0, "dir2");
      rmSync(join(root, "dir3"), { recursive: true });
      give(root, 1, "dir4", "dir4/f1");
    },
    (root) => {
      mkdirSync(join(root, "dir3"), 0o700);
      rmSync(join(root, "dir5"), { recursive: true });
      mkdirSync(join(root, "dir5"), 0o700);
      give(root, 1, "dir3", "dir5");
    },
  ]);
}

async function removeIntermediate({ client, work }: Context): Promise<void> {
  const base = await commitChange(client, work, "", () => undefined, "committed-base");
  await client.prepare({ key: "intermediate", parent: base, labels: LABELS });
  await client.commit({ name: "committed-inter", key: "intermediate", labels: LABELS });
  await client.prepare({ key: "toplayer", parent: "committed-inter", labels: LABELS });
  await rejects(client.remove({ key: "committed-inter" }), Code.FailedPrecondition);
  await client.remove({ key: "toplayer" });
  await client.remove({ key: "committed-inter" });
  await client.remove({ key: base });
}

async function deletedFiles(context: Context): Promise<void> {
  await checkChain(context, [
    (root) => {
      writeFileSync(join(root, "foo"), "foo\n", { mode: 0o777 });
      writeFileSync(join(root, "foobar"), "foobar\n", { mode: 0o777 });
    },
    (root) => rmSync(join(root, "foobar")),
    () => undefined,
  ]);
}

async function moveFile(context: Context): Promise<void> {
  await checkChain(context, [
    (root) => {
      mkdirSync(join(root, "dir1"), 0o700);
      writeFileSync(join(root, "dir1/f1"), "Hello", { mode: 0o644 });
      mkdirSync(join(root, "dir2"), 0o700);
      writeFileSync(join(root, "dir2/f2"), "...", { mode: 0o644 });
    },
    (root) => {
      mkdirSync(join(root, "dir3"), 0o700);
      writeFileSync(join(root, "dir3/f1"), "Hello", { mode: 0o644 });
      rmSync(join(root, "dir1"), { recursive: true });
      linkSync(join(root, "dir2/f2"), join(root, "dir3/f2"));
      rmSync(join(root, "dir2/f2"));
    },
  ]);
}

async function viewReadonly({ client, work }: Context): Promise<void> {
  await client.prepare({ key: "preparing", labels: LABELS });
  await client.commit({ name: "committed", key: "preparing", labels: LABELS });
  const { mounts } = await client.view({ key: "view", parent: "committed", labels: LABELS });
  const point = makeDirectory(work, "view-mount");
  {
    using _ = mountAll(mounts, point);
    assert.throws(() => writeFileSync(join(point, "testfile"), "testcontent"), { code: "EROFS" });
  }
  await client.remove({ key: "view" });
  await client.remove({ key: "committed" });
}

async function statInWalk({ client }: Context): Promise<void> {
  await client.prepare({ key: "c1-a", labels: LABELS });
  await client.commit({ name: "c1", key: "c1-a", labels: LABELS });
  await client.prepare({ key: "c2-a", parent: "c1", labels: LABELS });
  await client.commit({ name: "c2", key: "c2-a", labels: LABELS });
  await client.prepare({ key: "a1", parent: "c2", labels: LABELS });
  await client.view({ key: "v1", parent: "c2", labels: LABELS });
  let seen = 0;
  for await (const { info } of client.list({})) {
    for (const walked of info) {
      assert.deepEqual(await stat(client, walked.name), walked);
      seen++;
    }
  }
  assert.equal(seen, 4);
}

async function closeTwice({ client, subject }: Context): Promise<void> {
  await client.prepare({ key: "prepare", labels: LABELS });
  await client.commit({ name: "close", key: "prepare", labels: LABELS });
  await client.remove({ key: "close" });
  await subject.close();
  await subject.close();
}

async function rootPermission({ client, work }: Context): Promise<void> {
  const preparing = makeDirectory(work, "preparing");
  using _ = mountAll((await client.prepare({ key: preparing, labels: LABELS })).mounts, preparing);
  assert.equal(statSync(preparing).mode & 0o777, 0o755);
}

async function rename(context: Context, directories: boolean): Promise<void> {
  await checkChain(context, [
    (root) => {
      mkdirSync(join(root, "dir1"), 0o700);
      mkdirSync(join(root, "somefiles"), 0o700);
      writeFileSync(join(root, "somefiles/f1"), "was here first!", { mode: 0o644 });
      writeFileSync(join(root, "somefiles/f2"), "nothing interesting", { mode: 0o644 });
    },
    (root) => {
      if (directories) renameSync(join(root, "dir1"), join(root, "dir2"));
      writeFileSync(join(root, "somefiles/f1-overwrite"), "new content 1", { mode: 0o644 });
      renameSync(join(root, "somefiles/f1-overwrite"), join(root, "somefiles/f1"));
      renameSync(join(root, "somefiles/f2"), join(root, "somefiles/f3"));
    },
  ]);
}

async function layers128({ client, work }: Context): Promise<void> {
  const lowest: Change = (root) => {
    writeFileSync(join(root, "bottom"), "way at the bottom\n", { mode: 0o777 });
    writeFileSync(join(root, "overwriteme"), "FIRST!\n", { mode: 0o777 });
    mkdirSync(join(root, "addhere"), 0o755);
    mkdirSync(join(root, "onlyme"), 0o755);
    writeFileSync(join(root, "onlyme/bottom"), "bye!\n", { mode: 0o777 });
  };
  const layer =
    (index: number): Change =>
    (root) => {
      writeFileSync(join(root, "overwriteme"), `${index} WAS HERE!\n`, { mode: 0o777 });
      writeFileSync(join(root, `addhere/file-${index}`), "same\n", { mode: 0o755 });
      rmSync(join(root, "onlyme"), { recursive: true });
      mkdirSync(join(root, "onlyme"), 0o755);
      writeFileSync(join(root, `onlyme/file-${index}`), "only me!\n", { mode: 0o777 });
    };
  const flat = makeDirectory(work, "flat");
  let parent = "";
  for (let index = 0; index < 128; index++) {
    const change = index === 0 ? lowest : layer(index);
    const preparing = makeDirectory(work, `prepare-layer-${index}`);
    {
      using _ = mountAll((await client.prepare({ key: preparing, parent, labels: LABELS })).mounts, preparing);
      assertSameTree(preparing, flat);
      change(flat);
      change(preparing);
      assertSameTree(preparing, flat);
    }
    parent = `committed-${index}`;
    await client.commit({ name: parent, key: preparing, labels: LABELS });
  }
  const view = makeDirectory(work, "fullview");
  using _ = mountAll((await client.view({ key: view, parent, labels: LABELS })).mounts, view);
  assertSameTree(view, flat);
}

// helpers

/** Something that is done to a directory: to a snapshot's mount, and to a flat one beside it. */
type Change = (root: string) => void;

async function commitChange(
  client: SnapshotsClient,
  work: string,
  parent: string,
  change: Change,
  name: string,
): Promise<string> {
  const point = mkdtempSync(join(work, "prepare-"));
  const key = `${name}-prepare`;
  {
    using _ = mountAll((await client.prepare({ key, parent, labels: LABELS })).mounts, point);
    change(point);
  }
  await client.commit({ name, key, labels: LABELS });
  return name;
}

let chains = 0;

/** Each change makes a snapshot upon the one before; a view of each must show what the changes show in a flat directory. */
async function checkChain({ client, work }: Context, changes: readonly Change[]): Promise<void> {
  const chain = chains++;
  const flat = mkdtempSync(join(work, "flat-"));
  chmodSync(flat, 0o755);
  let parent = "";
  for (const [index, change] of changes.entries()) {
    const name = await commitChange(client, work, parent, change, `chain-${chain}-${index}`);
    change(flat);
    const point = mkdtempSync(join(work, "check-"));
    {
      using _ = mountAll((await client.view({ key: `${name}-view`, parent: name, labels: LABELS })).mounts, point);
      assertSameTree(point, flat);
    }
    await client.remove({ key: `${name}-view` });
    parent = name;
  }
}

function assertSameTree(actual: string, expected: string): void {
  assert.deepEqual(describeTree(actual), describeTree(expected));
}

/** Everything that a container sees below `root`: type, mode, owner, content, links. The root's own mode is another case's subject. */
function describeTree(root: string): string[] {
  const lines: string[] = [];
  const inodes = new Map<number, string>();
  for (const path of (readdirSync(root, { recursive: true }) as string[]).toSorted()) {
    const full = join(root, path);
    const stats = lstatSync(full);
    const owner = `${(stats.mode & 0o7777).toString(8)} ${stats.uid}:${stats.gid}`;
    if (stats.isFile()) {
      const first = inodes.get(stats.ino) ?? path;
      inodes.set(stats.ino, first);
      lines.push(`${path} file ${owner} ${JSON.stringify(readFileSync(full, "utf8"))} ${first === path ? "" : first}`);
    } else if (stats.isSymbolicLink()) lines.push(`${path} symlink ${owner} ${readlinkSync(full)}`);
    else lines.push(`${path} ${stats.isDirectory() ? "directory" : "other"} ${owner}`);
  }
  return lines;
}

function makeDirectory(work: string, name: string): string {
  const path = join(work, name);
  mkdirSync(path, { recursive: true, mode: 0o755 });
  return path;
}

async function stat(client: SnapshotsClient, key: string): Promise<Info> {
  return (await client.stat({ key })).info!;
}

export async function list(client: SnapshotsClient, filters: readonly string[] = []): Promise<Info[]> {
  const found: Info[] = [];
  for await (const { info } of client.list({ filters: [...filters] })) found.push(...info);
  return found;
}

export async function rejects(call: Promise<unknown>, code: Code, message: RegExp = /./): Promise<void> {
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof ConnectError, String(error));
    assert.equal(Code[error.code], Code[code], error.message);
    assert.match(error.message, message);
    return true;
  });
}

function milliseconds(time: Timestamp | undefined): number {
  assert.ok(time !== undefined);
  return Number(time.seconds) * 1000 + time.nanos / 1e6;
}
