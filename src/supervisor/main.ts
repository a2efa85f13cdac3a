/**
 * headstart-supervisor: opens /dev/fuse, mounts it at STATE/fuse, keeps the descriptor, and starts the server with it as descriptor 3, again and again. Does nothing
 * else and hardly ever changes, because it must not die: when the last copy of the descriptor closes, every EROFS mount over it is dead for ever.
 *
 *   main.ts --state DIR -- COMMAND ARGUMENT...     run
 *   main.ts --state DIR --teardown [--force]       stop a running supervisor and unmount everything of this state directory
 *
 * - The server gets HEADSTART_FUSE_FD=3, HEADSTART_STATE=DIR, and may write DIR/ready when it serves. It is started anew when it dies (at once, then with back-off).
 * - SIGHUP replaces the server (upgrade): reads wait meanwhile. SIGTERM and SIGINT stop the server and end; mounts stay: what is cached or sealed goes on, a
 *   read of a hole fails with EIO. Containers on lazy layers outlive a stop only if the descriptor does, so a service manager shall kill this process alone
 *   (KillMode=process): the server that is left keeps the connection, and the next supervisor takes the descriptor over from it.
 * - The state directory belongs on tmpfs: nothing in it is good after a reboot.
 */

import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, mkdirSync, openSync, readFileSync, readlinkSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { HeadstartError } from "../base/errors.ts";
import { MountFlag, mount, UnmountFlag, unmount } from "../linux/mount.ts";
import { findMount, readMountInfo } from "../linux/mountinfo.ts";
import { openPidfd, takeDescriptor } from "../linux/process.ts";
import { unmountTree } from "../linux/unmount-tree.ts";

const FUSE_FD = 3;
const BACKOFF_MS_MAX = 10_000;
/** A server that lived this long was well: the next death is the first again. */
const HEALTHY_MS = 10_000;
const STOP_MS = 10_000;
const ZOMBIE_POLL_MS = 250;

function log(message: string, fields: Record<string, unknown> = {}): void {
  try {
    writeSync(2, `${JSON.stringify({ time: new Date().toISOString(), message, ...fields })}\n`);
  } catch {
    // a log on a full disk, or whose reader has gone, must not end this process
  }
}

/** The descriptor of a living connection at STATE/fuse, from a server that outlived its supervisor; or null. */
async function adopt(state: string): Promise<number | null> {
  const pid = readPid(join(state, "server.pid"));
  if (pid === null || findMount(readMountInfo(), join(state, "fuse")) === undefined) return null;
  try {
    const environment = readFileSync(`/proc/${pid}/environ`, "latin1").split("\0");
    if (!environment.includes(`HEADSTART_STATE=${state}`)) return null;
    if (readlinkSync(`/proc/${pid}/fd/${FUSE_FD}`) !== "/dev/fuse") return null;
    const pidfd = openPidfd(pid);
    const fd = takeDescriptor(pidfd, FUSE_FD);
    closeSync(pidfd);
    log("took the FUSE descriptor over", { from: pid });
    await stopProcess(pid);
    return fd;
  } catch (error) {
    log("cannot take the FUSE descriptor over", { from: pid, error: String(error) });
    return null;
  }
}

function mountAnew(state: string): number {
  const target = join(state, "fuse");
  while (findMount(readMountInfo(), target) !== undefined) unmount(target, UnmountFlag.detach);
  // what was agreed and what was pending belong to the connection that is gone
  for (const name of ["connection.json", "journal"]) rmSync(join(state, name), { force: true });
  mkdirSync(target, { recursive: true, mode: 0o700 });
  const fd = openSync("/dev/fuse", "r+");
  mount({
    source: "headstart",
    target,
    type: "fuse.headstart",
    flags: MountFlag.noSuid | MountFlag.noDev,
    data: `fd=${fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=1048576`,
  });
  log("mounted", { target });
  return fd;
}

