/** A place for tests of the fault path: an image made by mkfs.erofs, a supervisor with the slow server of test/fakes over it, and proof that nothing is left. */

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fuseWaiting } from "../../src/linux/fusectl.ts";
import { attachLoop } from "../../src/linux/loop.ts";
import { MountFlag, mountAsync } from "../../src/linux/mount.ts";
import { findMount, readMountInfo } from "../../src/linux/mountinfo.ts";

const SUPERVISOR = join(import.meta.dirname, "../../src/supervisor/main.ts");
const SERVER = join(import.meta.dirname, "../fakes/slow-server.ts");
const LAYER_FLAGS = MountFlag.readOnly | MountFlag.noSuid | MountFlag.noDev | MountFlag.noExec;
export const FILES = 64;
export const FILE_BYTES = 40_000;

export class FusePlace implements AsyncDisposable {
  readonly root: string;
  readonly state: string;
  /** What the image holds, as ordinary files. */
  readonly tree: string;
  readonly layer: string;
  readonly #environment: NodeJS.ProcessEnv;
  #supervisor: ChildProcess | null = null;

  private constructor(root: string, environment: NodeJS.ProcessEnv) {
    this.root = root;
    this.#environment = environment;
    this.state = join(root, "state");
    this.tree = join(root, "tree");
    this.layer = join(root, "layer");
  }

  /** `more` may add files to the tree. */
  static async make(
    settings: Record<string, string> = {},
    more?: (tree: string) => void,
    environment: NodeJS.ProcessEnv = {},
  ): Promise<FusePlace> {
    const place = new FusePlace(mkdtempSync(join(tmpdir(), "headstart-fuse-")), environment);
    for (const name of ["tree", "layer", "control"]) mkdirSync(join(place.root, name));
    let seed = 1;
    for (let file = 0; file < FILES; file++) {
      const bytes = Buffer.alloc(FILE_BYTES);
      for (let at = 0; at < FILE_BYTES; at += 4) {
        seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
        bytes.writeUInt32LE(seed, at);
      }
      writeFileSync(join(place.tree, `f${file}`), bytes);
    }
    writeFileSync(join(place.tree, "hello.txt"), "hello, erofs\n");
    more?.(place.tree);
    execFileSync("mkfs.erofs", ["-T0", join(place.root, "image"), place.tree], { stdio: "ignore" });
    for (const [name, value] of Object.entries(settings)) place.set(name, value);
    await place.startSupervisor();
    return place;
  }

  set(name: string, value: string | null): void {
    const path = join(this.root, "control", name);
    if (value === null) rmSync(path, { force: true });
    else writeFileSync(path, value);
  }

  /** Fills that the server was asked for so far. */
  get faults(): number {
    const path = join(this.root, "control", "faults");
    return existsSync(path) ? readFileSync(path, "latin1").trim().split("\n").length : 0;
  }

  get serverPid(): number {
    return Number(readFileSync(join(this.state, "server.pid"), "latin1").split(" ")[0]);
  }

  get supervisorPid(): number {
    return this.#supervisor!.pid!;
  }

  async startSupervisor(): Promise<void> {
    rmSync(join(this.state, "ready"), { force: true });
    const log = join(this.root, "log");
    const command = [
      process.execPath,
      SERVER,
      join(this.root, "image"),
      join(this.root, "sparse"),
      join(this.root, "control"),
    ];
    this.#supervisor = spawn(
      "sh",
      [
        "-c",
        'log="$1"; shift; exec "$@" 2>>"$log"',
        "sh",
        log,
        process.execPath,
        SUPERVISOR,
        "--state",
        this.state,
        "--",
        ...command,
      ],
      { stdio: ["ignore", "inherit", "inherit"], env: { ...process.env, ...this.#environment } },
    );
    await this.ready();
  }

  /** Resolves when a server other than `not` serves. */
  async ready(not = 0): Promise<void> {
    await until(
      async () => {
        const path = join(this.state, "ready");
        return existsSync(path) && Number(readFileSync(path, "latin1")) === this.serverPid && this.serverPid !== not;
      },
      () => `the server is not ready: ${this.#log()}`,
    );
  }

  #log(): string {
    const path = join(this.root, "log");
    return statSync(path).isFile() ? readFileSync(path, "utf8") : "its log is a device";
  }

  async mount(mode: "file" | "loop", data = "directio"): Promise<void> {
    const source = join(this.state, "fuse", "1.erofs");
    const target = this.layer;
    if (mode === "file") {
      await mountAsync({ source, target, type: "erofs", flags: LAYER_FLAGS, data });
      return;
    }
    await using device = await attachLoop(source);
    await mountAsync({ source: device.path, target, type: "erofs", flags: LAYER_FLAGS });
  }

  /** Nothing waits for an answer any more. Read-ahead may outlast the read that caused it; a request that was lost waits for ever. */
  async nothingWaits(): Promise<void> {
    const { minor } = findMount(readMountInfo(), join(this.state, "fuse"))!;
    await until(
      async () => fuseWaiting(minor) === 0,
      () => `${fuseWaiting(minor)} requests wait for an answer`,
    );
  }

  async statistics(): Promise<Record<string, unknown>> {
    const path = join(this.root, "control", "statistics");
    rmSync(path, { force: true });
    process.kill(this.serverPid, "SIGUSR2");
    await until(async () => existsSync(path) && readFileSync(path).byteLength > 0);
    return JSON.parse(readFileSync(path, "utf8"));
  }

  /** A reader in a process of its own: this one must stay free. Resolves with whether the bytes are right, or with cmp's message. */
  compare(name: string): Promise<string> {
    const child = spawn("cmp", [join(this.layer, name), join(this.tree, name)], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    let message = "";
    child.stderr.on("data", (chunk) => (message += chunk));
    return new Promise((resolve) =>
      child.on("exit", (code) => resolve(code === 0 ? "same" : message || `code ${code}`)),
    );
  }

  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    const child = this.#supervisor;
    if (child === null || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once("exit", resolve));
    child.kill(signal);
    await gone;
  }

  async teardown(): Promise<void> {
    const child = spawn(process.execPath, [SUPERVISOR, "--state", this.state, "--teardown", "--force"], {
      stdio: "inherit",
    });
    await new Promise((resolve) => child.once("exit", resolve));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.teardown();
    await this.stop("SIGKILL");
    rmSync(this.root, { recursive: true, force: true });
  }
}

export async function until(
  condition: () => Promise<boolean>,
  why: () => string = () => "waited for too long",
): Promise<void> {
  const deadline = performance.now() + 45_000;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(why());
    await sleep(10);
  }
}
