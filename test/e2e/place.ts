/** A place for one end-to-end test: a short temporary root, a registry behind a meter, images pushed to it; and proof that nothing is left. */

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { loadImage } from "../../src/oci/manifest.ts";
import { openSource } from "../../src/oci/open.ts";
import { parseSource } from "../../src/oci/reference.ts";
import { leftBehind, takeInventory } from "../../src/sandbox/inventory.ts";
import { Meter, type MeterOptions } from "../../src/sandbox/meter.ts";
import { type NodeOptions, SandboxNode } from "../../src/sandbox/node.ts";
import { PAUSE_NAME, writePauseImage } from "../../src/sandbox/pause.ts";
import { type Executed, type ExecuteOptions, execute } from "../../src/sandbox/process.ts";
import { pushImage } from "../../src/sandbox/push.ts";
import { Registry } from "../../src/sandbox/registry.ts";

export const COMMAND = join(dirname(dirname(import.meta.dirname)), "bin/headstart");

/** Runs the command line as a user does. */
export function headstart(args: readonly string[], options: ExecuteOptions = {}): Promise<Executed> {
  return execute(COMMAND, args, options);
}

export class Place implements AsyncDisposable {
  readonly root: string;
  readonly registry: Registry;
  readonly meter: Meter;
  readonly #stack = new AsyncDisposableStack();
  readonly #before: ReadonlySet<string>;

  static async make(options: MeterOptions = {}): Promise<Place> {
    const root = await mkdtemp(join(tmpdir(), "headstart-e2e-"));
    const before = takeInventory([root]);
    const registry = await Registry.start(join(root, "registry"));
    const place = new Place(root, registry, await Meter.start(registry.host, options), before);
    await writePauseImage(place.layout);
    await place.push(place.layout, PAUSE_NAME);
    return place;
  }

  private constructor(root: string, registry: Registry, meter: Meter, before: ReadonlySet<string>) {
    this.root = root;
    this.registry = this.#stack.use(registry);
    this.meter = this.#stack.use(meter);
    this.#before = before;
  }

  /** A layout for images of this test. */
  get layout(): string {
    return join(this.root, "layout");
  }

  /** The image's reference at the meter. */
  reference(name: string): string {
    return `${this.meter.host}/e2e/${name}:1`;
  }

  /** Pushes past the meter; what is counted is what is pulled. */
  async push(layout: string, name: string): Promise<string> {
    await pushImage(layout, name, `${this.registry.host}/e2e/${name}:1`);
    return this.reference(name);
  }

  /** Converts the image at the registry to SOCI v2 (the index is bound by the manifest); the reference of the result at the meter. */
  async convertToSoci(name: string, options: readonly string[] = []): Promise<string> {
    const source = `docker://${this.registry.host}/e2e/${name}:1`;
    const target = `${this.registry.host}/e2e/${name}:soci`;
    await headstart(["convert", source, `docker://${target}`, "--to", "soci", ...options]);
    return `${this.meter.host}/e2e/${name}:soci`;
  }

  /** Compressed bytes of an image at the registry: its layers and configuration. */
  async imageBytes(name: string, tag = "1"): Promise<number> {
    await using reader = await openSource(parseSource(`docker://${this.registry.host}/e2e/${name}:${tag}`));
    const { layers, configDescriptor } = await loadImage(reader);
    return layers.reduce((sum, layer) => sum + layer.size, configDescriptor.size);
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

  /** A node of its own folder, ended with the place unless before. */
  async node(options: Pick<NodeOptions, "version" | "headstart"> & { readonly name?: string }): Promise<SandboxNode> {
    const { name = "n", ...rest } = options;
    const settings = {
      ...rest,
      directory: join(this.root, name),
      sandboxImage: this.reference(PAUSE_NAME),
      registries: [this.meter.host],
      logLevel: "debug",
    } as const;
    return this.#stack.use(await SandboxNode.start(settings));
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