async function run(state: string, command: readonly string[]): Promise<void> {
  mkdirSync(state, { recursive: true, mode: 0o700 });
  const running = readPid(join(state, "supervisor.pid"));
  if (running !== null && running !== process.pid && isAlive(running)) {
    throw new HeadstartError("HS_USAGE", { what: `a supervisor (pid ${running}) runs for ${state}` });
  }
  const fd = (await adopt(state)) ?? mountAnew(state);
  writeFileSync(join(state, "supervisor.pid"), `${process.pid} ${startTime(process.pid)}\n`);
  let child: ChildProcess | null = null;
  let stopping = false;
  let replacing = false;
  const wake = { now: () => {} };
  const stop = () => {
    stopping = true;
    wake.now();
    if (child?.pid !== undefined) void stopProcess(child.pid);
  };
  process.on("SIGTERM", stop).on("SIGINT", stop);
  process.on("SIGHUP", () => {
    replacing = true;
    if (child?.pid !== undefined) void stopProcess(child.pid);
  });
  for (let backoffMs = 0; !stopping; ) {
    rmSync(join(state, "ready"), { force: true });
    const started = performance.now();
    child = spawn(command[0]!, command.slice(1), {
      stdio: ["inherit", "inherit", "inherit", fd],
      // pool threads wait for reads that need one to be answered: have some to spare. Freed buffers of a fill go back to the system
      env: {
        UV_THREADPOOL_SIZE: "16",
        MALLOC_MMAP_THRESHOLD_: "262144",
        ...process.env,
        HEADSTART_FUSE_FD: String(FUSE_FD),
        HEADSTART_STATE: state,
      },
    });
    if (child.pid !== undefined) writeFileSync(join(state, "server.pid"), `${child.pid} ${startTime(child.pid)}\n`);
    const how = await ended(child);
    child = null;
    if (stopping) break;
    if (replacing || performance.now() - started > HEALTHY_MS) backoffMs = 0;
    log("the server ended", { ...how, restartInMs: backoffMs });
    if (backoffMs > 0) await Promise.race([sleep(backoffMs), new Promise<void>((done) => (wake.now = done))]);
    backoffMs = replacing ? 0 : Math.min(BACKOFF_MS_MAX, Math.max(100, backoffMs * 2));
    replacing = false;
  }
  for (const name of ["supervisor.pid", "server.pid", "ready"]) rmSync(join(state, name), { force: true });
  log("stopped");
}

/**
 * A killed server whose own thread waits for a read of our mount (its mount(2), say) stays a zombie that cannot be reaped, until somebody answers that read: its
 * successor. So the end of its main thread is its end.
 */
function ended(child: ChildProcess): Promise<Record<string, unknown>> {
  return new Promise((resolve) => {
    const done = (how: Record<string, unknown>) => {
      clearInterval(timer);
      resolve(how);
    };
    const timer = setInterval(() => {
      if (child.pid !== undefined && !isAlive(child.pid)) done({ unreaped: child.pid });
    }, ZOMBIE_POLL_MS);
    child.once("error", (error) => done({ error: error.message }));
    child.once("exit", (code, signal) => done({ code, signal }));
  });
}

/** SIGTERM, then SIGKILL. Resolves when the process is gone. */
async function stopProcess(pid: number): Promise<void> {
  const deadline = performance.now() + STOP_MS;
  if (isAlive(pid)) process.kill(pid, "SIGTERM");
  while (isAlive(pid)) {
    if (performance.now() > deadline) process.kill(pid, "SIGKILL");
    await sleep(10);
  }
}

/** False for zombies too: their descriptors are closed. */
function isAlive(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) [ZX]/s.test(readFileSync(`/proc/${pid}/stat`, "latin1"));
  } catch {
    return false;
  }
}

/** Field 22 of /proc/PID/stat: tells a process from a later one of the same number. */
function startTime(pid: number): string {
  const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? "";
}

/** The pid in a file, if that very process still lives. */
function readPid(path: string): number | null {
  try {
    const [pid, started] = readFileSync(path, "latin1").trim().split(" ");
    return startTime(Number(pid)) === started ? Number(pid) : null;
  } catch {
    return null;
  }
}

async function teardown(state: string, force: boolean): Promise<void> {
  for (const name of ["supervisor.pid", "server.pid"]) {
    const pid = readPid(join(state, name));
    if (pid !== null) await stopProcess(pid);
  }
  const left = await unmountTree(state, { force });
  if (left.length > 0) throw new HeadstartError("HS_MOUNT", { what: `still mounted: ${left.join(", ")}` });
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { state: { type: "string" }, teardown: { type: "boolean" }, force: { type: "boolean" } },
});
try {
  if (!values.state) throw new HeadstartError("HS_USAGE", { what: "--state DIR is needed" });
  if (values.teardown) await teardown(resolve(values.state), values.force ?? false);
  else if (positionals.length > 0) await run(resolve(values.state), positionals);
  else throw new HeadstartError("HS_USAGE", { what: "no server command" });
  process.exit(0);
} catch (error) {
  log("failed", { error: String(error) });
  process.exit(1);
}
