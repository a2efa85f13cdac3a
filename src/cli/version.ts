import { readFileSync } from "node:fs";
import { join } from "node:path";

/** From package.json, which stands two folders above the sources and one above the bundle. */
export const VERSION: string = readVersion();

function readVersion(): string {
  for (const up of ["../../package.json", "../package.json"]) {
    try {
      const parsed = JSON.parse(readFileSync(join(import.meta.dirname, up), "utf8")) as {
        name?: string;
        version?: string;
      };
      if (parsed.name === "headstart") return parsed.version ?? "0";
    } catch {
      // the other place
    }
  }
  return "0";
}
