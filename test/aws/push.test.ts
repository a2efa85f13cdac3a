/** `volume push` and `volume pull` against the AWS of the tests, with its faults: what is pulled back is what was pushed, or there is an error that --resume mends. */

import assert from "node:assert/strict";
import { appendFileSync, existsSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { test } from "node:test";
import { systemClock } from "../../src/base/clock.ts";
import { type HeadstartError, isHeadstartError } from "../../src/base/errors.ts";
import { connectAws } from "../../src/volume/aws/connect.ts";
import { BLOCK_BYTES } from "../../src/volume/ebs/blocks.ts";
import { dryRunPublish, publishVolume } from "../../src/volume/ebs/publish.ts";
import { pullVolume } from "../../src/volume/ebs/pull.ts";
import { type PushOptions, type PushResult, pushVolume } from "../../src/volume/ebs/push.ts";
import { findSnapshots } from "../../src/volume/ebs/snapshots.ts";
import { run, Scratch, writeDisk } from "../../src/volume/ebs/testing.ts";
import { type AwsOptions, AwsServer } from "./server.ts";

interface Described {
  readonly size: number;
  readonly blocks: { readonly sha256: Record<number, string>; unused: [number, number][] };
}

class Place implements AsyncDisposable {
  readonly server: AwsServer;
  readonly scratch = new Scratch();
  readonly disk: string;
  readonly notes: string[] = [];
  /** So that a test can change who we are. */
  env: Record<string, string>;

  private constructor(server: AwsServer) {
    this.server = server;
    this.disk = this.scratch.path("disk.img");
    this.env = server.environment(server.world.addKey({ temporary: true, lifeMs: 12 * 3_600_000 }));
  }

  static async open(options: AwsOptions = {}): Promise<Place> {
    return new Place(await AwsServer.start(options));
  }

  async push(options: Partial<PushOptions> = {}): Promise<PushResult> {
    await using aws = await connectAws({
      env: this.env,
      connections: 256,
      backoff: { baseMs: 2, maxMs: 20 },
      stallMs: 2000,
    });
    return await pushVolume({
      client: aws.client,
      clock: systemClock,
      path: this.disk,
      waitStepMs: 1,
      wait: true,
      note: (text) => this.notes.push(text),
      ...options,
    });
  }

  async pull(snapshot: string, name: string) {
    await using aws = await connectAws({ env: this.env, connections: 256, backoff: { baseMs: 2, maxMs: 20 } });
    const path = this.scratch.path(name);
    return await pullVolume({ client: aws.client, clock: systemClock, snapshot, path });
  }

  /** The disk that a node would get, and what pull gives, are the file. */
  async assertHolds(snapshot: string, path = this.disk): Promise<void> {
    const { world } = this.server;
    assert.equal(world.firstDifference(snapshot, path), undefined);
    const name = `pulled-${snapshot}-${Math.random()}`;
    const pulled = await this.pull(snapshot, name);
    assert.equal(pulled.verified, true);
    assert.equal(pulled.sizeBytes, statSync(path).size);
    assert.ok(readFileSync(this.scratch.path(name)).equals(readFileSync(path)));
    assert.deepEqual(world.conflicts, []);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server[Symbol.asyncDispose]();
    this.scratch[Symbol.dispose]();
  }
}

async function failure(promise: Promise<unknown>): Promise<HeadstartError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  assert.ok(isHeadstartError(error), `an error of ours is wanted: ${String(error)}`);
  return error;
}

/** Calls back once when so many requests of an operation have come. */
function afterCount(server: AwsServer, operation: string, count: number, then: () => void): () => void {
  const timer = setInterval(() => {
    if (server.count(operation) < count) return;
    clearInterval(timer);
    then();
  }, 1);
  return () => clearInterval(timer);
}

test("holes and zeros are not sent, and the snapshot is tagged with what it holds", async () => {
  await using place = await Place.open();
  writeDisk(place.disk, 120, { ...run(2, 20), 100: 0, 119: 5 });
  writeFileSync(
    `${place.disk}.json`,
    JSON.stringify({ images: [{ refs: ["r.example/app:1", "r.example/app@sha256:1"] }] }),
  );
  const pushed = await place.push({ tags: { team: "x", Name: "app" }, description: "d" });
  assert.deepEqual(pushed.blocks, { total: 21, freed: 0, changed: 21, sent: 21, resumed: 0 });
  assert.deepEqual(
    [pushed.status, pushed.unchanged, pushed.volumeSizeGiB, pushed.name],
    ["completed", false, 1, "app"],
  );
  assert.equal(place.server.count("PutSnapshotBlock"), 21);
  await place.assertHolds(pushed.snapshot);
  const { tags, description } = place.server.world.find(pushed.snapshot)!;
  assert.equal(description, "d");
  assert.deepEqual(
    [...tags].filter(([key]) => key !== "headstart.dev/manifest"),
    [
      ["Name", "app"],
      ["team", "x"],
      ["headstart.dev/volume", pushed.content],
      ["headstart.dev/size", String(120 * BLOCK_BYTES)],
      ["headstart.dev/images", "r.example/app:1"],
    ],
  );
  assert.ok(!existsSync(`${place.disk}.push`));
});

