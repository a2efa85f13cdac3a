/**
 * A private containerd: own root, state, socket, runc root, cgroup. It is started, waited for, and ended with everything that it started: shims,
 * containers, cgroups, mounts. A containerd of the system is never touched. `await using` it.
 */

import { mkdirSync, writeFileSync } from "node:fs";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { systemClock } from "../base/clock.ts";
import { describeError, HeadstartError } from "../base/errors.ts";
import { type ContainerdSettings, containerdConfig, containerdPlaces, hostsToml } from "./containerd-config.ts";
import { CriClient, isUnimplemented } from "./cri-client.ts";
import { Ctr } from "./ctr.ts";
import { cgroupNameOf } from "./inventory.ts";
import type { Say } from "./packages.ts";
import { Child } from "./process.ts";
import { killAndWait, removeCgroup, removeShimSockets, shimsOf, unmountAll } from "./sweep.ts";
import { containerdPrograms, runcProgram } from "./tools.ts";

export interface ContainerdOptions extends Omit<ContainerdSettings, "runc"> {
  readonly runc?: string;
  /** Registries of plain HTTP, e.g. 127.0.0.1:5000. */
  readonly registries: readonly string[];
  /** Registries that are asked through another place: "docker.io" -> "http://127.0.0.1:4000". */
  readonly mirrors?: Readonly<Record<string, string>>;
  readonly say?: Say;
}

const READY_MS = 30_000;
const POLL_MS = 25;
/** sun_path holds 108 bytes with its end; containerd appends ".ttrpc". */
const SOCKET_BYTES_MAX = 107 - ".ttrpc".length;

export class Containerd implements AsyncDisposable {
  readonly options: ContainerdOptions;
  readonly places: ReturnType<typeof containerdPlaces>;
  /** The parent cgroup of everything that is started here. */
  readonly cgroup: string;
  readonly cri: CriClient;
  readonly ctr: Ctr;
  readonly #programs: string;
  #child: Child;

  /** Throws HS_TOOL_MISSING, HS_CHILD_FAILED (with the end of its log). */
  static async start(options: ContainerdOptions): Promise<Containerd> {
    const programs = await containerdPrograms(options.version, options.say);
    const runc = options.runc ?? (await runcProgram(options.say));
    const places = containerdPlaces(options.directory);
    if (Buffer.byteLength(places.socket) > SOCKET_BYTES_MAX) {
      throw new HeadstartError("HS_USAGE", { what: `${places.socket} is too long for a socket` });
    }
    await mkdir(join(options.directory, "cni"), { recursive: true });
    writeHosts(places.hosts, options);
    writeFileSync(places.config, containerdConfig({ ...options, runc }));
    const containerd = new Containerd(options, programs, runc, await launch(programs, places));
    try {
      await containerd.#ready();
      return containerd;
    } catch (error) {
      await containerd[Symbol.asyncDispose]();
      throw error;
    }
  }

  private constructor(options: ContainerdOptions, programs: string, runc: string, child: Child) {
    this.options = options;
    this.places = containerdPlaces(options.directory);
    this.cgroup = cgroupNameOf(options.directory);
    this.cri = new CriClient(this.places.socket, { cgroup: this.cgroup, logs: join(options.directory, "pods") });
    this.ctr = new Ctr(join(programs, "ctr"), {
      version: options.version,
      socket: this.places.socket,
      hosts: this.places.hosts,
      runc,
      runcRoot: this.places.runcRoot,
      fifos: this.places.fifos,
      cgroup: this.cgroup,
    });
    this.#programs = programs;
    this.#child = child;
  }

  /** The last lines of its log. */
  get tail(): string {
    return this.#child.tail;
  }

  get pid(): number {
    return this.#child.pid;
  }

  async #ready(): Promise<void> {
    const deadline = systemClock.monotonic() + READY_MS;
    for (let cause: unknown; ; await systemClock.sleep(POLL_MS)) {
      if (!this.#child.running) throw this.#child.failure("ended before it was ready");
      if (systemClock.monotonic() > deadline) {
        throw this.#child.failure(`not ready: ${describeError(cause)}`);
      }
      try {
        await this.cri.status();
        return;
      } catch (error) {
        if (isUnimplemented(error)) throw this.#child.failure("its CRI plugin did not load");
        cause = error;
      }
    }
  }

  /** Stops the daemon alone, by SIGTERM or SIGKILL, and starts it again: containers go on, as they do over an upgrade. */
  async restart(signal: "SIGTERM" | "SIGKILL" = "SIGTERM"): Promise<void> {
    this.#child.kill(signal);
    await this.#child.end;
    this.#child = await launch(this.#programs, this.places);
    await this.#ready();
  }

  /** Ends all containers, shims and the daemon, and unmounts what they mounted. The directory stays, with its log. */
  async stop(): Promise<void> {
    const { socket, state } = this.places;
    await this.cri.close();
    // containers first: their shims then end in order and unmount; whatever does not is swept
    await removeCgroup(this.cgroup);
    await this.#child.stop();
    await killAndWait(shimsOf(socket));
    await removeCgroup(this.cgroup);
    removeShimSockets(socket, state);
    unmountAll(this.options.directory);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  /** After `stop`: removes everything it stored. */
  async remove(): Promise<void> {
    await rm(this.options.directory, { recursive: true, force: true });
  }
}

/** A hosts.toml for each registry: containerd's `ctr` and CRI, and headstart, read them. */
export function writeHosts(directory: string, options: Pick<ContainerdOptions, "registries" | "mirrors">): void {
  const plain = options.registries.map((registry): [string, string] => [registry, `http://${registry}`]);
  for (const [registry, url] of [...plain, ...Object.entries(options.mirrors ?? {})]) {
    mkdirSync(join(directory, registry), { recursive: true });
    writeFileSync(join(directory, registry, "hosts.toml"), hostsToml(url));
  }
}

function launch(programs: string, places: ReturnType<typeof containerdPlaces>): Promise<Child> {
  return Child.start(join(programs, "containerd"), ["--config", places.config], {
    // shims are looked up in PATH, and inherit it
    env: { PATH: `${programs}:${process.env.PATH}`, NOTIFY_SOCKET: undefined, LISTEN_FDS: undefined },
    logFile: places.log,
  });
}
