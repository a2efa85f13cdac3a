/** Where this headstart lies: a checkout (sources in src/), or an installed package (one bundle a program in dist/). Both have bin/headstart, which decides by the same rule. */

import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { HeadstartError } from "./errors.ts";

function find(from: string): string {
  for (let directory = from; ; directory = dirname(directory)) {
    if (existsSync(join(directory, "bin/headstart"))) return directory;
    if (directory === dirname(directory))
      throw new HeadstartError("HS_INTERNAL", { what: `no bin/headstart above ${from}` });
  }
}

/** The folder of bin/headstart. */
export const PROJECT = find(import.meta.dirname);

export const IS_CHECKOUT = existsSync(join(PROJECT, "src/cli/main.ts"));

/** A program of ours: `source` below src/ in a checkout, `bundled` below dist/ when installed. */
export function programPath(source: string, bundled: string): string {
  return IS_CHECKOUT ? join(PROJECT, "src", source) : join(PROJECT, "dist", bundled);
}
