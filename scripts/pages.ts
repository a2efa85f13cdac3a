/** `npm run pages`: writes what docs/ has from the sources: error codes, configuration, command line, log events. test/docs.test.ts and test/tidy.test.ts compare. */

import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { OBSERVED } from "../src/daemon/observe.ts";
import { cliPage } from "./cli-page.ts";
import { configurationPage } from "./configuration-page.ts";
import { errorsPage } from "./errors-page.ts";

const docs = join(dirname(import.meta.dirname), "docs");
const BEGIN = "<!-- events: written by scripts/pages.ts -->\n";
const END = "<!-- end -->";

/** docs/operations.md with the table of log events in its place. */
export function operationsPage(): string {
  const rows = Object.entries(OBSERVED)
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
    .map(([event, [level, phrase]]) => `| \`${event}\` | ${level} | ${phrase} |`);
  const text = readFileSync(join(docs, "operations.md"), "utf8");
  const begin = text.indexOf(BEGIN) + BEGIN.length;
  return `${text.slice(0, begin)}\n| event | level | message |\n|---|---|---|\n${rows.join("\n")}\n\n${text.slice(text.indexOf(END))}`;
}

if (import.meta.main) {
  writeFileSync(join(docs, "errors.md"), errorsPage());
  writeFileSync(join(docs, "configuration.md"), configurationPage());
  writeFileSync(join(docs, "cli.md"), cliPage());
  writeFileSync(join(docs, "operations.md"), operationsPage());
}
