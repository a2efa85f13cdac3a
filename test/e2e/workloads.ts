/** The real images of the end-to-end tests, built once and cached, and what makes them ready. */

import { createCipheriv } from "node:crypto";
import { MiB } from "../../src/base/limits.ts";
import { cachedDirectory } from "../../src/sandbox/cache.ts";
import { writeDebianImage } from "../../src/sandbox/debian-image.ts";
import { prints, redisAnswers, type Workload } from "../../src/sandbox/ready.ts";
import type { TarEntry } from "../../src/sandbox/tar-writer.ts";
import { freePort } from "../tools/free-port.ts";

const PROGRAM = `
import json, http.server, sqlite3, sys
db = sqlite3.connect(":memory:")
print("python", sys.version.split()[0], "ready", db.execute("select 6*7").fetchone()[0], flush=True)
`;

/** Files that no start touches: models, fixtures, the other languages' catalogues. Random, so that it stays this large in the registry. */
function untouched(path: string, size: number): TarEntry {
  const data = createCipheriv("aes-128-ctr", Buffer.alloc(16), Buffer.alloc(16)).update(Buffer.alloc(size));
  return { path, data };
}

/** python3 that imports a part of its library and prints, and an application with much data. Returns the layout, which has it as "python". */
export function pythonImage(): Promise<string> {
  return cachedDirectory(`e2e/python-1-${process.arch}`, async (layout) => {
    const application = [{ path: "app/main.py", data: PROGRAM }, untouched("app/data.bin", 64 * MiB)];
    const command = ["/usr/bin/python3", "/app/main.py"];
    await writeDebianImage(layout, { name: "python", layers: ["python"], application, command });
  });
}

export function pythonWorkload(image: string): Workload {
  return { name: "python", image, ready: prints(/^python 3\S* ready 42$/m) };
}

/** redis; it shares its lowest layer with the python image. */
export function redisImage(): Promise<string> {
  return cachedDirectory(`e2e/redis-2-${process.arch}`, (layout) => {
    const application = [{ path: "data/" }, untouched("data/other.bin", 40 * MiB)];
    return writeDebianImage(layout, { name: "redis", layers: ["redis"], application });
  });
}

export async function redisWorkload(image: string): Promise<Workload> {
  const port = await freePort();
  const settings = ["--port", String(port), "--bind", "127.0.0.1", "--save", "", "--dir", "/data"];
  return { name: "redis", image, command: ["/usr/bin/redis-server", ...settings], ready: redisAnswers(port) };
}
