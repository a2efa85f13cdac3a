/** Layer stores of the tests of one file: closed, and their directories deleted, after each test. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach } from "node:test";
import { LayerStore, type LayerStoreOptions } from "../../src/layer/store.ts";

export const BOOT = "11111111-2222-3333-4444-555555555555";
export const OTHER_BOOT = "99999999-2222-3333-4444-555555555555";

export class LayerStores {
  readonly #roots: string[] = [];
  readonly #open: LayerStore[] = [];

  constructor() {
    afterEach(async () => {
      for (const store of this.#open.splice(0)) await store[Symbol.asyncDispose]();
      for (const root of this.#roots.splice(0)) rmSync(root, { recursive: true, force: true });
    });
  }

  newRoot(): string {
    const root = mkdtempSync(join(tmpdir(), "layers-test-"));
    this.#roots.push(root);
    return root;
  }

  async open(
    root: string,
    options: Omit<LayerStoreOptions, "bootId"> & Partial<LayerStoreOptions>,
  ): Promise<LayerStore> {
    const store = await LayerStore.open(root, { bootId: BOOT, ...options });
    this.#open.push(store);
    return store;
  }

  /** As at the end of a process, before the test ends. */
  async close(store: LayerStore): Promise<void> {
    this.#open.splice(this.#open.indexOf(store), 1);
    await store[Symbol.asyncDispose]();
  }
}
