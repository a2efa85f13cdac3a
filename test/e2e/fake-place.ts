/** As place.ts, with a registry in memory that does wrong on demand in place of a real one: what a node does with bad indexes and bad registries. */

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type CriPod, readCriLog } from "../../src/sandbox/cri-client.ts";
import { layerOf } from "../../src/sandbox/image-builder.ts";
import { leftBehind, takeInventory } from "../../src/sandbox/inventory.ts";
import { type NodeOptions, SandboxNode } from "../../src/sandbox/node.ts";
import { busyboxEntries, PAUSE_NAME } from "../../src/sandbox/pause.ts";
import { shellLayer } from "../build-image.ts";
import { FakeRegistry, type FakeRegistryOptions } from "../fakes/registry.ts";
import { type IndexedBlob, type SociImageOptions, type StoredSociImage, storeSociImage } from "../suites/soci-image.ts";
import type { ImageLine, LayerLine } from "./daemon-status.ts";
import { headstart } from "./place.ts";

export class FakePlace implements AsyncDisposable {
  readonly root: string;
  readonly registry: FakeRegistry;
  /** The lowest layer of test images: a shell. */
  readonly shell: IndexedBlob;
  readonly #stack = new AsyncDisposableStack();
  readonly #before: ReadonlySet<string>;
  readonly #pause: string;
  readonly #others: string[] = [];
  readonly #parts = new Map<string, readonly IndexedBlob[]>();

  static async make(options: FakeRegistryOptions = {}): Promise<FakePlace> {
    const root = await mkdtemp(join(tmpdir(), "headstart-fake-"));
    const before = takeInventory([root]);
    const registry = await FakeRegistry.start(options);
    const pause = { layer: layerOf(await busyboxEntries(["sleep"])), ztoc: null };
    const command = ["/bin/sleep", "2147483647"];
    const { reference } = storeSociImage(registry, [pause], { repository: PAUSE_NAME, command });
    return new FakePlace(root, registry, before, { pause: reference, shell: layerOf(await shellLayer(["dd", "wc"])) });
  }

  private constructor(
    root: string,
    registry: FakeRegistry,
    before: ReadonlySet<string>,
    made: { pause: string; shell: IndexedBlob["layer"] },
  ) {
    this.root = root;
    this.registry = this.#stack.use(registry);
    this.shell = { layer: made.shell, ztoc: null };
    this.#before = before;
    this.#pause = made.pause;
  }

  /** An image of a shell layer and these. */
  image(repository: string, layers: readonly IndexedBlob[], options: Partial<SociImageOptions> = {}): StoredSociImage {
    const stored = storeSociImage(this.registry, [this.shell, ...layers], { ...options, repository });
    this.#parts.set(stored.reference, layers);
    return stored;
  }

  /** What was given to `image`. */
  partsOf(reference: string): readonly IndexedBlob[] {
    return this.#parts.get(reference) ?? [];
  }

  /** A node of its own folder, ended with the place. Every layer with an index is lazy, however small. */
  async node(options: NodeOptions["headstart"] & { readonly name?: string }): Promise<SandboxNode> {
    const { name = "n", config, ...headstart } = options;
    return this.#stack.use(
      await SandboxNode.start({
        version: "1.6.20",
        directory: join(this.root, name),
        sandboxImage: this.#pause,
        registries: [this.registry.host, ...this.#others],
        headstart: { ...headstart, config: { ...config, lazy: { min_layer_size: 0, ...config?.lazy } } },
        logLevel: "debug",
      }),
    );
  }

  /** A second registry for nodes that are started later. */
  async addRegistry(options: FakeRegistryOptions): Promise<FakeRegistry> {
    const registry = this.#stack.use(await FakeRegistry.start(options));
    this.#others.push(registry.host);
    return registry;
  }

  /** Repeats `check` until it passes or a minute is over. */
  async eventually(check: () => Promise<void>): Promise<void> {
    const deadline = Date.now() + 60_000;
    for (;;) {
      try {
        return await check();
      } catch (error) {
        if (Date.now() > deadline) throw error;
        await sleep(100);
      }
    }
  }

  use<T extends AsyncDisposable | Disposable | null | undefined>(part: T): T {
    return this.#stack.use(part);
  }

  /** Ends everything, and fails if something is left of it. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
    assert.deepEqual(await leftBehind(this.#before, [this.root]), []);
    await rm(this.root, { recursive: true, force: true });
  }
}

let containers = 0;

/** Runs a shell command in a new container of the image (which is pulled first) to its end. */
export async function runShell(
  node: SandboxNode,
  pod: CriPod,
  image: string,
  script: string,
  options: { readonly timeoutMs?: number } = {},
): Promise<{ exitCode: number; output: string }> {
  await node.cri.pull(image);
  const container = await node.cri.createContainer(pod, {
    name: `c${++containers}`,
    image,
    command: ["/bin/sh", "-c", script],
  });
  await node.cri.startContainer(container);
  const exitCode = await node.cri.waitForExit(container, options.timeoutMs ?? 60_000);
  const output = readCriLog(container.logPath);
  await node.cri.removeContainer(container);
  return { exitCode, output };
}

/** What `headstart status --json` prints. */
export async function headstartStatus(node: SandboxNode) {
  const { stdout } = await headstart(["status", "--state", node.headstart.places.state, "--json"]);
  return JSON.parse(stdout) as { images: readonly ImageLine[]; layers: readonly LayerLine[] };
}
