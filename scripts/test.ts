/**
 * `npm test`: types, lint, unit and property tests, then end to end with real parts; fails on leaked mounts and processes. Arguments narrow it:
 * `npm test -- unit`, `npm test -- e2e`, or any part of a test file's path.
 */

import { spawnSync } from "node:child_process";
import { globSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { run } from "node:test";
import { spec } from "node:test/reporters";
import { debianPackages } from "../src/sandbox/packages.ts";

const root = dirname(import.meta.dirname);
/** What the end-to-end tests use beside Node (README, "What it needs"). */
const PACKAGES = [
  "containerd",
  "runc",
  "docker-registry",
  "skopeo",
  "umoci",
  "erofs-utils",
  "mmdebstrap",
  "busybox-static",
  "attr",
  "acl",
  "fuse3",
  "pigz",
  "e2fsprogs",
  "gdisk",
  "fdisk",
  "zstd",
  "python3-boto3",
  "awscli",
];

/** End-to-end tests that run beside the others: they wait for deadlines and restarts more than they compute, or look at nothing that a busy machine changes. */
const BESIDE = [
  "bad-index",
  "convert-nydus",
  "crash",
  "disk-full",
  "docs-volumes",
  "image-tree",
  "registry-faults",
  "volume",
  "volume-verify",
];

interface Totals {
  passed: number;
  failed: number;
  skipped: number;
}

function step(name: string, command: string, args: readonly string[]): boolean {
  const start = performance.now();
  const result = spawnSync(join(root, "node_modules/.bin", command), args, {
    cwd: root,
    stdio: "inherit",
    env: environment(),
  });
  const ok = result.status === 0;
  console.log(`${ok ? "✔" : "✖"} ${name} (${((performance.now() - start) / 1000).toFixed(1)} s)`);
  return ok;
}

function environment(): NodeJS.ProcessEnv {
  return { ...process.env, PATH: `${dirname(process.execPath)}:${process.env.PATH}` };
}

async function runTests(files: readonly string[], concurrency: number, totals: Totals): Promise<void> {
  if (files.length === 0) return;
  const stream = run({ files: files.map((file) => join(root, file)), concurrency, timeout: 600_000 });
  stream.on("test:summary", (summary) => {
    // the summary without a file is that of the whole run
    if (summary.file !== undefined) return;
    totals.passed += summary.counts.passed;
    totals.failed += summary.counts.tests - summary.counts.passed - summary.counts.skipped - summary.counts.todo;
    totals.skipped += summary.counts.skipped + summary.counts.todo;
    if (!summary.success && summary.counts.tests === summary.counts.passed) totals.failed++;
  });
  await new Promise<void>((resolve, reject) => {
    stream.compose(new spec()).on("error", reject).on("end", resolve).pipe(process.stdout, { end: false });
  });
}

/** Mount points, and processes that an end-to-end test starts, by pid. */
function leakable(): Set<string> {
  const found = new Set<string>();
  for (const line of readFileSync("/proc/self/mountinfo", "utf8").split("\n")) {
    const fields = line.split(" ");
    if (fields.length > 6) found.add(`mount ${fields[4]}`);
  }
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      const command = readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ").trim();
      const program = command.split(" ")[0]!.split("/").at(-1)!;
      const ours = /headstart|src\/(daemon|supervisor)\//.test(command) && !command.includes("scripts/test.ts");
      if (/^(containerd|containerd-shim.*|docker-registry|runc|redis-server|busybox)$/.test(program) || ours)
        found.add(`process ${pid}: ${command.slice(0, 200)}`);
    } catch {
      // it ended meanwhile
    }
  }
  return found;
}

async function leaks(before: ReadonlySet<string>): Promise<string[]> {
  for (let round = 0; ; round++) {
    const left = [...leakable()].filter((entry) => !before.has(entry));
    if (left.length === 0 || round === 20) return left;
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
}

const filters = process.argv.slice(2).filter((argument) => !argument.startsWith("-"));
const chosen = (file: string, kind: string) =>
  filters.length === 0 || filters.includes(kind) || filters.some((filter) => file.includes(filter));
const unit = globSync("{src,test,bench,fuzz}/**/*.test.ts", {
  cwd: root,
  exclude: (path) => path.includes("test/e2e"),
}).filter((file) => chosen(file, "unit"));
const endToEnd = globSync("test/e2e/**/*.test.ts", { cwd: root }).filter((file) => chosen(file, "e2e"));

const started = performance.now();
process.umask(0o022);
await debianPackages(PACKAGES);
const before = leakable();
let ok = true;
if (filters.length === 0) {
  ok = step("types", "tsc", ["-p", "."]) && ok;
  ok = step("format and lint", "biome", ["check", "--error-on-warnings", "."]) && ok;
}
const totals: Totals = { passed: 0, failed: 0, skipped: 0 };
await runTests(unit.sort(), 2, totals);
const isBeside = (file: string) => BESIDE.some((name) => file.endsWith(`/${name}.test.ts`));
await Promise.all([
  runTests(endToEnd.filter((file) => !isBeside(file)).sort(), 1, totals),
  runTests(endToEnd.filter(isBeside).sort(), 1, totals),
]);
const left = await leaks(before);
for (const entry of left) console.log(`left behind: ${entry}`);
console.log(`${((performance.now() - started) / 1000).toFixed(0)} s`);
console.log(`${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped`);
process.exit(ok && totals.failed === 0 && totals.passed > 0 && left.length === 0 ? 0 : 1);
