/** Writes docs/errors.md from the catalogue. Run after adding an error code. */

import { writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { ERRORS } from "../src/base/errors.ts";

const rows = Object.entries(ERRORS)
  .toSorted(([a], [b]) => (a < b ? -1 : 1))
  .map(([code, { kind, hint }]) => `| \`${code}\` | ${kind} | ${hint.replaceAll("|", "\\|")} |`);
const text = `# Errors

Every error has a stable code, a kind (what gRPC status, errno and exit code follow from) and a hint. Written by \`scripts/errors-page.ts\` from the catalogue in \`src/base/errors.ts\`.

| code | kind | what to do |
|---|---|---|
${rows.join("\n")}
`;
writeFileSync(join(dirname(import.meta.dirname), "docs/errors.md"), text);
