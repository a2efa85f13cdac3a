/**
 * A private headstart daemon, started as a user starts it (`headstart daemon`), with root, state and socket in a folder of ours. It is ended with its
 * server processes and mounts; they are found by that folder. `await using` it.
 */

import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { join } from "node:path";
import { stringify } from "smol-toml";
import { systemClock } from "../base/clock.ts";
import { describeError, HeadstartError } from "../base/errors.ts";
import { PROJECT } from "../base/project.ts";
import { Child } from "./process.ts";
import { commandLine, killAndWait, unmountAll } from "./sweep.ts";

const COMMAND = join(PROJECT, "bin/headstart");
const READY_MS = 30_000;
const POLL_MS = 25;

export interface DaemonSettings {
  /** Everything of the daemon lies below: short, since socket paths end at 107 bytes. */
  readonly directory: string;
  readonly containerd: { readonly address: string; readonly root: string };
  readonly hostsDir: string;
  readonly policy: "bound" | "referrers";
  /** Further tables of its configuration file, e.g. `{ mount: { backing: "loop" } }`. */
  readonly config?: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
  readonly env?: Readonly<Record<string, string>>;
  /** What is run instead of this checkout's `headstart`, e.g. that of a bundle. */
  readonly command?: string;
}

export function daemonPlaces(directory: string) {
  return {
    config: join(directory, "config.toml"),
    root: join(directory, "root"),
    state: join(directory, "state"),
    socket: join(directory, "state", "headstart.sock"),
    status: join(directory, "state", "status.sock"),
    log: join(directory, "headstart.log"),
  };
}

export class HeadstartDaemon implements AsyncDisposable {
  readonly settings: DaemonSettings;
  readonly places: ReturnType<typeof daemonPlaces>;
  #child: Child;

  /** Throws HS_CHILD_FAILED with the end of its log. */
  static async start(settings: DaemonSettings): Promise<HeadstartDaemon> {
    const places = daemonPlaces(settings.directory);
    mkdirSync(places.state, { recursive: true });
    writeFileSync(places.config, daemonConfig(settings));
    const daemon = new HeadstartDaemon(settings, await launch(settings));
    try {
      await daemon.#ready();
      return daemon;
    } catch (error) {
      await daemon.stop();
      throw error;
    }
  }

  private constructor(settings: DaemonSettings, child: Child) {
    this.settings = settings;
    this.places = daemonPlaces(settings.directory);
    this.#child = child;
  }

  get tail(): string {
    return this.#child.tail;
  }

  /** Of the process that was started: the supervisor. */
  get pid(): number {
    return this.#child.pid;
  }

  /** Of the server that the supervisor runs now. */
  get serverPid(): number {
    return Number.parseInt(readFileSync(join(this.places.state, "server.pid"), "utf8"), 10);
  }

  /** The pids of all its processes. */
  processes(): number[] {
    const { directory } = this.settings;
    return readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
      .filter((pid) => pid !== process.pid && commandLine(pid).some((word) => word.includes(`${directory}/`)));
  }

  async #ready(): Promise<void> {
    const deadline = systemClock.monotonic() + READY_MS;
    for (let cause: unknown; ; await systemClock.sleep(POLL_MS)) {
      if (!this.#child.running) throw this.#child.failure("ended before it was ready");
      if (systemClock.monotonic() > deadline) throw this.#child.failure(`not ready: ${describeError(cause)}`);
      try {
        await this.status("/v1/config");
        return;
      } catch (error) {
        cause = error;
      }
    }
  }

  /** GET of the status API: "/v1/layers" and the like, as JSON; "/metrics" as text. */
  async status(path: string): Promise<unknown> {
    const text = await get(this.places.status, path);
    return path.startsWith("/v1/") ? JSON.parse(text) : text;
  }

  /** The sum of a metric over its labels, 0 when it is not there. */
  async metric(name: string): Promise<number> {
    const text = (await this.status("/metrics")) as string;
    let sum = 0;
    for (const match of text.matchAll(/^(\w+)(?:\{[^}]*\})? (\S+)$/gm)) if (match[1] === name) sum += Number(match[2]);
    return sum;
  }

  /** Stops (or kills) the daemon and starts it again over the same folders. */
  async restart(signal: "SIGTERM" | "SIGKILL" = "SIGTERM"): Promise<void> {
    this.#child.kill(signal);
    await this.#child.end;
    await killAndWait(this.processes());
    this.#child = await launch(this.settings);
    await this.#ready();
  }

  /** Ends the daemon and unmounts what it left mounted, as an uninstall would. Containers must be gone before. */
  async stop(): Promise<void> {
    await this.#child.stop();
    await killAndWait(this.processes());
    unmountAll(this.settings.directory);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

function launch(settings: DaemonSettings): Promise<Child> {
  const { config, log } = daemonPlaces(settings.directory);
  const options = settings.env === undefined ? {} : { env: settings.env };
  return Child.start(settings.command ?? COMMAND, ["daemon", "--config", config], { ...options, logFile: log });
}

function daemonConfig(settings: DaemonSettings): string {
  const { root, state, socket } = daemonPlaces(settings.directory);
  const { registry, ...tables } = settings.config ?? {};
  return stringify({
    root,
    state,
    address: socket,
    log_level: "debug",
    containerd: settings.containerd,
    trust: { policy: settings.policy },
    registry: { hosts_dir: settings.hostsDir, ...registry },
    ...tables,
  });
}

function get(socketPath: string, path: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const outgoing = request({ socketPath, path, timeout: 10_000 }, (answer) => {
      let text = "";
      answer.setEncoding("utf8");
      answer.on("data", (chunk: string) => {
        text += chunk;
      });
      answer.on("error", reject);
      answer.on("end", () => {
        if (answer.statusCode === 200) resolve(text);
        else reject(new HeadstartError("HS_CHILD_FAILED", { what: `status ${path}: ${answer.statusCode} ${text}` }));
      });
    });
    outgoing.on("timeout", () => outgoing.destroy(new Error(`status ${path}: no answer`)));
    outgoing.on("error", reject);
    outgoing.end();
  });
}
