/** The command line: parses, calls, prints. No logic of its own. */

import { CommanderError } from "commander";
import { EXIT, reportError } from "./exit.ts";
import { buildProgram } from "./program.ts";

async function main(argv: readonly string[]): Promise<number> {
  const program = buildProgram();
  try {
    await program.parseAsync(argv, { from: "user" });
    return EXIT.success;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.success : EXIT.usage;
    return reportError(error, { debug: program.opts().debug === true });
  }
}

// a closed pipe (| head) is the reader's decision, not an error
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(EXIT.success);
  throw error;
});
process.exitCode = await main(process.argv.slice(2));
