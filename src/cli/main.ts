/** The command line: parses, calls, prints. No logic of its own; each command is one file in commands/, loaded when it is used. */

import { Command, CommanderError } from "commander";
import { VERSION } from "../base/version.ts";
import { registerCheck } from "./commands/check.ts";
import { registerConvert } from "./commands/convert.ts";
import { registerDaemon } from "./commands/daemon.ts";
import { registerImage } from "./commands/image.ts";
import { registerIndex } from "./commands/index.ts";
import { registerInspect } from "./commands/inspect.ts";
import { registerRun } from "./commands/run.ts";
import { registerStatus } from "./commands/status.ts";
import { EXIT, reportError } from "./exit.ts";

const HELP = `
Sources:
  docker://HOST/REPO:TAG, docker://HOST/REPO@sha256:…, HOST/REPO:TAG    a registry
  oci:DIR[:TAG]                                                        an OCI layout directory
  oci-archive:FILE[:TAG]                                               the same in a tar
  containerd:REF                                                       an image in a running containerd's content store

Exit status:
  0 success   1 the answer is no (a check failed)   2 wrong usage   3 the work failed

Examples:
  headstart run HOST/REPO:TAG -- python3 -c 'print(1)'
  headstart convert docker://HOST/REPO:TAG docker://HOST/REPO:TAG-soci --to soci
  headstart image tree oci:./layout:v1 --json
  headstart check HOST/REPO:TAG
`;

async function main(argv: readonly string[]): Promise<number> {
  const program = new Command("headstart")
    .description("Containers start before their image has been pulled.")
    .version(VERSION)
    .option("--debug", "show stack traces of errors")
    .showHelpAfterError("(see --help)")
    .addHelpText("after", HELP)
    .exitOverride();
  for (const register of [
    registerRun,
    registerDaemon,
    registerConvert,
    registerIndex,
    registerImage,
    registerInspect,
    registerCheck,
    registerStatus,
  ]) {
    register(program);
  }
  inheritExitOverride(program);
  try {
    await program.parseAsync(argv, { from: "user" });
    return EXIT.success;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.success : EXIT.usage;
    return reportError(error, { debug: program.opts().debug === true });
  }
}

function inheritExitOverride(command: Command): void {
  for (const child of command.commands) {
    child.exitOverride().showHelpAfterError("(see --help)");
    inheritExitOverride(child);
  }
}

// a closed pipe (| head) is the reader's decision, not an error
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(EXIT.success);
  throw error;
});
process.exitCode = await main(process.argv.slice(2));
