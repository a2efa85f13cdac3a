/** Command lines of ours as text: what a shell makes of them, and whether the real parser takes them. */

import assert from "node:assert/strict";
import type { Command } from "commander";
import { buildProgram } from "../../src/cli/program.ts";

/** Words as a shell splits them, quotes taken away; ends at a pipe, a redirection, a comment, && or ;. */
export function shellWords(line: string): string[] {
  const words: string[] = [];
  const pattern = /\s*(?:(#.*$|[|;>]|&&)|((?:'[^']*'|"[^"]*"|\\.|[^\s'"|;>&\\])+))/gy;
  for (let match = pattern.exec(line); match !== null && match[1] === undefined; match = pattern.exec(line)) {
    words.push(
      match[2]!.replace(/'([^']*)'|"([^"]*)"|\\(.)/g, (_, single, double, escaped) => single ?? double ?? escaped),
    );
  }
  return words;
}

export function eachCommand(
  command: Command,
  path: readonly string[] = [],
): { path: readonly string[]; command: Command }[] {
  return [{ path, command }, ...command.commands.flatMap((child) => eachCommand(child, [...path, child.name()]))];
}

/** Parses `headstart WORDS...` as the program does, but does nothing. Null, or what is wrong with it. */
export function usageProblem(words: readonly string[]): string | null {
  const program = buildProgram();
  let ran = false;
  let output = "";
  for (const { command } of eachCommand(program)) {
    const write = (text: string) => {
      output += text;
    };
    command.configureOutput({ writeOut: write, writeErr: write });
    if (command.commands.length === 0) {
      command.action(() => {
        ran = true;
      });
    }
  }
  try {
    program.parse([...words], { from: "user" });
    return ran ? null : "no command";
  } catch (error) {
    const { exitCode, message } = error as { exitCode?: number; message: string };
    // --help and --version end so
    if (exitCode === 0) return null;
    return output.split("\n").find((line) => line.startsWith("error:")) ?? message;
  }
}

/** The lines of a text that call headstart, with backslash continuations joined. */
export function headstartLines(text: string): string[] {
  return text
    .replaceAll(/\\\n\s*/g, " ")
    .split("\n")
    .map((line) => line.trim().replace(/^(?:\$ |sudo )+/, ""))
    .filter((line) => /^(?:bin\/)?headstart(?= |$)/.test(line));
}

export function assertUsable(line: string, where: string): void {
  const problem = usageProblem(shellWords(line).slice(1));
  assert.equal(problem, null, `${where}: ${line}: ${problem}`);
}
