/**
 * Set-up on a machine that may have nothing but Debian, Node >= 18 and npm >= 9: plain JavaScript, no dependencies. Installs libatomic1 where it is missing (the
 * pinned Node needs it), runs `npm ci` when package-lock.json changed since the last time, then runs a TypeScript file with the pinned Node.
 *
 *   node scripts/bootstrap.mjs run-ts FILE [ARG...]     set up, then run FILE
 *   node scripts/bootstrap.mjs set-up                   set up only
 */

import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const architecture = { x64: "x64", arm64: "arm64" }[process.arch];
const say = (text) => process.stderr.write(`headstart: ${text}\n`);

function fail(text, what) {
  say(text);
  say(what);
  process.exit(3);
}

function run(command, args) {
  // standard output belongs to the command that the user asked for: everything of ours goes to standard error
  const result = spawnSync(command, args, {
    cwd: root,
    stdio: ["ignore", 2, 2],
    env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" },
  });
  return result.status === 0;
}

function ensureLibatomic(node) {
  const works = spawnSync(node, ["--version"], { stdio: "ignore" }).status === 0;
  if (works) return;
  if (!existsSync("/usr/bin/apt-get") || process.getuid() !== 0) {
    fail(
      "the pinned Node does not start: libatomic.so.1 is probably missing",
      "install the package libatomic1, then try again",
    );
  }
  say("installing the Debian package libatomic1 (the pinned Node needs it)");
  const install = () => run("apt-get", ["install", "-y", "--no-install-recommends", "-qq", "libatomic1"]);
  if (!install() && !(run("apt-get", ["update", "-qq"]) && install()))
    fail("apt-get could not install libatomic1", "install it by hand, then try again");
}

function ensureModules(node) {
  const lock = createHash("sha256")
    .update(readFileSync(join(root, "package-lock.json")))
    .digest("hex");
  const stamp = join(root, "node_modules/.headstart-lock");
  if (existsSync(stamp) && existsSync(node) && readFileSync(stamp, "utf8") === lock) return;
  say("installing npm packages (npm ci)");
  if (!run("npm", ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]))
    fail("npm ci failed", "check the network and the npm registry, then try again");
  writeFileSync(stamp, lock);
}

function setUp() {
  if (process.platform !== "linux" || architecture === undefined)
    fail(`${process.platform}/${process.arch} is not supported`, "use Linux on x64 or arm64");
  const node = join(root, `node_modules/node-linux-${architecture}/bin/node`);
  ensureModules(node);
  if (!existsSync(node)) fail(`npm did not install node-linux-${architecture}`, "remove node_modules and try again");
  ensureLibatomic(node);
  return node;
}

const [mode, file, ...rest] = process.argv.slice(2);
if (mode !== "set-up" && !(mode === "run-ts" && file))
  fail("usage: bootstrap.mjs run-ts FILE [ARG...] | set-up", "see the head of scripts/bootstrap.mjs");
const node = setUp();
if (mode === "run-ts") {
  // what was compiled once is not compiled again by each of the many short processes: a third of their time is left
  const NODE_COMPILE_CACHE = process.env.NODE_COMPILE_CACHE ?? join(root, ".cache/compile");
  const child = spawn(node, [join(root, file), ...rest], {
    stdio: "inherit",
    env: { ...process.env, NODE_COMPILE_CACHE },
  });
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
  child.on("exit", (code, signal) => process.exit(signal ? 128 + 15 : (code ?? 1)));
}
