/**
 * `npm run fuzz`: lists the fuzzers. `npm run fuzz -- NAME|all [SECONDS] [SEED]` runs one, or each in turn; `npm run fuzz -- smoke` runs each for a few rounds with fixed seeds. A round that fails
 * prints its seed, which repeats it alone. Exits with 1 when one failed, 2 for a name that there is not.
 */

import { FUZZERS } from "./all.ts";
import { type Fuzzer, Random } from "./fuzzer.ts";

const SMOKE_ROUNDS = 20;
const SECONDS = 10;

interface Limits {
  readonly firstSeed: number;
  readonly seconds: number;
  readonly rounds: number;
}

async function run(name: string, fuzzer: Fuzzer, limits: Limits): Promise<boolean> {
  const end = performance.now() + limits.seconds * 1000;
  let rounds = 0;
  let slowestMs = 0;
  for (let seed = limits.firstSeed; rounds < limits.rounds && performance.now() < end; seed = (seed + 1) >>> 0) {
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
  }
  console.log(`${name}: ${rounds} rounds, the slowest ${slowestMs.toFixed(0)} ms`);
  return true;
}

async function main([name, seconds = String(SECONDS), seed]: readonly string[]): Promise<number> {
  if (name === undefined) {
    console.log(Object.keys(FUZZERS).join("\n"));
    return 0;
  }
  const all = name === "all" || name === "smoke";
  // the canary fails by design: it runs by its name alone
  const chosen = Object.entries(FUZZERS).filter(([known]) => (all ? known !== "canary" : known === name));
  const limits: Limits =
    name === "smoke"
      ? { firstSeed: 1, seconds: Number.POSITIVE_INFINITY, rounds: SMOKE_ROUNDS }
      : { firstSeed: Number(seed ?? Date.now()) >>> 0, seconds: Number(seconds), rounds: Number.POSITIVE_INFINITY };
  if (chosen.length === 0 || !(limits.seconds > 0)) {
    console.error(`usage: npm run fuzz -- NAME|all|smoke [SECONDS] [SEED]; names: ${Object.keys(FUZZERS).join(", ")}`);
    return 2;
  }
  for (const [known, fuzzer] of chosen) if (!(await run(known, fuzzer, limits))) return 1;
  return 0;
}

process.exitCode = await main(process.argv.slice(2));
