/** `npm run fuzz -- NAME|all [SECONDS] [SEED]`: runs one fuzzer, or each in turn. Prints the seed of a round that failed, which repeats it alone. */

import { type Fuzzer, Random } from "./fuzzer.ts";
import { SOCI_FUZZERS } from "./soci.ts";
import { TAR_FUZZERS } from "./tar.ts";

const FUZZERS: { readonly [name: string]: Fuzzer } = { ...SOCI_FUZZERS, ...TAR_FUZZERS };

async function run(name: string, fuzzer: Fuzzer, seconds: number, firstSeed: number | null): Promise<boolean> {
  const end = performance.now() + seconds * 1000;
  let seed = firstSeed ?? Date.now() >>> 0;
  let rounds = 0;
  let slowestMs = 0;
  while (performance.now() < end) {
    const started = performance.now();
    try {
      await fuzzer.round(new Random(seed));
    } catch (error) {
      console.error(`${name}: failed; again with: npm run fuzz -- ${name} 1 ${seed}`);
      console.error(error);
      return false;
    }
    slowestMs = Math.max(slowestMs, performance.now() - started);
    rounds++;
    seed = (seed + 1) >>> 0;
  }
  console.log(`${name}: ${rounds} rounds, the slowest ${slowestMs.toFixed(0)} ms`);
  return true;
}

const [name, seconds = "10", seed] = process.argv.slice(2);
const chosen = Object.entries(FUZZERS).filter(([known]) => name === "all" || known === name);
if (chosen.length === 0) {
  console.error(`usage: npm run fuzz -- NAME|all [SECONDS] [SEED]; names: ${Object.keys(FUZZERS).join(", ")}`);
  process.exit(2);
}
for (const [known, fuzzer] of chosen) {
  if (!(await run(known, fuzzer, Number(seconds), seed === undefined ? null : Number(seed)))) process.exit(1);
}
