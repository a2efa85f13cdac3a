/**
 * `npm run bench -- [REGEXP] [--json] [--list] [--profile DIR]`: runs the cases whose names match, each in a process of its own, and prints their figures. Ratios (unit x) are of figures of the
 * same run. README.md says how to read and profile them.
 */

import { fork } from "node:child_process";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { CASES } from "./all.ts";
import type { BenchCase, Figure } from "./case.ts";

/** Throws when the case fails. */
async function runCase(wanted: BenchCase, execArgv: readonly string[]): Promise<Figure[]> {
  const found: Figure[] = [];
  // standard output is for figures: whatever a case or its programs say goes to standard error
  const child = fork(join(import.meta.dirname, "run-case.ts"), [wanted.name], {
    execArgv: [...execArgv],
    stdio: ["ignore", 2, 2, "ipc"],
  });
  child.on("message", (figure: Figure) => found.push(figure));
  const [code, signal] = await new Promise<[number | null, string | null]>((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", (...how) => resolve(how));
  });
  if (code !== 0) throw new Error(`${wanted.name} failed (${signal ?? `exit ${code}`})`);
  return found;
}

function formatValue({ value, unit }: Figure): string {
  const digits = Number.isInteger(value) ? 0 : value < 10 ? 2 : value < 100 ? 1 : 0;
  return `${value.toFixed(digits).padStart(8)} ${unit}`;
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    json: { type: "boolean", default: false },
    list: { type: "boolean", default: false },
    profile: { type: "string" },
  },
});
const pattern = new RegExp(positionals[0] ?? "");
const chosen = CASES.filter((each) => pattern.test(each.name));
if (values.list || chosen.length === 0) {
  process.stdout.write(`${CASES.map((each) => `${each.name.padEnd(24)} ${each.about}`).join("\n")}\n`);
  process.exit(values.list ? 0 : 2);
}
const execArgv = values.profile === undefined ? [] : ["--cpu-prof", "--cpu-prof-dir", values.profile];
const results: { name: string; figures: Figure[] }[] = [];
let failed = false;
for (const each of chosen) {
  if (!values.json) process.stdout.write(`${each.name}: ${each.about}\n`);
  try {
    const figures = await runCase(each, execArgv);
    results.push({ name: each.name, figures });
    const width = Math.max(...figures.map((figure) => figure.name.length));
    const lines = figures.map((figure) => `  ${figure.name.padEnd(width)}  ${formatValue(figure)}\n`);
    if (!values.json) process.stdout.write(`${lines.join("")}\n`);
  } catch (error) {
    failed = true;
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  }
}
if (values.json) process.stdout.write(`${JSON.stringify({ cases: results })}\n`);
process.exitCode = failed ? 1 : 0;