test("a tail that is no whole block is padded, and pulled back without the padding", async () => {
  await using place = await Place.open();
  writeDisk(place.disk, 3, { 0: 1 });
  appendFileSync(place.disk, Buffer.alloc(1000, 9));
  const pushed = await place.push();
  assert.equal(pushed.blocks.sent, 2);
  await place.assertHolds(pushed.snapshot);
});

test("a child holds what the file holds: changed blocks, and zeros where only the parent has any", async () => {
  await using place = await Place.open();
  writeDisk(place.disk, 100, run(0, 40));
  const parent = await place.push();
  writeDisk(place.disk, 100, { 3: 1000, 4: 0, 60: 1001 });
  const child = await place.push({ parent: parent.snapshot });
  assert.deepEqual([child.blocks.changed, child.blocks.sent, child.parent], [3, 3, parent.snapshot]);
  assert.equal(place.server.count("GetSnapshotBlock"), 0, "the record of the first push says what the parent has");
  await place.assertHolds(child.snapshot);
});

test("without a description that is shown to be the parent's, the parent is read back", async () => {
  await using place = await Place.open({ behaviour: { emptyPageEvery: 2, pageLimit: 7 } });
  writeDisk(place.disk, 100, run(0, 30));
  const parent = await place.push();
  const other = place.scratch.path("other.img");
  writeDisk(other, 100, { ...run(0, 29), 50: 77 });
  const child = await place.push({ path: other, parent: parent.snapshot });
  assert.deepEqual(child.blocks, { total: 30, freed: 0, changed: 2, sent: 2, resumed: 0 });
  assert.equal(place.server.count("GetSnapshotBlock"), 30);
  await place.assertHolds(child.snapshot, other);
  const wrong = await failure(
    place.push({ path: other, parent: parent.snapshot, parentManifest: `${other}.snapshot.json` }),
  );
  assert.equal(wrong.code, "HS_EBS_PARENT");
  const right = await place.push({
    path: other,
    parent: parent.snapshot,
    parentManifest: `${place.disk}.snapshot.json`,
  });
  assert.equal(right.snapshot, child.snapshot, "the same plan is the same snapshot");
  assert.equal(right.blocks.sent, 0);
});

test("an unchanged rebuild sends nothing: the parent is the answer", async () => {
  await using place = await Place.open();
  writeDisk(place.disk, 100, run(0, 30));
  const parent = await place.push();
  const before = place.server.count("PutSnapshotBlock");
  const again = await place.push({ parent: parent.snapshot });
  assert.deepEqual([again.snapshot, again.unchanged, again.blocks.sent], [parent.snapshot, true, 0]);
  assert.equal(place.server.count("PutSnapshotBlock"), before);
  assert.equal(place.server.count("StartSnapshot"), 1);
  const without = await place.push();
  assert.deepEqual([without.snapshot, without.blocks.sent], [parent.snapshot, 0], "the client token finds it, too");
});

