/**
 * A private registry: Debian's docker-registry on a loopback port with a folder of its own. It has no referrers API (it serves the fallback tag)
 * and speaks plain HTTP without credentials.
 */

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { stringify } from "yaml";
import type { Say } from "./packages.ts";
import { Child } from "./process.ts";
import { registryProgram } from "./tools.ts";

export class Registry implements AsyncDisposable {
  /** "127.0.0.1:PORT". */
  readonly host: string;
  readonly #child: Child;

  /** Throws HS_TOOL_MISSING, HS_CHILD_FAILED. */
  static async start(directory: string, say?: Say): Promise<Registry> {
    const program = await registryProgram(say);
    mkdirSync(directory, { recursive: true });
    const config = join(directory, "config.yml");
    writeFileSync(
      config,
      stringify({
        version: "0.1",
        log: { level: "info", accesslog: { disabled: true } },
        storage: { filesystem: { rootdirectory: join(directory, "data") }, delete: { enabled: true } },
        http: { addr: "127.0.0.1:0" },
      }),
    );
    const child = await Child.start(program, ["serve", config], {
      logFile: join(directory, "registry.log"),
      env: { OTEL_TRACES_EXPORTER: "none" },
    });
    try {
      const [, port] = await child.waitForLine(/listening on 127\.0\.0\.1:(\d+)/);
      return new Registry(`127.0.0.1:${port}`, child);
    } catch (error) {
      await child.stop();
      throw error;
    }
  }

  private constructor(host: string, child: Child) {
    this.host = host;
    this.#child = child;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#child.stop();
  }
}
