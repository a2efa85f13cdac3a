/** What test/e2e/volume-verify.test.ts does 200 times, as often as wanted, on both kinds of disk. */

import { join } from "node:path";
import { MiB } from "../../src/base/limits.ts";
import { dropDigests, harmCases, runHarm } from "../suites/volume-harm.ts";
import { temporaryFolder } from "../tools/erofs-image.ts";
import { FIXTURE_SOURCE, makeVolume, TINY_SOURCE } from "../tools/volumes.ts";

export async function volumeHarm([perClass = "250", first = "100000"]: readonly string[]): Promise<void> {
  using folder = temporaryFolder("headstart-soak-");
  for (const layout of ["bottlerocket", "al2023"] as const) {
    const disk = join(folder.path, layout);
    await makeVolume(disk, [FIXTURE_SOURCE, TINY_SOURCE], { layout });
    dropDigests(disk);
    let count = 0;
    const missed: string[] = [];
    const cases = harmCases(Number(perClass), Number(first));
    for await (const { kind, repaired, seed, done, found } of runHarm(
      disk,
      cases,
      layout === "bottlerocket" ? MiB : 0,
    )) {
      count++;
      if (found) continue;
      missed.push(`${kind}, ${repaired ? "repaired" : "raw"}, seed ${seed}: ${done}`);
      console.error(`missed: ${missed.at(-1)}`);
    }
    console.log(`${layout}: ${count} harms, ${missed.length} missed`);
    if (missed.length > 0) throw new Error(`${missed.length} harms were not found`);
  }
}