test("what a volume has freed stays as the parent has it, unless it is to be scrubbed", async () => {
  await using place = await Place.open();
  const { world } = place.server;
  writeDisk(place.disk, 100, run(0, 30));
  const parent = await place.push();
  const { blocks, size } = JSON.parse(readFileSync(`${place.disk}.snapshot.json`, "utf8")) as Described;
  for (const index of [5, 10, 11, 12]) delete blocks.sha256[index];
  writeDisk(place.disk, 100, { 5: 0, 10: 0, 11: 0, 12: 0 });
  blocks.unused = [
    [10, 2],
    [40, 60],
  ];
  writeFileSync(`${place.disk}.json`, JSON.stringify({ predicate: { headstart_volume: { blocks, size } } }));
  const child = await place.push({ parent: parent.snapshot });
  assert.deepEqual(child.blocks, { total: 26, freed: 2, changed: 2, sent: 2, resumed: 0 });
  assert.equal(world.firstDifference(child.snapshot, place.disk), 10);
  assert.equal((await place.pull(child.snapshot, "kept")).verified, true);
  // the record knows what was kept, so the next child is right
  writeDisk(place.disk, 100, { 11: 4242 });
  rmSync(`${place.disk}.json`);
  const third = await place.push({ parent: child.snapshot });
  assert.deepEqual(third.blocks, { total: 27, freed: 0, changed: 2, sent: 2, resumed: 0 });
  await place.assertHolds(third.snapshot);
  writeDisk(place.disk, 100, { 11: 0 });
  writeFileSync(`${place.disk}.json`, JSON.stringify({ predicate: { headstart_volume: { blocks, size } } }));
  const scrubbed = await place.push({ parent: third.snapshot, scrub: true });
  assert.equal(scrubbed.blocks.freed, 0);
  await place.assertHolds(scrubbed.snapshot);
});

test("a description that is not the file's is an error before anything wrong is put", async () => {
  await using place = await Place.open();
  writeDisk(place.disk, 100, run(0, 30));
  await place.push();
  const description = JSON.parse(readFileSync(`${place.disk}.snapshot.json`, "utf8")) as {
    blocks: object;
    size: number;
  };
  const { blocks, size } = description;
  writeFileSync(`${place.disk}.json`, JSON.stringify({ predicate: { headstart_volume: { blocks, size } } }));
  for (const change of [{ 7: 999 }, { 7: 0 }, { 90: 1 }] as Record<number, number>[]) {
    const copy = place.scratch.path(`copy-${Object.entries(change)}`);
    writeDisk(copy, 100, { ...run(0, 30), ...change });
    writeFileSync(`${copy}.json`, readFileSync(`${place.disk}.json`));
    const error = await failure(place.push({ path: copy, tags: { n: copy.slice(-5) } }));
    assert.equal(error.code, "HS_VOLUME_CHANGED");
    assert.match(error.message, /block (7|90) /);
  }
  const states = [...place.server.world.snapshots.values()].map(({ state }) => state);
  assert.deepEqual(states.sort(), ["completed", "pending", "pending", "pending"]);
  writeDisk(place.disk, 101, {});
  assert.equal((await failure(place.push())).code, "HS_VOLUME_CHANGED");
});

test("throttling, failures, resets, lost answers and slow ones only cost time", async () => {
  await using place = await Place.open({
    behaviour: { visibilityDelayMs: 100, completionMs: 20, putsPerSecond: 2000 },
  });
  writeDisk(place.disk, 160, run(3, 150));
  place.server.behaviour.faults.push(
    { on: "PutSnapshotBlock", kind: "throttle", every: 5 },
    { on: "PutSnapshotBlock", kind: "500", every: 7 },
    { on: "PutSnapshotBlock", kind: "reset", every: 11 },
    { on: "PutSnapshotBlock", kind: "lost", every: 13 },
    { on: "PutSnapshotBlock", kind: "cut", every: 17 },
    { on: "PutSnapshotBlock", kind: "html", every: 19 },
    { on: "PutSnapshotBlock", kind: "slow", every: 23 },
    { on: "PutSnapshotBlock", kind: "hang", every: 29, times: 3 },
    { on: "PutSnapshotBlock", kind: "late", every: 31 },
    { on: "StartSnapshot", kind: "lost", times: 1 },
    { on: "CompleteSnapshot", kind: "lost", times: 1 },
    { on: "DescribeSnapshots", kind: "throttle", every: 2, times: 3 },
    { on: "GetSnapshotBlock", kind: "wrong-bytes", every: 20, times: 5 },
    { on: "GetSnapshotBlock", kind: "cut", every: 10 },
    { on: "ListSnapshotBlocks", kind: "500", times: 1 },
  );
  const pushed = await place.push();
  assert.deepEqual([pushed.status, pushed.blocks.sent], ["completed", 150]);
  assert.ok(pushed.retries > 25);
  assert.equal(place.server.world.snapshots.size, 1);
  await place.assertHolds(pushed.snapshot);
});

