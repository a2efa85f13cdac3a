/** For tests of this folder: a repository of a fake registry, with waits that are short. */

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Digest } from "../../base/digest.ts";
import type { Descriptor } from "../descriptor.ts";
import { parseReference } from "../reference.ts";
import type { Repository } from "./client.ts";
import { Registry, type RegistryOptions } from "./registry.ts";

/** Back-offs of milliseconds, stalls of half a second. */
export const FAST: RegistryOptions = {
  retry: { baseMs: 2, maxMs: 20 },
  timeouts: { connectMs: 2000, headersMs: 1000, stallMs: 400 },
  hostsDirs: [],
  env: {},
};

export function openFake(
  host: string,
  repository: string,
  options: RegistryOptions = {},
): Promise<{ registry: Registry; repo: Repository } & AsyncDisposable> {
  return openReference(`${host}/${repository}`, options);
}

export async function openReference(text: string, options: RegistryOptions = {}) {
  const registry = new Registry({ ...FAST, ...options });
  const repo = await registry.repository(parseReference(text));
  return { registry, repo, [Symbol.asyncDispose]: () => registry[Symbol.asyncDispose]() };
}

/** Bytes that are all different enough to show a shift by any amount. */
export function patterned(size: number): Uint8Array {
  const bytes = new Uint8Array(size);
  for (let index = 0; index < size; index++)
    bytes[index] = (index * 31 + (index >>> 8) * 7 + (index >>> 16) * 13) & 0xff;
  return bytes;
}

export function descriptorOf(stored: { mediaType: string; digest: string; size: number }): Descriptor {
  return { ...stored, digest: stored.digest as Digest };
}

export async function collect(chunks: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const all: Uint8Array[] = [];
  for await (const chunk of chunks) all.push(chunk);
  return Buffer.concat(all);
}

/** A folder with files in it, gone when disposed. */
export async function scratch(files: Readonly<Record<string, string>> = {}): Promise<{ path: string } & Disposable> {
  const path = mkdtempSync(join(tmpdir(), "headstart-oci-"));
  for (const [name, text] of Object.entries(files)) {
    await mkdir(join(path, name, ".."), { recursive: true });
    writeFileSync(join(path, name), text, { mode: 0o755 });
  }
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}
