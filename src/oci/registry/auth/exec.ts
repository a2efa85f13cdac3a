/** Runs a credential program: a request on stdin, an answer on stdout, a deadline, a bound on its output. Never quotes stdout, which holds secrets. */

import { spawn } from "node:child_process";
import { HeadstartError } from "../../../base/errors.ts";

const OUTPUT_BYTES = 1024 * 1024;
/** What is quoted of stderr in an error. */
const COMPLAINT_CHARACTERS = 300;
const DEADLINE_MS = 60_000;

export interface ExecResult {
  readonly status: number;
  readonly stdout: string;
  /** The start of what it complained, printable. */
  readonly complaint: string;
}

/** Throws HS_CREDENTIALS when it cannot be run, hangs, or says too much. */
export async function runCredentialProgram(
  file: string,
  args: readonly string[],
  options: {
    readonly stdin: string;
    readonly env: Readonly<Record<string, string | undefined>>;
    readonly signal?: AbortSignal | undefined;
    readonly deadlineMs?: number;
  },
): Promise<ExecResult> {
  const deadline = AbortSignal.timeout(options.deadlineMs ?? DEADLINE_MS);
  const signal = options.signal === undefined ? deadline : AbortSignal.any([options.signal, deadline]);
  signal.throwIfAborted();
  const { promise, resolve, reject } = Promise.withResolvers<ExecResult>();
  const child = spawn(file, args, { env: { ...options.env }, signal, killSignal: "SIGKILL", stdio: "pipe" });
  const stdout: Buffer[] = [];
  const stderr: Buffer[] = [];
  let total = 0;
  const take = (into: Buffer[]) => (chunk: Buffer) => {
    total += chunk.byteLength;
    if (total <= OUTPUT_BYTES) into.push(chunk);
    else child.kill("SIGKILL");
  };
  child.stdout.on("data", take(stdout));
  child.stderr.on("data", take(stderr));
  child.stdin.on("error", () => undefined); // it may answer without reading
  child.on("error", reject);
  child.on("close", (status, killed) => {
    if (total > OUTPUT_BYTES) return reject(new Error("it says too much"));
    if (status === null) return reject(new Error(`killed by ${killed}`));
    const complaint = Buffer.concat(stderr)
      .toString("utf8")
      .replace(/[\p{Cc}\p{Cf}]+/gu, " ");
    const text = Buffer.concat(stdout).toString("utf8");
    resolve({ status, stdout: text, complaint: complaint.slice(0, COMPLAINT_CHARACTERS).trim() });
  });
  child.stdin.end(options.stdin);
  try {
    return await promise;
  } catch (cause) {
    options.signal?.throwIfAborted();
    const why = deadline.aborted ? "no answer in time" : "cannot be run";
    throw new HeadstartError("HS_CREDENTIALS", { what: `${file}: ${why}`, cause });
  }
}
