/**
 * Programs that the sandbox starts: short ones that run to their end (`execute`), and long ones that are owned and stopped (`Child`).
 * Every child that is started here is either awaited or ends with its owner; nothing is found again by name.
 */

import { type ChildProcess, spawn } from "node:child_process";
import { createWriteStream, type WriteStream } from "node:fs";
import { HeadstartError } from "../base/errors.ts";

export interface ExecuteOptions {
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly cwd?: string;
  readonly input?: string;
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds until the program is killed and the call fails. */
  readonly timeoutMs?: number;
  /** Exit codes that are no failure, besides 0. */
  readonly accept?: readonly number[];
}

export interface Executed {
  readonly stdout: string;
  readonly stderr: string;
  readonly code: number;
}

/** An output beyond this is cut: programs that we read do not print more. */
const OUTPUT_BYTES_MAX = 64 * 1024 * 1024;
const TIMEOUT_MS = 300_000;

/** Runs a program to its end. Throws HS_CHILD_FAILED with the last lines it printed, HS_TOOL_MISSING when there is no such program. */
export async function execute(
  command: string,
  args: readonly string[],
  options: ExecuteOptions = {},
): Promise<Executed> {
  const child = spawn(command, args, {
    stdio: [options.input === undefined ? "ignore" : "pipe", "pipe", "pipe"],
    env: { ...process.env, ...options.env },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  });
  if (options.input !== undefined) child.stdin!.on("error", () => {}).end(options.input); // a reader that leaves early shows in its exit code
  const stop = () => child.kill("SIGKILL");
  options.signal?.addEventListener("abort", stop, { once: true });
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    stop();
  }, options.timeoutMs ?? TIMEOUT_MS);
  try {
    const [stdout, stderr, end] = await Promise.all([collect(child.stdout!), collect(child.stderr!), ended(child)]);
    options.signal?.throwIfAborted();
    const code = end.code ?? 128;
    if (late || (code !== 0 && !options.accept?.includes(code))) {
      const how = late ? "took too long" : end.code === null ? `killed by ${end.signal}` : `exit code ${end.code}`;
      throw failure([command, ...args], how, stderr.trim() === "" ? stdout : stderr);
    }
    return { stdout, stderr, code };
  } finally {
    clearTimeout(timer);
    options.signal?.removeEventListener("abort", stop);
  }
}

async function collect(stream: NodeJS.ReadableStream): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    size += chunk.byteLength;
    if (size <= OUTPUT_BYTES_MAX) chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}

interface End {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

function ended(child: ChildProcess): Promise<End> {
  return new Promise((resolve, reject) => {
    child.once("error", (cause: NodeJS.ErrnoException) => {
      const missing = cause.code === "ENOENT";
      reject(new HeadstartError(missing ? "HS_TOOL_MISSING" : "HS_CHILD_FAILED", { what: child.spawnfile, cause }));
    });
    child.once("close", (code, signal) => resolve({ code, signal }));
  });
}

function failure(command: readonly string[], how: string, output: string): HeadstartError {
  return new HeadstartError("HS_CHILD_FAILED", {
    what: `${command.join(" ").slice(0, 500)}: ${how}\n${lastLines(output)}`,
  });
}

/** For a message: the last dozen lines, each of readable length. */
function lastLines(output: string): string {
  const lines = output.trimEnd().split("\n").slice(-12);
  return lines.map((line) => `  ${line.length > 400 ? `${line.slice(0, 400)}…` : line}`).join("\n");
}

export interface ChildOptions {
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly cwd?: string;
  /** All that the child prints goes here too. */
  readonly logFile?: string;
}

const TAIL_LINES = 200;
const STOP_MS = 10_000;

/** A long-running program. `await using` ends it: SIGTERM, and SIGKILL ten seconds later. */
export class Child implements AsyncDisposable {
  readonly name: string;
  readonly pid: number;
  /** Resolves when the program has ended, however it did. */
  readonly end: Promise<End>;
  readonly #process: ChildProcess;
  readonly #tail: string[] = [];
  readonly #listeners = new Set<(line: string) => void>();
  readonly #log: WriteStream | undefined;
  #over: End | undefined;

  /** Throws HS_TOOL_MISSING or HS_CHILD_FAILED when the program cannot be started. */
  static async start(command: string, args: readonly string[], options: ChildOptions = {}): Promise<Child> {
    const child = spawn(command, args, {
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, ...options.env },
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    const end = ended(child);
    await Promise.race([new Promise((resolve) => child.once("spawn", resolve)), end]);
    return new Child(command, child, end, options.logFile);
  }

  private constructor(command: string, child: ChildProcess, end: Promise<End>, logFile: string | undefined) {
    this.name = command.split("/").at(-1)!;
    this.#process = child;
    this.pid = child.pid!;
    this.#log = logFile === undefined ? undefined : createWriteStream(logFile, { flags: "a" });
    for (const stream of [child.stdout!, child.stderr!]) this.#follow(stream);
    this.end = end.then((over) => {
      this.#over = over;
      this.#log?.end();
      return over;
    });
  }

  get running(): boolean {
    return this.#over === undefined && this.#process.exitCode === null && this.#process.signalCode === null;
  }

  /** The last lines it printed, on either stream. */
  get tail(): string {
    return this.#tail.join("\n");
  }

  #follow(stream: NodeJS.ReadableStream): void {
    let rest = "";
    stream.setEncoding("utf8");
    stream.on("data", (text: string) => {
      this.#log?.write(text);
      const lines = (rest + text).split("\n");
      rest = lines.pop()!.slice(-65_536); // a program that never ends its line must not fill our memory
      for (const line of lines) this.#line(line);
    });
    stream.on("end", () => rest !== "" && this.#line(rest));
  }

  #line(line: string): void {
    this.#tail.push(line);
    if (this.#tail.length > TAIL_LINES) this.#tail.shift();
    for (const listener of this.#listeners) listener(line);
  }

  /** The first line (also of those already printed) that `wanted` matches. Throws HS_CHILD_FAILED at the child's end or after `timeoutMs`. */
  async waitForLine(wanted: RegExp, timeoutMs = 30_000): Promise<RegExpExecArray> {
    for (const line of this.#tail) {
      const match = wanted.exec(line);
      if (match) return match;
    }
    const { promise, resolve, reject } = Promise.withResolvers<RegExpExecArray>();
    const listener = (line: string) => {
      const match = wanted.exec(line);
      if (match) resolve(match);
    };
    this.#listeners.add(listener);
    const timer = setTimeout(() => reject(this.failure(`did not say ${wanted} in ${timeoutMs} ms`)), timeoutMs);
    void this.end.then(() => reject(this.failure(`ended before it said ${wanted}`)));
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      this.#listeners.delete(listener);
    }
  }

  failure(how: string): HeadstartError {
    return failure([this.name], how, this.tail);
  }

  kill(signal: NodeJS.Signals): void {
    if (this.running) this.#process.kill(signal);
  }

  async stop(): Promise<void> {
    this.kill("SIGTERM");
    const timer = setTimeout(() => this.kill("SIGKILL"), STOP_MS);
    await this.end;
    clearTimeout(timer);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}
