/** `headstart volume push|pull` as users call it: killed, interrupted, with wrong credentials, and with all that follows a push. */

import assert from "node:assert/strict";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { test } from "node:test";
import { systemClock } from "../../src/base/clock.ts";
import { connectAws } from "../../src/volume/aws/connect.ts";
import { pushVolume } from "../../src/volume/ebs/push.ts";
import { run, Scratch, writeDisk } from "../../src/volume/ebs/testing.ts";
import { startHeadstart as start } from "./command-line.ts";
import { AwsServer } from "./server.ts";
import type { AccessKey } from "./signature.ts";

const DAY_MS = 24 * 3_600_000;

async function json(env: Record<string, string>, ...args: string[]): Promise<Record<string, unknown>> {
  const { code, stdout, stderr } = await start(env, [...args, "--json"]).ended;
  assert.equal(code, 0, stderr);
  return JSON.parse(stdout) as Record<string, unknown>;
}

/** Waits until so many requests of an operation have come. */
async function requests(server: AwsServer, operation: string, count: number): Promise<void> {
  for (let round = 0; server.count(operation) < count; round++) {
    assert.ok(round < 10_000, `${server.count(operation)} ${operation}, not ${count}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

test("a push that is killed at any moment is completed by --resume", async () => {
  await using server = await AwsServer.start({ behaviour: { latencyMs: 40, completionMs: 300 } });
  using scratch = new Scratch();
  const disk = scratch.path("disk.img");
  const env = server.environment(server.world.addKey());
  writeDisk(disk, 400, run(1, 260));
  const push = (...more: string[]) => ["volume", "push", disk, ...more];
  // just begun, among the blocks, and while EBS completes it
  const moments = [
    ["StartSnapshot", 1],
    ["PutSnapshotBlock", 40 + Math.floor(Math.random() * 180)],
    ["CompleteSnapshot", 1],
  ] as const;
  for (const [operation, count] of moments) {
    const { child, ended } = start(env, push("--resume", "--wait"));
    await requests(server, operation, count);
    child.kill("SIGKILL");
    const { signal, stderr } = await ended;
    assert.equal(signal, "SIGKILL", `${operation} ${count}: ${stderr}`);
  }
  const pushed = await json(env, ...push("--resume", "--wait"));
  assert.equal(pushed.status, "completed");
  assert.equal(server.world.snapshots.size, 1);
  assert.equal(server.world.firstDifference(String(pushed.snapshot), disk), undefined);
  assert.deepEqual(server.world.conflicts, []);
  const pulled = await json(env, "volume", "pull", String(pushed.snapshot), scratch.path("back.img"));
  assert.equal(pulled.verified, true);
  assert.ok(readFileSync(scratch.path("back.img")).equals(readFileSync(disk)));
});

test("an interrupted push says how to go on", async () => {
  await using server = await AwsServer.start({ behaviour: { latencyMs: 150 } });
  using scratch = new Scratch();
  const disk = scratch.path("disk.img");
  const env = server.environment(server.world.addKey());
  writeDisk(disk, 500, run(0, 300));
  const { child, ended } = start(env, ["volume", "push", disk]);
  await requests(server, "PutSnapshotBlock", 80);
  child.kill("SIGINT");
  const { code, stderr } = await ended;
  assert.equal(code, 3);
  assert.match(
    stderr,
    /HS_EBS_UNFINISHED\] snapshot snap-[0-9a-f]+ has \d+ of 300 blocks .*interrupted by SIGINT\n {2}the same command with --resume/,
  );
  const pushed = await json(env, "volume", "push", disk, "--resume", "--wait");
  assert.equal(server.world.firstDifference(String(pushed.snapshot), disk), undefined);
});

test("no secret comes into output, errors, files or the command line", async () => {
  await using server = await AwsServer.start({ behaviour: { latencyMs: 20 } });
  using scratch = new Scratch();
  const disk = scratch.path("disk.img");
  writeDisk(disk, 40, run(0, 30));
  const good = server.world.addKey({ temporary: true, lifeMs: 3_600_000 });
  const wrong = { ...good, secret: "wrongSecretWrongSecretWrongSecret" };
  const expired = server.world.addKey({ temporary: true, lifeMs: -1 });
  const secrets = [good, wrong, expired].flatMap(({ id, secret, sessionToken }: AccessKey) => [
    id,
    secret,
    sessionToken!,
  ]);
  const seen: string[] = [];
  const call = async (key: AccessKey, ...more: string[]) => {
    const { child, ended } = start(server.environment(key), ["--debug", "volume", "push", disk, ...more]);
    const commandLine = readFileSync(`/proc/${child.pid}/cmdline`, "utf8");
    const { code, stdout, stderr } = await ended;
    seen.push(commandLine, stdout, stderr);
    return { code, stderr };
  };
  const mismatch = await call(wrong);
  assert.equal(mismatch.code, 3);
  assert.match(mismatch.stderr, /HS_AWS_DENIED.*InvalidSignatureException/);
  const late = await call(expired);
  assert.match(late.stderr, /HS_AWS_CREDENTIALS.*ExpiredTokenException/);
  server.behaviour.faults.push({ on: "PutSnapshotBlock", kind: "denied", every: 9 });
  assert.match((await call(good, "--json")).stderr, /HS_EBS_UNFINISHED.*AccessDeniedException UNAUTHORIZED_ACCOUNT/);
  for (const name of readdirSync(scratch.directory)) {
    if (name !== "disk.img") seen.push(readFileSync(scratch.path(name), "utf8"));
  }
  server.behaviour.faults.length = 0;
  assert.equal((await call(good, "--resume", "--wait")).code, 0);
  for (const name of readdirSync(scratch.directory)) {
    if (name !== "disk.img") seen.push(readFileSync(scratch.path(name), "utf8"));
  }
  for (const secret of secrets) {
    assert.ok(secret.length > 10);
    for (const text of seen)
      assert.ok(!text.includes(secret) && !text.includes(encodeURIComponent(secret)), text.slice(0, 2000));
  }
});

test("what follows a push comes after its completion: fast restore, the parameter, and the end of old snapshots", async () => {
  await using server = await AwsServer.start({ behaviour: { completionMs: 50, pageLimit: 2 } });
  using scratch = new Scratch();
  const { world } = server;
  const disk = scratch.path("disk.img");
  const env = server.environment(world.addKey());
  const ids: string[] = [];
  await using aws = await connectAws({ env });
  const earlier = {
    client: aws.client,
    clock: systemClock,
    path: disk,
    tags: { Name: "app" },
    wait: true,
    waitStepMs: 1,
  };
  for (let version = 0; version < 7; version++) {
    writeDisk(disk, 8, { [version]: 100 + version });
    ids.push((await pushVolume(earlier)).snapshot);
  }
  // two are old enough and free to go; others are young, or named somewhere
  for (const [at, id] of ids.entries()) world.find(id)!.startedAt -= at >= 5 ? (7 - at) * DAY_MS : (30 - at) * DAY_MS;
  world.launchTemplates.push({
    id: "lt-1",
    name: "nodes",
    versions: [1, 2, 3].map((number) => ({ number, snapshots: number === 3 ? [ids[1]!] : [] })),
  });
  world.images.set("ami-9", [ids[2]!]);
  const nodeClass = scratch.path("nodeclass.yaml");
  writeFileSync(nodeClass, `spec:\n  blockDeviceMappings:\n    - ebs:\n        snapshotID: ${ids[3]}\n`);
  writeDisk(disk, 8, { 7: 7 });
  const options = ["--tag", "Name=app", "--keep", "2", "--node-class", nodeClass];
  const dry = await json(env, "volume", "push", disk, ...options, "--dry-run");
  assert.deepEqual(dry.wouldDelete, [ids[4], ids[0]]);
  assert.equal(world.snapshots.size, 7);
  assert.deepEqual((dry.estimate as { blocks: number }).blocks, 8);
  const zone = `${world.region}a`;
  const pushed = await json(
    env,
    "volume",
    "push",
    disk,
    ...options,
    "--fast-restore",
    zone,
    "--ssm-parameter",
    "/warm/app",
  );
  assert.equal(pushed.status, "completed");
  assert.equal((pushed.blocks as { sent: number }).sent, (dry.estimate as { blocks: number }).blocks);
  assert.deepEqual(pushed.deleted, [ids[4], ids[0]]);
  const why = new Map((pushed.kept as { snapshot: string; why: string }[]).map((each) => [each.snapshot, each.why]));
  assert.deepEqual(
    [...ids, String(pushed.snapshot)].map((id) => why.get(id)),
    [
      undefined,
      "launch template nodes version 3",
      "AMI ami-9",
      `named in ${nodeClass}`,
      undefined,
      "younger than 7 days",
      "one of the newest 2",
      "the new one",
    ],
  );
  assert.deepEqual([...world.find(String(pushed.snapshot))!.fastRestore.keys()], [zone]);
  assert.equal(world.parameters.get("/warm/app")?.value, pushed.snapshot);
  // without the right to read launch templates nothing is deleted
  server.behaviour.faults.push({ on: "DescribeLaunchTemplates", kind: "denied" });
  world.find(ids[5]!)!.startedAt -= 20 * DAY_MS;
  const before = world.snapshots.size;
  const refused = await start(env, ["volume", "push", disk, ...options]).ended;
  assert.equal(refused.code, 3);
  assert.match(
    refused.stderr,
    new RegExp(`HS_AWS_DENIED\\] snapshot ${pushed.snapshot} is completed; then: .*DescribeLaunchTemplates`),
  );
  assert.equal(world.snapshots.size, before);
});

test("wrong usage is exit 2", async () => {
  using scratch = new Scratch();
  const disk = scratch.path("disk.img");
  writeDisk(disk, 2, { 0: 1 });
  const env = { AWS_REGION: "eu-central-1", AWS_EC2_METADATA_DISABLED: "true" };
  for (const [args, message] of [
    [["push", disk, "--keep", "0"], /--keep 0/],
    [["push", disk, "--node-class", disk], /--node-class .*give both/],
    [["push", disk, "--ssm-parameter", "warm/app"], /--ssm-parameter warm\/app: write NAME/],
    [["push", disk, "--kms-key", "alias/mine"], /--kms-key alias\/mine: .*ARN/],
    [["push", disk, "--description", "x".repeat(256)], /--description: 256 characters/],
    [["push", disk, "--snippet", "karpenter"], /disk\.img\.json/],
    [["pull", "snap-x", scratch.path("y")], /no snapshot id/],
  ] as const) {
    const { code, stderr } = await start(env, ["volume", ...args]).ended;
    assert.match(stderr, message);
    assert.equal(code, 2, stderr);
  }
  const nobody = await start(env, ["volume", "push", disk]).ended;
  assert.match(
    nobody.stderr,
    /HS_AWS_CREDENTIALS\] no AWS credentials: asked environment, web identity, profile default, container credentials, instance metadata/,
  );
});
