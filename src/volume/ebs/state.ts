/**
 * What is kept of a push under way, as PATH.push beside the volume: its first line is a JSON header that names the snapshot and the plan, every further line the index of a block that EBS has
 * acknowledged, or a word. Appended to, never rewritten, so a kill at any moment loses at most the last marks; those blocks are put again, as the same bytes.
 *
 * Invariant: an index stands here only after its 201. A last line without its end, or anything that is no index, ends what is believed.
 */

import { closeSync, constants, ftruncateSync, openSync, readFileSync, rmSync, writeSync } from "node:fs";
import { HeadstartError } from "../../base/errors.ts";
import { failpoint } from "../../base/failpoint.ts";
import { writeFileDurably } from "../../base/files.ts";

export const STATE_SCHEMA = "headstart.push/1";

export interface PushHeader {
  readonly schema: typeof STATE_SCHEMA;
  readonly snapshot: string;
  /** Digest of all that decides what is put and how: see plan.ts. */
  readonly plan: string;
  readonly region: string;
  readonly attempt: number;
}

/** "completing": all blocks are there, and completion may have been asked for. "lost": the snapshot is no more. */
export type StateWord = "completing" | "lost";

export class PushState implements Disposable {
  readonly path: string;
  readonly header: PushHeader;
  readonly done: Set<number>;
  readonly words: Set<StateWord>;
  #fd: number | undefined;

  private constructor(path: string, header: PushHeader, done: Set<number>, words: Set<StateWord>) {
    this.path = path;
    this.header = header;
    this.done = done;
    this.words = words;
  }

  static pathFor(volume: string): string {
    return `${volume}.push`;
  }

  /** Undefined when there is none. Throws HS_EBS_STATE for a file that is something else. */
  static read(volume: string): PushState | undefined {
    const path = PushState.pathFor(volume);
    let text: string;
    try {
      text = readFileSync(path, "latin1");
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === "ENOENT") return undefined;
      throw new HeadstartError("HS_EBS_STATE", { what: path, cause });
    }
    const lines = text.split("\n");
    const header = parseHeader(lines[0]!, path);
    const done = new Set<number>();
    const words = new Set<StateWord>();
    let believed = lines[0]!.length + 1;
    for (const line of lines.slice(1, -1)) {
      if (line === "completing" || line === "lost") words.add(line);
      else if (/^(?:0|[1-9]\d{0,8})$/.test(line)) done.add(Number(line));
      else break;
      believed += line.length + 1;
    }
    const state = new PushState(path, header, done, words);
    if (believed < text.length) state.#cut(believed);
    return state;
  }

  /** Replaces what was there. */
  static create(volume: string, header: PushHeader): PushState {
    const path = PushState.pathFor(volume);
    writeFileDurably(path, `${JSON.stringify(header)}\n`);
    return new PushState(path, header, new Set(), new Set());
  }

  mark(index: number): void {
    failpoint("ebs:mark");
    this.#append(String(index));
    this.done.add(index);
  }

  say(word: StateWord): void {
    this.#append(word);
    this.words.add(word);
  }

  /** The push has ended well. */
  remove(): void {
    this[Symbol.dispose]();
    rmSync(this.path, { force: true });
  }

  #append(line: string): void {
    this.#fd ??= openSync(this.path, constants.O_WRONLY | constants.O_APPEND);
    writeSync(this.#fd, `${line}\n`);
  }

  /** What is not believed must not stand before what comes. */
  #cut(length: number): void {
    const fd = openSync(this.path, constants.O_WRONLY);
    try {
      ftruncateSync(fd, length);
    } finally {
      closeSync(fd);
    }
  }

  [Symbol.dispose](): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }
}

function parseHeader(line: string, path: string): PushHeader {
  let header: Partial<PushHeader>;
  try {
    header = JSON.parse(line) as Partial<PushHeader>;
  } catch {
    header = {};
  }
  const { schema, snapshot, plan, region, attempt } = header ?? {};
  if (
    schema !== STATE_SCHEMA ||
    typeof snapshot !== "string" ||
    typeof plan !== "string" ||
    typeof region !== "string" ||
    !Number.isSafeInteger(attempt)
  ) {
    throw new HeadstartError("HS_EBS_STATE", { what: `${path} is not the state of a push` });
  }
  return { schema, snapshot, plan, region, attempt: attempt! };
}
