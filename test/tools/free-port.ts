/** Ports for programs that want to be told theirs. */

import { randomInt } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:net";

/**
 * A free TCP port of 127.0.0.1. It is none of those that the kernel gives to whoever asks for any: of these, another test's server or connection could have it before
 * the program that it is meant for.
 */
export async function freePort(): Promise<number> {
  const [lowest = 32_768] = readFileSync("/proc/sys/net/ipv4/ip_local_port_range", "latin1")
    .trim()
    .split(/\s+/)
    .map(Number);
  for (;;) {
    const port = lowest > 20_000 ? randomInt(10_000, lowest) : 0;
    const server = createServer();
    const got = await new Promise<number | null>((resolve) => {
      server.once("error", () => resolve(null));
      server.listen(port, "127.0.0.1", () => resolve((server.address() as { port: number }).port));
    });
    if (got === null) continue;
    await new Promise((resolve) => server.close(resolve));
    return got;
  }
}
