/** `headstart run`: the main job in one line. */

import type { Command } from "commander";
import { HeadstartError } from "../../base/errors.ts";
import { openSource } from "../../oci/open.ts";
import { parseSource } from "../../oci/reference.ts";
import { readCriLog } from "../../sandbox/cri-client.ts";
import { debianPackages } from "../../sandbox/packages.ts";
import { race } from "../../sandbox/race.ts";
import type { Probe } from "../../sandbox/ready.ts";
import { Session } from "../../sandbox/session.ts";
import { CONTAINERD_VERSIONS, type ContainerdVersion } from "../../sandbox/tools.ts";
import { addSourceOptions, openOptions, platformOf, type SourceOptions } from "../sources.ts";
import { startsTable } from "../starts.ts";

interface RunOptions extends SourceOptions {
  readonly ready?: string;
  readonly compare: boolean;
  readonly containerd: string;
  readonly rate?: string;
  readonly json?: boolean;
}

export function registerRun(program: Command): void {
  addSourceOptions(
    program
      .command("run <source> [command...]")
      .summary("start a container lazily, and print what it cost")
      .description(
        "Start a container lazily under a private containerd and runc, and print what it cost, beside a plain pull of the same image.",
      )
      .option("--ready <REGEXP>", "the line of output that means ready (default: the first line, or a successful end)")
      .option("--no-compare", "leave out the plain pull")
      .option("--containerd <VERSION>", `one of ${CONTAINERD_VERSIONS.join(", ")}`, CONTAINERD_VERSIONS[0])
      .option("--rate <BYTES>", "cap what the registry gives, in bytes a second"),
  )
    .option("--json", "the figures as one object")
    .addHelpText(
      "after",
      `
The image is used as it is: through an index that its manifest names, or one that
refers to it (policy "referrers": you name the image yourself). Without an index it is
pulled whole, by the same machinery. --json prints
{image: {ref, digest, bytes, layers}, runs: [{mode, readyMs, pullMs, bytes, requests,
faults}], ratio}.

Needs root. Debian packages that are missing are installed. Nothing stays mounted or
running.

Examples:
  headstart run HOST/REPO:TAG -- python3 -c 'print(1)'
  headstart run HOST/REPO:TAG --ready 'Listening on' --no-compare
  headstart run oci:./layout:v1 --rate 12500000 --json
`,
    )
    .action(async (name: string, command: readonly string[], options: RunOptions) => {
      const version = CONTAINERD_VERSIONS.find((known) => known === options.containerd) as
        | ContainerdVersion
        | undefined;
      if (version === undefined)
        throw new HeadstartError("HS_USAGE", {
          what: `--containerd ${options.containerd}: one of ${CONTAINERD_VERSIONS.join(", ")}`,
        });
      if (process.getuid?.() !== 0)
        throw new HeadstartError("HS_USAGE", { what: "headstart run mounts file systems: it needs root" });
      const bytesPerSecond = options.rate === undefined ? {} : { bytesPerSecond: wholeNumber("--rate", options.rate) };
      const say = (text: string) => process.stderr.write(`headstart: ${text}\n`);
      await debianPackages(["runc", "erofs-utils"], say);
      const source = parseSource(name);
      await using reader = await openSource(source, openOptions(source, options));
      await using session = await Session.open({ say, meter: bytesPerSecond });
      const image = await session.publish(source, reader, { platform: platformOf(options), meter: bytesPerSecond });
      const env =
        options.creds === undefined
          ? {}
          : { env: { DOCKER_CONFIG: await session.dockerConfig(image.meter.host, options.creds) } };
      const wanted = options.ready === undefined ? null : regularExpression(options.ready);
      let output = "";
      const figures = await race({
        version,
        sandboxImage: session.sandboxImage,
        directory: session.directory("n"),
        meter: image.meter,
        registries: [session.meter.host],
        mirrors: image.mirrors,
        image: image.figures,
        headstart: { policy: "referrers", ...env },
        modes: options.compare ? ["lazy", "overlayfs"] : ["lazy"],
        workload: () => ({
          name: "run",
          image: image.reference,
          ready: firstLine(wanted),
          ...(command.length > 0 && { command }),
        }),
        ready: async (mode, _node, started) => {
          if (mode === "lazy") output = readCriLog(started.container.logPath);
        },
        say,
      });
      if (options.json) process.stdout.write(`${JSON.stringify(figures)}\n`);
      else
        process.stdout.write(
          `${output}${output.endsWith("\n") || output === "" ? "" : "\n"}\n${startsTable(figures)}\n`,
        );
    });
}

/** Ready at the first line, or the first that matches. A program that ends well without a word is noticed by `startWorkload` itself. */
function firstLine(wanted: RegExp | null): Probe {
  return async (container) => {
    const log = readCriLog(container.logPath);
    return wanted === null ? log.length > 0 : wanted.test(log);
  };
}

function regularExpression(text: string): RegExp {
  try {
    return new RegExp(text, "m");
  } catch (cause) {
    throw new HeadstartError("HS_USAGE", { what: `--ready ${text} is no regular expression`, cause });
  }
}

function wholeNumber(flag: string, text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value <= 0)
    throw new HeadstartError("HS_USAGE", { what: `${flag} ${text}: a whole number above 0 is wanted` });
  return value;
}
