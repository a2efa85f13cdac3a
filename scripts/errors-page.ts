/** docs/errors.md from the catalogue in src/base/errors.ts. Written by `npm run pages`. */

import { ERRORS } from "../src/base/errors.ts";

export function errorsPage(): string {
  const rows = Object.entries(ERRORS)
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
    .map(([code, { kind, hint }]) => `| \`${code}\` | ${kind} | ${hint.replaceAll("|", "\\|")} |`);
  return `# Errors

Every error has a stable code, a kind (what gRPC status, errno and exit code follow from) and a hint. Written by \`npm run pages\` from the catalogue in \`src/base/errors.ts\`.

| code | kind | what to do |
|---|---|---|
${rows.join("\n")}
`;
}
