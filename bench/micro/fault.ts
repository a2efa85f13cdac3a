/**
 * What a read of a lazy layer costs here, without any network: supervisor and hole server as in production (each a process of its own), EROFS mounted over FUSE, 4 KiB reads
 * at random places of a 64 MiB file.
 As root; needs mkfs.erofs.
 *
 *   hole      goes to the main thread, `ensure` copies the block from a local file at once
 *   filled    answered by the reader thread, from the page cache of the layer file
 *   cached    the kernel alone
 */

import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { closeSync, openSync, readFileSync, readSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { unmountAsync } from "../../src/linux/mount.ts";
import { FusePlace } from "../../test/e2e/fuse-place.ts";
import { type BenchCase, percentile, type Report } from "../case.ts";

const BLOCKS = 16_384;
const READS = 4000;

function tell(report: Report, name: string, times: Float64Array): void {
  report(`${name}: p50`, percentile(times, 0.5) * 1000, "µs");
  report(`${name}: p99`, percentile(times, 0.99) * 1000, "µs");
}

/** Reads one 4 KiB block at each place, one after the other. */
async function measure(file: string, places: Uint32Array): Promise<Float64Array> {
  const fd = openSync(file, "r");
  const block = Buffer.alloc(4096);
  const times = new Float64Array(places.length);
  for (const [index, place] of places.entries()) {
    const start = performance.now();
    readSync(fd, block, 0, 4096, place * 4096);
    times[index] = performance.now() - start;
    // the server must not share a core with its reader for longer than in practice
    if (index % 64 === 0) await sleep(1);
  }
  closeSync(fd);
  return times;
}

function shuffled(): Uint32Array {
  const places = Uint32Array.from({ length: BLOCKS }, (_, index) => index);
  let seed = 7;
  for (let index = BLOCKS - 1; index > 0; index--) {
    seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
    const other = seed % (index + 1);
    [places[index], places[other]] = [places[other]!, places[index]!];
  }
  return places.subarray(0, READS);
}

async function faults(report: Report, mode: Mode): Promise<void> {
  await using place = await FusePlace.make({ quiet: "" }, (tree) => {
    writeFileSync(join(tree, "big"), randomBytes(BLOCKS * 4096));
  });
  const remount = async () => {
    await place.mount(mode === "loop" ? "loop" : "file", mode === "directio" ? "directio" : "");
  };
  await remount();
  const file = join(place.layer, "big");
  const places = shuffled();
  tell(report, "hole", await measure(file, places));
  await unmountAsync(place.layer);
  await sleep(200);
  // the FUSE copy too: the next reads shall reach the server
  execFileSync("sh", ["-c", "echo 1 > /proc/sys/vm/drop_caches"]);
  await remount();
  readFileSync(join(place.root, "sparse"));
  tell(report, "filled", await measure(file, places));
  tell(report, "cached", await measure(file, places));
}

const MODES = {
  directio: "EROFS from the file, O_DIRECT",
  buffered: "EROFS from the file, buffered",
  loop: "EROFS through a loop device",
};

type Mode = keyof typeof MODES;

export const FAULT_CASES: readonly BenchCase[] = (Object.keys(MODES) as Mode[]).map((mode) => ({
  name: `fault.${mode}`,
  about: `${READS} random reads of 4 KiB over FUSE, ${MODES[mode]}`,
  run: (report) => faults(report, mode),
}));
