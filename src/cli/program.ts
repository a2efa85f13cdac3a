/** The command line as data: every command with its options and help. One file a command in commands/; main.ts runs it. */

import { type Argument, Command } from "commander";
import { VERSION } from "../base/version.ts";
import { registerCheck } from "./commands/check.ts";
import { registerConvert } from "./commands/convert.ts";
import { registerDaemon } from "./commands/daemon.ts";
import { registerImage } from "./commands/image.ts";
import { registerIndex } from "./commands/index.ts";
import { registerInspect } from "./commands/inspect.ts";
import { registerRun } from "./commands/run.ts";
import { registerStatus } from "./commands/status.ts";
import { registerVolume } from "./commands/volume.ts";

const HELP = `
Sources and destinations:
  HOST/REPO:TAG, docker://HOST/REPO:TAG    a registry; @sha256:… in place of :TAG
  oci:DIR[:TAG]                            an OCI layout directory
  oci-archive:FILE[:TAG]                   the same in a tar
  containerd:REF                           an image of a running containerd (source)

Exit status:
  0 success   1 the answer is no (a check failed)   2 wrong usage   3 the work failed

Examples:
  headstart run HOST/REPO:TAG -- python3 -c 'print(1)'
  headstart convert docker://HOST/REPO:TAG docker://HOST/REPO:TAG-soci --to soci
  headstart image tree oci:./layout:v1 --json
  headstart check HOST/REPO:TAG
  headstart daemon --print-config

Credentials are those of docker login and credential helpers. Mirrors, plain HTTP and
own authorities are said in containerd's hosts.toml.
`;

/** Wrong usage throws CommanderError instead of ending the process. */
export function buildProgram(): Command {
  const program = new Command("headstart")
    .description("Containers start before their image has been pulled.")
    .version(VERSION)
    // every command has options: saying so would push the texts to the right
    .configureHelp({
      subcommandTerm: (command) => [command.name(), ...command.registeredArguments.map(argumentTerm)].join(" "),
    })
    .option("--debug", "with errors, show where in headstart they arose")
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
    registerVolume,
    registerStatus,
  ]) {
    register(program);
  }
  inheritExitOverride(program);
  return program;
}

function inheritExitOverride(command: Command): void {
  for (const child of command.commands) {
    child.exitOverride().showHelpAfterError("(see --help)");
    inheritExitOverride(child);
  }
}

function argumentTerm(argument: Argument): string {
  const name = `${argument.name()}${argument.variadic ? "..." : ""}`;
  return argument.required ? `<${name}>` : `[${name}]`;
}
