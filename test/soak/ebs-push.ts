/**
 * Pushes that are killed at random moments while EBS misbehaves at random: throttling, failures, resets, lost answers, silence, snapshots that are not seen yet, credentials that end, commands without
 * --resume, a file that changes meanwhile. In the end the snapshot is the file; and at no time a snapshot is completed that is not what its tag names. Seeded: a round is repeated by its number.
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { Scratch, writeDisk } from "../../src/volume/ebs/testing.ts";
import type { FaultKind } from "../aws/behaviour.ts";
import { startHeadstart } from "../aws/command-line.ts";
import { AwsServer } from "../aws/server.ts";
import { BLOCK } from "../aws/world.ts";

const BLOCKS = 160;
const KINDS: readonly FaultKind[] = ["throttle", "500", "html", "reset", "lost", "cut", "slow", "denied"];
const OPERATIONS = ["PutSnapshotBlock", "PutSnapshotBlock", "StartSnapshot", "CompleteSnapshot", "DescribeSnapshots"];

/** [0, 1), by xorshift. */
function randomOf(seed: number): () => number {
  let state = (seed * 2654435761) >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

interface Tally {
  runs: number;
  kills: number;
  errors: number;
}

/** `[ROUNDS] [FIRST SEED]`. */
export async function ebsPush(args: readonly string[]): Promise<void> {
  const rounds = Number(args[0] ?? 20);
  const first = Number(args[1] ?? 1);
  const tally: Tally = { runs: 0, kills: 0, errors: 0 };
  for (let seed = first; seed < first + rounds; seed++) {
    await round(seed, tally).catch((error: unknown) => {
      throw new Error(`round ${seed} failed: npm run soak -- ebs-push 1 ${seed}`, { cause: error });
    });
  }
  console.log(
    `${rounds} rounds: ${tally.runs} pushes, ${tally.kills} killed, ${tally.errors} ended in an error, all became right`,
  );
}

async function round(seed: number, tally: Tally): Promise<void> {
  const random = randomOf(seed);
  const below = (max: number) => Math.floor(random() * max);
  await using server = await AwsServer.start({
    behaviour: { latencyMs: below(30), completionMs: below(500), visibilityDelayMs: random() < 0.3 ? below(1500) : 0 },
  });
  using scratch = new Scratch();
  const disk = scratch.path("disk.img");
  const change = () =>
    Object.fromEntries(Array.from({ length: 1 + below(BLOCKS) }, () => [below(BLOCKS), below(1000)]));
  writeDisk(disk, BLOCKS, change());
  let parent: string | undefined;
  for (let version = 0; version < 2; version++) {
    // what --resume is refused for, as the hint says
    let anew = false;
    for (let attempt = 0; ; attempt++) {
      const calm = attempt >= 4;
      misbehave(server, calm ? 0 : below(6), below);
      const key = server.world.addKey({ temporary: true, lifeMs: 3_600_000 });
      const flags = [
        ...(parent === undefined ? [] : ["--parent", parent]),
        ...(!anew && random() < 0.8 ? ["--resume"] : []),
        "--wait",
      ];
      const killAfterMs = calm || random() < 0.3 ? undefined : 600 + below(3000);
      const expireAfterMs = !calm && random() < 0.2 ? 500 + below(2000) : undefined;
      const timer = setTimeout(() => server.world.keys.delete(key.id), expireAfterMs ?? 1 << 30);
      const ended = await push(server.environment(key), disk, flags, killAfterMs);
      clearTimeout(timer);
      tally.runs++;
      if (ended.killed) tally.kills++;
      assertHonest(server);
      if (ended.snapshot !== undefined) {
        assert.equal(server.world.firstDifference(ended.snapshot, disk), undefined);
        parent = ended.snapshot;
        break;
      }
      anew = ended.stderr.includes("HS_EBS_STATE");
      if (!ended.killed) {
        tally.errors++;
        assert.match(ended.stderr, /\[HS_/, "an error of ours");
        assert.ok(!calm || !/HS_EBS_UNFINISHED/.test(ended.stderr), ended.stderr);
        assert.ok(attempt < 8, ended.stderr);
      }
      if (!calm && random() < 0.1) writeDisk(disk, BLOCKS, change());
    }
    writeDisk(disk, BLOCKS, change());
  }
  assert.deepEqual(server.world.conflicts, []);
}

function misbehave(server: AwsServer, count: number, below: (max: number) => number): void {
  const { behaviour } = server;
  behaviour.putsPerSecond = below(4) === 0 ? 100 + below(400) : Number.POSITIVE_INFINITY;
  behaviour.faults = Array.from({ length: count }, () => ({
    on: OPERATIONS[below(OPERATIONS.length)]!,
    kind: KINDS[below(KINDS.length)]!,
    every: 2 + below(40),
    ...(below(2) === 0 && { times: 1 + below(20) }),
  }));
}

interface Pushed {
  readonly killed: boolean;
  readonly snapshot: string | undefined;
  readonly stderr: string;
}

async function push(
  env: Record<string, string>,
  disk: string,
  flags: readonly string[],
  killAfterMs: number | undefined,
): Promise<Pushed> {
  const { child, ended } = startHeadstart(env, ["volume", "push", disk, "--json", ...flags]);
  const timer = setTimeout(() => child.kill("SIGKILL"), killAfterMs ?? 120_000);
  const { code, signal, stdout, stderr } = await ended;
  clearTimeout(timer);
  assert.ok(signal === null || killAfterMs !== undefined, `a push took two minutes: ${stderr}`);
  const done = code === 0 ? (JSON.parse(stdout) as { snapshot: string; status: string }) : undefined;
  assert.ok(done === undefined || done.status === "completed");
  return { killed: signal !== null, snapshot: done?.snapshot, stderr };
}

/** What is completed is what its tag names. */
function assertHonest({ world }: AwsServer): void {
  const zero = createHash("sha256").update(Buffer.alloc(BLOCK)).digest();
  for (const id of world.snapshots.keys()) {
    const snapshot = world.find(id)!;
    if (snapshot.state !== "completed") continue;
    const hash = createHash("sha256");
    for (const index of world.indexes(id)) {
      const digest = world.holder(id, index)!.digests.get(index)!;
      const number = Buffer.alloc(4);
      number.writeUInt32LE(index);
      if (!digest.equals(zero)) hash.update(number).update(digest);
    }
    assert.equal(
      snapshot.tags.get("headstart.dev/volume"),
      `sha256:${hash.digest("hex")}`,
      `${id} is not what its tag names`,
    );
  }
}
