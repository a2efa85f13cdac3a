/** containerd's own client, for what CRI cannot: pulls through the transfer service, snapshots, image mounts, removal with garbage collection. */

import { mkdir } from "node:fs/promises";
import { type Executed, type ExecuteOptions, execute } from "./process.ts";
import type { ContainerdVersion } from "./tools.ts";

export interface CtrSettings {
  readonly version: ContainerdVersion;
  readonly socket: string;
  readonly hosts: string;
  readonly runc: string;
  readonly runcRoot: string;
  readonly fifos: string;
  readonly cgroup: string;
}

export interface CtrPull {
  readonly snapshotter?: string;
  readonly signal?: AbortSignal;
}

export interface CtrRun {
  readonly id: string;
  readonly image: string;
  readonly command: readonly string[];
  readonly snapshotter?: string;
  readonly detach?: boolean;
}

export class Ctr {
  readonly #program: string;
  readonly #settings: CtrSettings;
  readonly #namespace: string;

  constructor(program: string, settings: CtrSettings, namespace = "default") {
    this.#program = program;
    this.#settings = settings;
    this.#namespace = namespace;
  }

  /** The same for another namespace: CRI's is "k8s.io". */
  in(namespace: string): Ctr {
    return new Ctr(this.#program, this.#settings, namespace);
  }

  /** Throws HS_CHILD_FAILED with what ctr said. */
  call(args: readonly string[], options: ExecuteOptions = {}): Promise<Executed> {
    return execute(
      this.#program,
      ["--address", this.#settings.socket, "--namespace", this.#namespace, ...args],
      options,
    );
  }

  /** Of plain HTTP: the registry's hosts.toml says so. */
  async pull(image: string, options: CtrPull = {}): Promise<void> {
    await this.call(["images", "pull", "--hosts-dir", this.#settings.hosts, ...snapshotter(options), image], {
      timeoutMs: 900_000,
      signal: options.signal,
    });
  }

  /** Runs to its end unless `detach`; what it printed. */
  async run(options: CtrRun): Promise<string> {
    const { id, image, command, detach } = options;
    const { runc, runcRoot, fifos, cgroup } = this.#settings;
    const place = ["--runc-binary", runc, "--runc-root", runcRoot, "--fifo-dir", fifos, "--cgroup", `/${cgroup}/${id}`];
    const flags = [...place, "--net-host", detach ? "--detach" : "--rm", ...snapshotter(options)];
    return (await this.call(["run", ...flags, image, id, ...command])).stdout;
  }

  /** Kills and removes a detached container. */
  async removeContainer(id: string): Promise<void> {
    await this.call(["tasks", "delete", "--force", id], { accept: [1] });
    await this.call(["containers", "delete", id]);
  }

  /** Waits until containerd's garbage collection has run. */
  async removeImage(image: string): Promise<void> {
    await this.call(["images", "remove", "--sync", image]);
  }

  async images(): Promise<string[]> {
    return lines((await this.call(["images", "list", "--quiet"])).stdout);
  }

  /** Names (chainIDs for committed ones) with parent and kind. */
  async snapshots(name: string): Promise<{ key: string; parent: string; kind: string }[]> {
    const { stdout } = await this.call(["snapshots", "--snapshotter", name, "list"]);
    return lines(stdout)
      .slice(1)
      .map((line) => {
        const fields = line.trim().split(/\s+/);
        const kind = fields.at(-1) ?? "";
        return { key: fields[0] ?? "", parent: fields.length > 2 ? fields[1]! : "", kind };
      });
  }

  /** Mounts the image read-only at `target`, which is made, until the result is disposed of. It must have been pulled in this namespace. */
  async mountImage(image: string, target: string, options: CtrPull = {}): Promise<AsyncDisposable> {
    await mkdir(target, { recursive: true });
    await this.call(["images", "mount", ...snapshotter(options), image, target]);
    return { [Symbol.asyncDispose]: () => this.unmountImage(target, options) };
  }

  async unmountImage(target: string, options: CtrPull = {}): Promise<void> {
    await this.call(["images", "unmount", "--rm", ...snapshotter(options), target]);
  }

  /** Digests of the blobs in containerd's content store. */
  async content(): Promise<string[]> {
    return lines((await this.call(["content", "list", "--quiet"])).stdout);
  }
}

function snapshotter(options: { readonly snapshotter?: string }): string[] {
  return options.snapshotter === undefined ? [] : ["--snapshotter", options.snapshotter];
}

function lines(text: string): string[] {
  return text.split("\n").filter((line) => line.trim() !== "");
}
