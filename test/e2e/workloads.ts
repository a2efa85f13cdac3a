/** The real images of the end-to-end tests, built once and cached, and what makes them ready. */

import type { AddressInfo } from "node:net";
import { createServer } from "node:net";
import { writeDebianImage } from "../../src/sandbox/debian-image.ts";
import { prints, redisAnswers, type Workload } from "../../src/sandbox/ready.ts";

const PROGRAM = `
import json, http.server, sqlite3, sys
db = sqlite3.connect(":memory:")
print("python", sys.version.split()[0], "ready", db.execute("select 6*7").fetchone()[0], flush=True)
`;

/** python3 that imports a part of its library and prints. */
export async function pythonImage(layout: string): Promise<void> {
  const application = [{ path: "app/" }, { path: "app/main.py", data: PROGRAM }];
  const command = ["/usr/bin/python3", "/app/main.py"];
  await writeDebianImage(layout, { name: "python", layers: ["python"], application, command });
}

export function pythonWorkload(image: string): Workload {
  return { name: "python", image, ready: prints(/^python 3\S* ready 42$/m) };
}

/** redis; it shares its lowest layer with the python image. */
export async function redisImage(layout: string): Promise<void> {
  await writeDebianImage(layout, { name: "redis", layers: ["redis"], application: [{ path: "data/" }] });
}

export async function redisWorkload(image: string): Promise<Workload> {
  const port = await freePort();
  const settings = ["--port", String(port), "--bind", "127.0.0.1", "--save", "", "--dir", "/data"];
  return { name: "redis", image, command: ["/usr/bin/redis-server", ...settings], ready: redisAnswers(port) };
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address() as AddressInfo;
      server.close(() => resolve(port));
    });
  });
}
