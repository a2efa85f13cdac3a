/**
 * Pushing a volume to an EBS that answers each request after 20 ms, and pulling it back; the server is a process of its own, on the same machine. Beside it what one process does that only reads,
 * hashes and sends as many bytes over 32 connections to a process that drops them: the ratios say how much of that a push reaches. That of speeds holds on a quiet machine alone, with cores for both
 * processes, since the server hashes everything too; that of CPU seconds holds anywhere.
 */

import { type ChildProcess, fork } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { open, rename } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "../../src/base/clock.ts";
import { connectAws } from "../../src/volume/aws/connect.ts";
import { BLOCK_BYTES } from "../../src/volume/ebs/blocks.ts";
import { EBS_PACE } from "../../src/volume/ebs/pace.ts";
import { pullVolume } from "../../src/volume/ebs/pull.ts";
import { pushVolume } from "../../src/volume/ebs/push.ts";
import type { AwsOptions } from "../../test/aws/server.ts";
import { patternBlock } from "../../test/aws/world.ts";
import type { BenchCase, Report } from "../case.ts";

const BLOCKS = 3072;
const CONNECTIONS = 32;

class Place implements Disposable {
  readonly directory = mkdtempSync(join(tmpdir(), "headstart-bench-ebs-"));
  readonly disk = join(this.directory, "disk.img");
  readonly #children: ChildProcess[] = [];

  constructor() {
    const fd = openSync(this.disk, "w");
    for (let index = 0; index < BLOCKS; index++)
      writeSync(fd, patternBlock(index), 0, BLOCK_BYTES, index * BLOCK_BYTES);
    closeSync(fd);
  }

  async start<T>(file: string, ...args: string[]): Promise<T> {
    const child = fork(join(import.meta.dirname, "../../test/aws", file), args);
    this.#children.push(child);
    const [message] = (await once(child, "message")) as [T];
    return message;
  }

  [Symbol.dispose](): void {
    for (const child of this.#children) child.kill();
    rmSync(this.directory, { recursive: true });
  }
}

/** Reading, hashing and sending, all on this thread: MB a second, and CPU seconds. */
async function hashAndSend(disk: string, port: number): Promise<{ readonly rate: number; readonly cpu: number }> {
  await using file = await open(disk, "r");
  let next = 0;
  const before = process.cpuUsage();
  const start = performance.now();
  const lane = async () => {
    const socket = connect(port, "127.0.0.1");
    const buffer = new Uint8Array(BLOCK_BYTES);
    for (let index = next++; index < BLOCKS; index = next++) {
      await file.read(buffer, 0, BLOCK_BYTES, index * BLOCK_BYTES);
      createHash("sha256").update(buffer).digest();
      const answered = once(socket, "data");
      socket.write(buffer);
      await answered;
    }
    socket.destroy();
  };
  await Promise.all(Array.from({ length: CONNECTIONS }, lane));
  return { rate: (BLOCKS * BLOCK_BYTES) / 1e6 / ((performance.now() - start) / 1000), cpu: cpuSince(before) };
}

function cpuSince(before: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1e6;
}

async function ebs(report: Report): Promise<void> {
  using place = new Place();
  const options: AwsOptions = { forgetful: true, behaviour: { latencyMs: 20 } };
  const { env } = await place.start<{ env: Record<string, string> }>("main.ts", JSON.stringify(options));
  const alone = await hashAndSend(place.disk, await place.start<number>("sink.ts"));
  const megabytes = (BLOCKS * BLOCK_BYTES) / 1e6;
  const measured = async <T extends { seconds: number; requests: number; retries: number }>(
    what: string,
    work: () => Promise<T>,
  ) => {
    const before = process.cpuUsage();
    const result = await work();
    const cpu = cpuSince(before);
    report(`${what}`, megabytes / result.seconds, "MB/s");
    report(`${what}: blocks`, BLOCKS / result.seconds, "a second");
    report(`${what}: requests`, result.requests, "");
    report(`${what}: retries`, result.retries, "");
    report(`${what}: CPU for a GB`, cpu / (megabytes / 1000), "s");
    return { result, cpu };
  };
  const parts = { env, connections: EBS_PACE.max };
  await using first = await connectAws(parts);
  const clock = systemClock;
  // the digests are there, as a build leaves them
  const described = await pushVolume({ client: first.client, clock, path: place.disk, tags: { run: "1" } });
  report("hashing first, and push", megabytes / described.seconds, "MB/s");
  await rename(`${place.disk}.snapshot.json`, `${place.disk}.json`);
  await using second = await connectAws(parts);
  const { result: pushed, cpu } = await measured("push", () =>
    pushVolume({ client: second.client, clock, path: place.disk, wait: true, waitStepMs: 1 }),
  );
  report("push, of hashing and sending alone", megabytes / pushed.seconds / alone.rate, "x");
  report("push: most in flight", pushed.inFlightMax, "");
  report("hashing and sending alone", alone.rate, "MB/s");
  report("push, CPU of hashing and sending alone over its own", alone.cpu / cpu, "x");
  const peak = (what: string) => report(`peak memory, ${what}`, process.resourceUsage().maxRSS / 1024, "MiB");
  peak("push");
  await using third = await connectAws(parts);
  const { snapshot } = pushed;
  await measured("pull", () =>
    pullVolume({ client: third.client, clock, snapshot, path: join(place.directory, "back.img") }),
  );
  peak("pull");
}

export const EBS_CASES: readonly BenchCase[] = [
  {
    name: "ebs",
    about: "push and pull of a 1.5 GiB volume, 20 ms a request, server in a process of its own",
    run: ebs,
  },
];
