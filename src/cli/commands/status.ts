/** `headstart status`: what is lazy, how far it is filled, and why something is not. */

import { request } from "node:http";
import { join } from "node:path";
import type { Command } from "commander";
import { HeadstartError } from "../../base/errors.ts";
import { formatBytes, formatPercent, formatTable } from "../table.ts";

export const DEFAULT_STATE = "/run/headstart";

/** GET from the daemon's status socket. Throws HS_NOT_FOUND when no daemon listens. */
export function readStatus<T>(state: string, path: string): Promise<T> {
  const socketPath = join(state, "status.sock");
  return new Promise((resolve, reject) => {
    const call = request({ socketPath, path, timeout: 10_000 }, (response) => {
      const parts: Buffer[] = [];
      response.on("data", (part: Buffer) => parts.push(part));
      response.on("error", reject);
      response.on("end", () => {
        const text = Buffer.concat(parts).toString();
        if (response.statusCode !== 200)
          return reject(new HeadstartError("HS_NOT_FOUND", { what: `${socketPath}${path}: ${text.trim()}` }));
        resolve(JSON.parse(text) as T);
      });
    });
    call.on("timeout", () => call.destroy(new Error("no answer within 10 s")));
    call.on("error", (cause) => {
      const away =
        (cause as NodeJS.ErrnoException).code === "ENOENT" || (cause as NodeJS.ErrnoException).code === "ECONNREFUSED";
      const what = away
        ? `no daemon listens on ${socketPath}: start it with \`headstart daemon\`, or name its --state`
        : `${socketPath} does not answer`;
      reject(new HeadstartError("HS_NOT_FOUND", { what, cause: away ? undefined : cause }));
    });
    call.end();
  });
}

export interface ImageStatus {
  readonly reference: string;
  readonly manifest: string;
  readonly mode: string;
  readonly reason: string | null;
  readonly layers: readonly {
    readonly digest: string;
    readonly layer: number | null;
    readonly mode: string;
    readonly reason: string | null;
  }[];
}

export interface LayerStatus {
  readonly id: number;
  readonly digest: string;
  readonly format: string;
  readonly state: string;
  readonly reason: string | null;
  readonly size: number;
  readonly filledBytes: number;
  readonly dataBytes: number;
}

export function registerStatus(program: Command): void {
  program
    .command("status")
    .summary("what is lazy, how far it is filled, and why not")
    .description("What is lazy, how far it is filled, and why something is not.")
    .option("--state <DIR>", "the daemon's state directory", DEFAULT_STATE)
    .option("--json", "one object {images, layers, mounts} (docs/operations.md)")
    .addHelpText(
      "after",
      "\nExamples:\n  headstart status\n  headstart status --json | jq '.layers[] | select(.state != \"sealed\")'\n",
    )
    .action(async (options: { state: string; json?: boolean }) => {
      const [images, layers, mounts] = await Promise.all([
        readStatus<ImageStatus[]>(options.state, "/v1/images"),
        readStatus<LayerStatus[]>(options.state, "/v1/layers"),
        readStatus<unknown>(options.state, "/v1/mounts"),
      ]);
      if (options.json) {
        process.stdout.write(`${JSON.stringify({ images, layers, mounts })}\n`);
        return;
      }
      if (images.length === 0 && layers.length === 0) process.stdout.write("No images yet.\n");
      for (const image of images) {
        process.stdout.write(`${image.reference}  ${image.mode}${image.reason ? `  (${image.reason})` : ""}\n`);
        for (const layer of image.layers) {
          if (layer.reason) process.stdout.write(`  ${layer.digest.slice(7, 19)}: ${layer.reason}\n`);
        }
      }
      if (layers.length > 0) {
        const rows = layers.map((layer) => [
          String(layer.id),
          layer.digest.slice(7, 19),
          layer.format,
          layer.state,
          formatPercent(layer.filledBytes, layer.dataBytes),
          formatBytes(layer.size),
          layer.reason ?? "",
        ]);
        process.stdout.write(
          `\n${formatTable([["layer", "digest", "format", "state", "filled", "size", "reason"], ...rows])}\n`,
        );
      }
    });
}
