/** A place for one end-to-end test: a short temporary root, a registry behind a meter, images pushed to it; and proof that nothing is left. */

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { leftSince, takeInventory } from "../../src/sandbox/inventory.ts";
import { Meter, type MeterOptions } from "../../src/sandbox/meter.ts";
import { type NodeOptions, SandboxNode } from "../../src/sandbox/node.ts";
import { PAUSE_NAME, writePauseImage } from "../../src/sandbox/pause.ts";
import { pushImage } from "../../src/sandbox/push.ts";
import { Registry } from "../../src/sandbox/registry.ts";

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
    assert.deepEqual(leftSince(this.#before, [this.root]), []);
    await rm(this.root, { recursive: true, force: true });
  }
}
