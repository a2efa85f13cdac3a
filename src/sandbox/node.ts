/**
 * A node in a folder: a private containerd, and a headstart daemon beside it that serves as its snapshotter. `run`, `check`, `npm start` and the tests
 * start one, use it over CRI as kubelet does, and end it with everything in it.
 */

import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { systemClock } from "../base/clock.ts";
import { Containerd } from "./containerd.ts";
import { containerdPlaces } from "./containerd-config.ts";
import type { CriClient } from "./cri-client.ts";
import type { Ctr } from "./ctr.ts";
import { type DaemonSettings, daemonPlaces, HeadstartDaemon } from "./daemon.ts";
import type { Say } from "./packages.ts";
import type { ContainerdVersion } from "./tools.ts";

export const HEADSTART = "headstart";

export interface NodeOptions {
  /** Of the node alone, and short. */
  readonly directory: string;
  readonly version: ContainerdVersion;
  /** Registries of plain HTTP, "HOST:PORT". */
  readonly registries: readonly string[];
  /** Registries that are asked through another place: "docker.io" -> "http://127.0.0.1:4000". */
  readonly mirrors?: Readonly<Record<string, string>>;
  readonly sandboxImage: string;
  /** Without it the node has overlayfs alone. */
  readonly headstart?: Pick<DaemonSettings, "policy" | "config" | "env" | "command">;
  readonly logLevel?: "debug" | "info" | "warn";
  readonly say?: Say;
}

export class SandboxNode implements AsyncDisposable {
  readonly containerd: Containerd;
  /** Before anything was pulled here, in milliseconds since 1970. */
  readonly startedMs = systemClock.now();
  readonly #headstart: HeadstartDaemon | undefined;

  static async start(options: NodeOptions): Promise<SandboxNode> {
    const { directory, headstart, ...rest } = options;
    const place = join(directory, "c");
    const places = containerdPlaces(place);
    await mkdir(place, { recursive: true });
    await using stack = new AsyncDisposableStack();
    const daemon = join(directory, "h");
    const { socket: address, root } = daemonPlaces(daemon);
    const proxy = headstart === undefined ? {} : { proxy: { name: HEADSTART, address, root } };
    const running =
      headstart === undefined
        ? undefined
        : stack.use(
            await HeadstartDaemon.start({
              ...headstart,
              directory: daemon,
              containerd: { address: places.socket, root: places.root },
              hostsDir: places.hosts,
            }),
          );
    const snapshotter = headstart === undefined ? "overlayfs" : HEADSTART;
    const containerd = await Containerd.start({ ...rest, ...proxy, directory: place, snapshotter });
    stack.move(); // from here on the node owns them
    return new SandboxNode(containerd, running);
  }

  private constructor(containerd: Containerd, headstart: HeadstartDaemon | undefined) {
    this.containerd = containerd;
    this.#headstart = headstart;
  }

  get cri(): CriClient {
    return this.containerd.cri;
  }

  get ctr(): Ctr {
    return this.containerd.ctr;
  }

  /** What CRI pulls with. */
  get snapshotter(): string {
    return this.containerd.options.snapshotter;
  }

  get headstart(): HeadstartDaemon {
    if (this.#headstart === undefined) throw new Error("this node has no headstart daemon");
    return this.#headstart;
  }

  /** Containers first, then the daemon that their files come from. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.containerd[Symbol.asyncDispose]();
    await this.#headstart?.[Symbol.asyncDispose]();
  }
}