test("a push that fails says what is there, and --resume sends the rest alone", async () => {
  await using place = await Place.open();
  writeDisk(place.disk, 130, run(0, 120));
  place.server.behaviour.faults.push({ on: "PutSnapshotBlock", kind: "denied", every: 50 });
  const error = await failure(place.push({ pace: { start: 4 } }));
  assert.equal(error.code, "HS_EBS_UNFINISHED");
  assert.match(error.message, /snapshot snap-[0-9a-f]+ has 4\d of 120 blocks/);
  assert.ok(isHeadstartError(error.cause, "HS_AWS_DENIED"));
  assert.match(readFileSync(`${place.disk}.push`, "utf8"), /^\{.*\}\n(\d+\n)+$/);
  // a kill in the middle of a mark
  appendFileSync(`${place.disk}.push`, "11");
  place.server.behaviour.faults.length = 0;
  const resumed = await place.push({ resume: true });
  assert.equal(resumed.blocks.resumed + resumed.blocks.sent, 120);
  assert.ok(resumed.blocks.resumed >= 40);
  assert.equal(place.server.world.snapshots.size, 1);
  await place.assertHolds(resumed.snapshot);
});

test("without --resume the same push finds its pending snapshot and puts the same bytes again", async () => {
  await using place = await Place.open();
  writeDisk(place.disk, 70, run(0, 60));
  place.server.behaviour.faults.push({ on: "PutSnapshotBlock", kind: "denied", every: 30 });
  await failure(place.push());
  place.server.behaviour.faults.length = 0;
  const again = await place.push();
  assert.deepEqual([again.blocks.sent, again.blocks.resumed], [60, 0]);
  assert.equal(place.server.world.snapshots.size, 1);
  await place.assertHolds(again.snapshot);
});

test("--resume is refused for another volume, and starts anew when the snapshot has timed out or was deleted", async () => {
  await using place = await Place.open();
  const { world, behaviour } = place.server;
  writeDisk(place.disk, 70, run(0, 60));
  behaviour.faults.push({ on: "PutSnapshotBlock", kind: "denied", every: 30 });
  await failure(place.push());
  behaviour.faults.length = 0;
  assert.equal((await failure(place.push({ resume: true, tags: { other: "1" } }))).code, "HS_EBS_STATE");
  const [first] = world.snapshots.keys();
  world.find(first!)!.state = "error";
  const second = await place.push({ resume: true });
  assert.notEqual(second.snapshot, first);
  assert.deepEqual(second.blocks, { total: 60, freed: 0, changed: 60, sent: 60, resumed: 0 });
  await place.assertHolds(second.snapshot);
  writeDisk(place.disk, 70, { 0: 9999 });
  behaviour.faults.push({ on: "PutSnapshotBlock", kind: "denied", every: 30 });
  await failure(place.push());
  behaviour.faults.length = 0;
  const third = [...world.snapshots.keys()].at(-1)!;
  world.snapshots.delete(third);
  const fourth = await place.push({ resume: true });
  assert.notEqual(fourth.snapshot, third);
  assert.equal(fourth.blocks.resumed, 0);
  await place.assertHolds(fourth.snapshot);
});

test("a snapshot that ends in error is an error, and the next push begins another", async () => {
  await using place = await Place.open({ behaviour: { completionMs: 50 } });
  writeDisk(place.disk, 20, run(0, 6));
  const { world } = place.server;
  const spoil = setInterval(() => {
    for (const snapshot of world.snapshots.values()) {
      const { finishing } = snapshot;
      if (finishing !== undefined && world.snapshots.size === 1)
        snapshot.finishing = { ...finishing, to: "error", why: "bad luck" };
    }
  }, 1);
  try {
    const error = await failure(place.push());
    assert.equal(error.code, "HS_EBS_SNAPSHOT");
    assert.match(error.message, /has ended in error: bad luck/);
    const second = await place.push();
    assert.equal(world.snapshots.size, 2);
    await place.assertHolds(second.snapshot);
  } finally {
    clearInterval(spoil);
  }
});

