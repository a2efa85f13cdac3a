/** `headstart check`: does an image show, served by headstart, exactly what containerd's own unpack shows? */

import { mkdir } from "node:fs/promises";
import type { Command } from "commander";
import { HeadstartError } from "../../base/errors.ts";
import { openSource } from "../../oci/open.ts";
import { parseSource } from "../../oci/reference.ts";
import { checkImage } from "../../sandbox/check.ts";
import { formatDifference } from "../../sandbox/compare.ts";
import { SandboxNode } from "../../sandbox/node.ts";
import { debianPackages } from "../../sandbox/packages.ts";
import { Session } from "../../sandbox/session.ts";
import { CONTAINERD_VERSIONS } from "../../sandbox/tools.ts";
import { AnswerIsNo } from "../exit.ts";
import { openProgress } from "../progress.ts";
import { addSourceOptions, openOptions, platformOf, type SourceOptions } from "../sources.ts";
import { formatBytes } from "../table.ts";

interface CheckOptions extends SourceOptions {
  readonly against?: string;
  readonly containerd: string;
  readonly limit: string;
  readonly ignore?: readonly string[];
  readonly json?: boolean;
}

export function registerCheck(program: Command): void {
  addSourceOptions(
    program
      .command("check <source>")
      .summary("compare what headstart serves with a plain unpack")
      .description(
        "Mount an image as headstart serves it, for real, and compare it with a plain unpack by containerd: entry by entry and byte by byte.",
      )
      .option("--against <SOURCE>", "another image for the plain side")
      .option("--containerd <VERSION>", `one of ${CONTAINERD_VERSIONS.join(", ")}`, CONTAINERD_VERSIONS[0])
      .option("--limit <COUNT>", "stop after so many differences", "100")
      .option(
        "--ignore <PATH>",
        "a path that is left out with all below it, may be repeated",
        (path: string, before: readonly string[] = []) => [...before, path],
      ),
  )
    .option("--json", "one object {equal, entries, bytes, differences}")
    .addHelpText(
      "after",
      `
Exits with 0 when both are equal, 1 when something differs. Compared are types, modes,
owners, times to the nanosecond, sizes, device numbers, link targets, hard links,
extended attributes and contents.

Needs root; starts a containerd of its own. Debian packages that are missing are
installed. Nothing stays mounted or running.

Examples:
  headstart check HOST/REPO:TAG
  headstart check oci:./layout:v2 --against oci:./layout:v1
`,
    )
    .action(async (name: string, options: CheckOptions) => {
      const version = CONTAINERD_VERSIONS.find((known) => known === options.containerd);
      if (version === undefined)
        throw new HeadstartError("HS_USAGE", {
          what: `--containerd ${options.containerd}: one of ${CONTAINERD_VERSIONS.join(", ")}`,
        });
      const limit = Number(options.limit);
      if (!Number.isInteger(limit) || limit < 1)
        throw new HeadstartError("HS_USAGE", { what: `--limit ${options.limit}: a whole number above 0 is wanted` });
      if (process.getuid?.() !== 0)
        throw new HeadstartError("HS_USAGE", { what: "headstart check mounts file systems: it needs root" });
      const progress = openProgress({ quiet: options.json === true });
      const say = (text: string) => process.stderr.write(`headstart: ${text}\n`);
      await debianPackages(["runc"], say);
      const platform = platformOf(options);
      await using session = await Session.open({ say });
      const publish = async (text: string) => {
        const source = parseSource(text);
        await using reader = await openSource(source, openOptions(source, options));
        return await session.publish(source, reader, { platform });
      };
      const image = await publish(name);
      const against = options.against === undefined ? image : await publish(options.against);
      const env =
        options.creds === undefined
          ? {}
          : { env: { DOCKER_CONFIG: await session.dockerConfig(image.meter.host, options.creds) } };
      await using node = await SandboxNode.start({
        directory: session.directory("n"),
        version,
        registries: [session.meter.host],
        mirrors: { ...image.mirrors, ...against.mirrors },
        sandboxImage: session.sandboxImage,
        headstart: { policy: "referrers", ...env },
        say,
      });
      const directory = session.directory("m");
      await mkdir(directory, { recursive: true });
      progress.update("pulling, mounting and comparing");
      const result = await checkImage(node, {
        image: image.reference,
        against: against.reference,
        directory,
        limit,
        ...(options.ignore && { ignore: options.ignore }),
      });
      progress.done();
      if (options.json) process.stdout.write(`${JSON.stringify(result)}\n`);
      else {
        for (const difference of result.differences) process.stdout.write(`${formatDifference(difference)}\n`);
        const verdict = result.equal ? "equal" : `${result.differences.length} differences`;
        process.stdout.write(`${verdict}: ${result.entries} entries, ${formatBytes(result.bytes)} of content\n`);
      }
      if (!result.equal) throw new AnswerIsNo();
    });
}
