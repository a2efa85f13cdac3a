/** Exit codes and the two lines that a user reads: what and where, then what to do. A stack trace only with --debug. */

import { describeError, HeadstartError, kindOf } from "../base/errors.ts";

export const EXIT = { success: 0, no: 1, usage: 2, failed: 3 } as const;

/** A command's way to say "the answer is no": its own output has said why. */
export class AnswerIsNo extends Error {}

export function reportError(error: unknown, options: { debug: boolean }): number {
  if (error instanceof AnswerIsNo) return EXIT.no;
  const lines = [`headstart: ${describeError(error)}`];
  if (error instanceof HeadstartError) lines.push(`  ${error.hint}`);
  else if (kindOf(error) === "exhausted") lines.push("  free space on the disk, then try again");
  if (options.debug && error instanceof Error) lines.push(error.stack ?? "");
  process.stderr.write(`${lines.join("\n")}\n`);
  return error instanceof HeadstartError && error.code === "HS_USAGE" ? EXIT.usage : EXIT.failed;
}