test("credentials that expire during a push are renewed; those that cannot be are an error that --resume mends", async () => {
  await using place = await Place.open();
  const { server } = place;
  writeDisk(place.disk, 160, run(0, 150));
  server.behaviour.latencyMs = 3;
  place.env = {
    ...server.endpoints(),
    AWS_CONTAINER_CREDENTIALS_FULL_URI: `${server.url}/container-credentials`,
    AWS_CONTAINER_AUTHORIZATION_TOKEN: server.world.containerToken,
  };
  server.world.sessionLifeMs = 5 * 60_000 + 1000;
  const expireAll = () => {
    for (const key of [...server.world.keys.values()]) {
      if (key.expiresAt !== undefined) server.world.keys.set(key.id, { ...key, expiresAt: 0 });
    }
    server.world.sessionLifeMs = 3_600_000;
  };
  const stop = afterCount(server, "PutSnapshotBlock", 50, expireAll);
  const pushed = await place.push({ pace: { start: 8, max: 8 } });
  stop();
  assert.ok(server.count("GET /container-credentials") >= 2);
  await place.assertHolds(pushed.snapshot);

  const short = server.world.addKey({ temporary: true, lifeMs: 3_600_000 });
  place.env = server.environment(short);
  writeDisk(place.disk, 160, { 155: 1 });
  const end = afterCount(server, "PutSnapshotBlock", server.count("PutSnapshotBlock") + 50, () =>
    server.world.keys.set(short.id, { ...short, expiresAt: 0 }),
  );
  const error = await failure(place.push({ pace: { start: 8, max: 8 } }));
  end();
  assert.equal(error.code, "HS_EBS_UNFINISHED");
  assert.ok(isHeadstartError(error.cause, "HS_AWS_CREDENTIALS"));
  place.env = server.environment(server.world.addKey());
  const resumed = await place.push({ resume: true });
  await place.assertHolds(resumed.snapshot);
});

test("an encrypted parent has an encrypted child; --encrypted with a parent is refused", async () => {
  await using place = await Place.open();
  writeDisk(place.disk, 20, run(0, 6));
  const kmsKey = "arn:aws:kms:eu-central-1:111122223333:key/0abc";
  const parent = await place.push({ encrypted: true, kmsKey });
  assert.equal(place.server.world.find(parent.snapshot)?.kmsKeyArn, kmsKey);
  writeDisk(place.disk, 20, { 3: 5000 });
  assert.equal((await failure(place.push({ parent: parent.snapshot, encrypted: true }))).code, "HS_USAGE");
  const child = await place.push({ parent: parent.snapshot });
  assert.equal(place.server.world.find(child.snapshot)?.encrypted, true);
  await place.assertHolds(child.snapshot);
});

test("a parent that is absent, unfinished or larger is refused before anything is begun", async () => {
  await using place = await Place.open();
  writeDisk(place.disk, 4000, run(0, 3));
  const large = await place.push();
  const small = place.scratch.path("small.img");
  writeDisk(small, 20, run(0, 3));
  for (const parent of ["snap-0123", large.snapshot]) {
    assert.equal((await failure(place.push({ path: small, parent }))).code, "HS_EBS_PARENT");
  }
  assert.equal(place.server.world.snapshots.size, 1);
});

test("without EC2 the direct APIs alone are enough: a parent, waiting, --resume, and pull", async () => {
  await using place = await Place.open({ behaviour: { completionMs: 200 } });
  writeDisk(place.disk, 60, run(0, 30));
  for (const without of ["denied", "unreachable", "another server"]) {
    const { AWS_ENDPOINT_URL: url, ...rest } = place.server.environment(place.server.world.addKey());
    const ec2 = { denied: url!, unreachable: "http://127.0.0.1:9", "another server": `${url}/latest/none` }[without]!;
    place.env = { ...rest, AWS_ENDPOINT_URL_EBS: url!, AWS_ENDPOINT_URL_EC2: ec2 };
    const { faults } = place.server.behaviour;
    faults.push({ on: "DescribeSnapshots", kind: "denied" }, { on: "CompleteSnapshot", kind: "lost", times: 1 });
    faults.push({ on: "PutSnapshotBlock", kind: "denied", every: 29, times: 1 });
    const error = await failure(place.push({ tags: { without } }));
    assert.equal(error.code, "HS_EBS_UNFINISHED", without);
    const pushed = await place.push({ tags: { without }, resume: true });
    assert.equal(pushed.status, "completed");
    assert.ok(pushed.blocks.resumed > 0);
    writeDisk(place.disk, 60, { 40: 400 });
    const child = await place.push({ tags: { without }, parent: pushed.snapshot });
    assert.deepEqual([child.blocks.sent, child.parent], [1, pushed.snapshot]);
    assert.equal(place.server.world.firstDifference(child.snapshot, place.disk), undefined);
    assert.equal((await place.pull(child.snapshot, without)).verified, null);
    faults.length = 0;
    writeDisk(place.disk, 60, { 40: 0 });
  }
});

