/** `headstart daemon`: becomes the supervisor, which starts the server. */

import type { Command } from "commander";
import { HeadstartError } from "../../base/errors.ts";
import { programPath } from "../../base/project.ts";
import { loadConfig, printConfig } from "../../daemon/config.ts";
import { SERVER_NODE_FLAGS } from "../../daemon/node-flags.ts";

export const DEFAULT_CONFIG = "/etc/headstart/config.toml";

interface DaemonOptions {
  readonly config?: string;
  readonly root?: string;
  readonly state?: string;
  readonly address?: string;
  readonly metrics?: string;
  readonly logLevel?: string;
  readonly printConfig?: boolean;
  readonly teardown?: boolean;
  readonly force?: boolean;
}

export function registerDaemon(program: Command): void {
  program
    .command("daemon")
    .summary("the snapshotter service for containerd")
    .description(
      "The snapshotter service for containerd. Runs in the foreground until SIGTERM; containers keep running over a restart.",
    )
    .option("--config <FILE>", `configuration (TOML); default ${DEFAULT_CONFIG} if it is there`)
    .option("--root <DIR>", "layers, snapshots and databases (default /var/lib/headstart)")
    .option("--state <DIR>", "sockets, mounts and journals (default /run/headstart)")
    .option("--address <SOCK>", "socket of the snapshots service (default STATE/headstart.sock)")
    .option("--metrics <HOST:PORT>", "serve Prometheus metrics over TCP too")
    .option("--log-level <LEVEL>", "debug, info, warn or error")
    .option("--print-config", "print the effective configuration and where each value came from, then stop")
    .option("--teardown", "stop a running daemon of this state directory and unmount everything of it, then stop")
    .option("--force", "with --teardown: also what is busy")
    .addHelpText(
      "after",
      `
Two processes: this one becomes the supervisor, which holds the FUSE connection and
starts the server. SIGHUP to the supervisor replaces the server; containers do not
notice. SIGTERM and SIGINT stop both: while they are stopped, reads of what a lazy layer
has not fetched yet fail. Under systemd use KillMode=process (docs/start.md).

containerd needs this (docs/start.md has the rest):
  [proxy_plugins.headstart]
    type = "snapshot"
    address = "/run/headstart/headstart.sock"

Examples:
  headstart daemon
  headstart daemon --config ./headstart.toml --print-config
  headstart daemon --root /mnt/nvme/headstart --log-level debug
`,
    )
    .action((options: DaemonOptions) => {
      const overrides = new Map<string, string>();
      for (const [key, value] of [
        ["root", options.root],
        ["state", options.state],
        ["address", options.address],
        ["metrics", options.metrics],
        ["log_level", options.logLevel],
      ] as const) {
        if (value !== undefined) overrides.set(key, value);
      }
      const file = { path: options.config ?? DEFAULT_CONFIG, explicit: options.config !== undefined };
      const loaded = loadConfig(file, overrides);
      if (options.printConfig) {
        process.stdout.write(printConfig(loaded));
        return;
      }
      if (process.getuid?.() !== 0)
        throw new HeadstartError("HS_USAGE", { what: "headstart daemon mounts file systems: it needs root" });
      const supervisor = programPath("supervisor/main.ts", "supervisor.mjs");
      const base = [process.execPath, supervisor, "--state", loaded.config.state];
      const server = [
        programPath("daemon/main.ts", "server.mjs"),
        "--config",
        file.path,
        "--overrides",
        JSON.stringify(Object.fromEntries(overrides)),
      ];
      const args = options.teardown
        ? [...base, "--teardown", ...(options.force ? ["--force"] : [])]
        : [
            ...base,
            "--",
            process.execPath,
            ...SERVER_NODE_FLAGS,
            ...server,
            ...(file.explicit ? ["--explicit-config"] : []),
          ];
      // execve: the process that was started is the supervisor, for systemd and for whoever holds its pid
      process.execve?.(process.execPath, args, { ...process.env } as Record<string, string>);
    });
}
