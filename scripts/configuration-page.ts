/** docs/configuration.md from the schema in src/daemon/config.ts. Written by `npm run pages`. */

import { SCHEMA } from "../src/daemon/config.ts";

function table(name: string): string {
  const rows = Object.entries(SCHEMA[name]!).map(([key, { fallback, help, choices, min }]) => {
    const text = typeof fallback === "string" ? `"${fallback.replace("{state}", "STATE")}"` : String(fallback);
    const range = choices
      ? choices.map((each) => `\`${each}\``).join(", ")
      : min === undefined
        ? ""
        : `at least ${min}`;
    const type = typeof fallback === "number" ? "integer" : typeof fallback;
    return `| \`${key}\` | ${type}${range === "" ? "" : `: ${range}`} | \`${text}\` | ${help.replaceAll("|", "\\|")} |`;
  });
  const head = name === "" ? "## Top level" : `## [${name}]`;
  return `${head}\n\n| key | type | default | |\n|---|---|---|---|\n${rows.join("\n")}\n`;
}

export function configurationPage(): string {
  return `# Configuration

The daemon reads one TOML file: \`--config FILE\`, else \`/etc/headstart/config.toml\` if it is there. Every key has a default; no file is needed. It is read once, when the daemon starts. An unknown
key is an error that names the nearest known one. \`--root\`, \`--state\`, \`--address\`, \`--metrics\` and \`--log-level\` of \`headstart daemon\` win over the file.

\`\`\`sh
headstart daemon --print-config      # every effective value, and where it came from
\`\`\`

\`\`\`toml
root = "/mnt/nvme/headstart"

[trust]
policy = "referrers"

[fetch]
bandwidth_bytes_per_second = 50_000_000
\`\`\`

Mirrors, plain HTTP and certificate authorities are not said here but in containerd's own \`hosts.toml\` files (\`registry.hosts_dir\`). \`STATE\` stands for the effective state directory.

Written by \`npm run pages\` from the schema in \`src/daemon/config.ts\`.

${Object.keys(SCHEMA).map(table).join("\n")}`;
}