test("a Name with signs of EC2's patterns means itself alone, when snapshots are looked for to be deleted", async () => {
  await using place = await Place.open();
  await using aws = await connectAws({ env: place.env });
  const names = ["app", "a*", "a?p", "a\\*", "(app)"];
  const ids: string[] = [];
  for (const [index, Name] of names.entries()) {
    writeDisk(place.disk, 4, { 0: 1 + index });
    ids.push((await place.push({ tags: { Name } })).snapshot);
  }
  const by = new Map(names.map((name, index) => [name, ids[index]]));
  for (const name of names) {
    const found = await findSnapshots(aws.client, { Name: name });
    assert.deepEqual(
      found.map(({ id }) => id),
      [by.get(name)],
      name,
    );
  }
});

test("a name as long as a file's may be leaves room for the rest of the description", async () => {
  await using place = await Place.open();
  writeDisk(place.disk, 4, { 0: 1 });
  const { snapshot } = await place.push({ tags: { Name: "n".repeat(255) } });
  const { description } = place.server.world.find(snapshot)!;
  assert.match(description, /^n+, by headstart /);
  assert.equal(description.length, 255);
});

test("a dry run of what the parent holds already deletes as the push does", async () => {
  await using place = await Place.open();
  const ids: string[] = [];
  for (let version = 0; version < 4; version++) {
    writeDisk(place.disk, 4, { 0: 1 + version });
    const { snapshot } = await place.push({ tags: { Name: "app" } });
    place.server.world.find(snapshot)!.startedAt -= (40 - version) * 24 * 3_600_000;
    ids.push(snapshot);
  }
  await using aws = await connectAws({ env: place.env });
  const options = { client: aws.client, clock: systemClock, path: place.disk, parent: ids[3]!, keep: 2, waitStepMs: 1 };
  const named = { ...options, tags: { Name: "app" } };
  const dry = await dryRunPublish(named);
  assert.deepEqual([dry.unchanged, dry.wouldDelete], [true, [ids[1], ids[0]]]);
  const done = await publishVolume(named);
  assert.deepEqual([done.unchanged, done.snapshot, done.deleted], [true, ids[3], dry.wouldDelete]);
});

test("a file that --node-class names is read before anything is sent", async () => {
  await using place = await Place.open();
  writeDisk(place.disk, 4, { 0: 1 });
  await using aws = await connectAws({ env: place.env });
  const options = { client: aws.client, clock: systemClock, path: place.disk, keep: 1 };
  const missing = { ...options, nodeClasses: [place.scratch.path("nodeclass.yaml")] };
  assert.equal((await failure(publishVolume(missing))).code, "HS_NOT_FOUND");
  assert.equal(place.server.world.snapshots.size, 0);
});

test("a pull into a folder that is not there says so", async () => {
  await using place = await Place.open();
  writeDisk(place.disk, 4, { 0: 1 });
  const { snapshot } = await place.push();
  assert.equal((await failure(place.pull(snapshot, "no/such"))).code, "HS_NOT_FOUND");
});

test("a pull whose bytes are not those that were pushed is an error, and leaves nothing", async () => {
  await using place = await Place.open();
  writeDisk(place.disk, 20, run(0, 6));
  const { snapshot } = await place.push();
  const tags = place.server.world.find(snapshot)!.tags;
  tags.set("headstart.dev/volume", `sha256:${"0".repeat(64)}`);
  assert.equal((await failure(place.pull(snapshot, "p"))).code, "HS_VOLUME_CHANGED");
  tags.delete("headstart.dev/volume");
  tags.delete("headstart.dev/size");
  place.server.behaviour.faults.push({ on: "GetSnapshotBlock", kind: "wrong-bytes" });
  assert.equal((await failure(place.pull(snapshot, "p"))).code, "HS_EBS_BLOCK");
  assert.ok(!existsSync(place.scratch.path("p")));
  place.server.behaviour.faults.length = 0;
  const pulled = await place.pull(snapshot, "p");
  assert.deepEqual([pulled.verified, pulled.sizeBytes, pulled.blocks], [null, 2 ** 30, 6]);
  assert.ok(statSync(place.scratch.path("p")).blocks * 512 < 16 * BLOCK_BYTES, "holes stay holes");
  assert.equal((await failure(place.pull(snapshot, "p"))).code, "HS_OUTPUT_EXISTS");
});

test("block tokens and page tokens that die during a pull are asked for anew", async () => {
  await using place = await Place.open({ behaviour: { pageLimit: 10 } });
  writeDisk(place.disk, 60, run(0, 55));
  const { snapshot } = await place.push();
  place.server.behaviour.pageTokenLifeMs = -1;
  await place.assertHolds(snapshot);
  place.server.behaviour.staleLists = 3;
  await place.assertHolds(snapshot);
});
