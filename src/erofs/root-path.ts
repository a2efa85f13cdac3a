/**
 * Paths inside a root: symlinks are followed, none leads out. The algorithm is that of containerd's continuity/fs.RootPath, step by step, since where it
 * cleans `..` as text and where it does not decides what a layer with such links means (specs/layer.md 4.1 step 2, 5).
 *
 * Paths are strings of one char a byte, absolute, "/" is the root. Knows neither layers nor files: a view says what a directory holds.
 */

import { LIMITS } from "../base/limits.ts";

export interface PathView<N> {
  readonly root: N;
  /** Undefined: there is nothing of that name. Asked for directories only. */
  child(directory: N, name: string): N | undefined;
  isDirectory(node: N): boolean;
  /** Null for all that is no symlink. */
  symlinkTarget(node: N): string | null;
}

export type PathErrorReason = "not-directory" | "loop" | "too-long" | "too-costly";

/** Where the kernel would answer ENOTDIR, ELOOP or ENAMETOOLONG; too-costly: see Resolver. */
export class PathError extends Error {
  readonly reason: PathErrorReason;

  constructor(reason: PathErrorReason) {
    super(reason);
    this.reason = reason;
  }
}

/** continuity/fs: more links than this on one way are taken for a loop. */
const LINKS_MAX = 255;
/** Linux: links that one lookup follows. */
const LOOKUP_LINKS_MAX = 40;
/** What one resolution with links may cost on average, in looked up names: an honest one takes some dozens. */
const STEPS_PER_RESOLUTION = 2000;
const STEPS_AT_START = 5_000_000;

export class Resolver<N> {
  readonly #view: PathView<N>;
  /** Work is bounded over the life of a resolver, so that no crafted maze of links costs minutes. */
  #steps = STEPS_AT_START;

  constructor(view: PathView<N>) {
    this.#view = view;
  }

  /**
   * `path` with all symlinks followed, also the last one: the result holds no symlink that exists, and what does not exist stays as it is. Throws PathError.
   */
  resolve(path: string): string {
    if (this.#isPlain(path)) return path;
    this.#steps += STEPS_PER_RESOLUTION;
    let links = 0;
    let current = path;
    for (;;) {
      const before = links;
      let walked = "/";
      // what stands at `walked`, where that is known: looking up every step from the root takes quadratic time
      let directory: N | "unknown" = this.#view.root;
      for (const name of current.split("/")) {
        if (name === "") continue;
        const plain = name !== "." && name !== "..";
        const next: string = plain && directory !== "unknown" ? childPath(walked, name) : joinPath(walked, name);
        if (next === "/") {
          walked = next;
          directory = this.#view.root;
          continue;
        }
        if (links > LINKS_MAX) throw new PathError("loop");
        const node: N | undefined = plain && directory !== "unknown" ? this.#step(directory, name) : this.#lookup(next);
        const target = node === undefined ? null : this.#view.symlinkTarget(node);
        if (target === null) {
          walked = next;
          directory = node !== undefined && this.#view.isDirectory(node) ? node : "unknown";
        } else {
          links++;
          walked = target.startsWith("/") ? target : joinPath(walked, target);
          directory = "unknown";
          if (walked.length > LIMITS.pathBytes) throw new PathError("too-long");
        }
      }
      current = walked;
      if (links === before) return cleanPath(current);
    }
  }

  /** What stands at a resolved path. Undefined where there is nothing, also below a file. */
  at(path: string): N | undefined {
    let node = this.#view.root;
    if (path === "/") return node;
    for (const name of path.slice(1).split("/")) {
      if (!this.#view.isDirectory(node)) return undefined;
      const child = this.#view.child(node, name);
      if (child === undefined) return undefined;
      node = child;
    }
    return node;
  }

  /** True when the path is clean and no component of it is a symlink: the usual case, in one walk. */
  #isPlain(path: string): boolean {
    if (path === "/") return true;
    if (path.charCodeAt(0) !== 0x2f) return false;
    let node: N | undefined = this.#view.root;
    let start = 1;
    for (;;) {
      let end = path.indexOf("/", start);
      if (end < 0) end = path.length;
      const name = path.slice(start, end);
      if (name === "" || name === "." || name === "..") return false;
      if (name.length > LIMITS.nameBytes) throw new PathError("too-long");
      if (node !== undefined) {
        if (!this.#view.isDirectory(node)) throw new PathError("not-directory");
        node = this.#view.child(node, name);
        if (node !== undefined && this.#view.symlinkTarget(node) !== null) return false;
      }
      if (end === path.length) return true;
      start = end + 1;
    }
  }

  #step(directory: N, name: string): N | undefined {
    if (--this.#steps < 0) throw new PathError("too-costly");
    if (name.length > LIMITS.nameBytes) throw new PathError("too-long");
    return this.#view.child(directory, name);
  }

  /** What lstat(2) finds: links on the way are followed, the last component is not. */
  #lookup(path: string): N | undefined {
    const view = this.#view;
    const stack: N[] = [view.root];
    const pending = path.split("/").reverse();
    let followed = 0;
    while (pending.length > 0) {
      const name = pending.pop()!;
      if (--this.#steps < 0) throw new PathError("too-costly");
      if (name === "" || name === ".") continue;
      if (name === "..") {
        if (stack.length > 1) stack.pop();
        continue;
      }
      if (name.length > LIMITS.nameBytes) throw new PathError("too-long");
      const child = view.child(stack.at(-1)!, name);
      if (child === undefined || pending.length === 0) return child;
      const target = view.symlinkTarget(child);
      if (target !== null) {
        if (++followed > LOOKUP_LINKS_MAX) throw new PathError("loop");
        if (target.startsWith("/")) stack.length = 1;
        pending.push(...target.split("/").reverse());
      } else if (view.isDirectory(child)) {
        stack.push(child);
      } else {
        throw new PathError("not-directory");
      }
    }
    return stack.at(-1);
  }
}

/** Go's path.Clean("/" + path): no double slashes, no `.`, `..` taken as text, never above the root. */
export function cleanPath(path: string): string {
  const names: string[] = [];
  for (const name of path.split("/")) {
    if (name === "" || name === ".") continue;
    if (name === "..") names.pop();
    else names.push(name);
  }
  return `/${names.join("/")}`;
}

function childPath(directory: string, name: string): string {
  return directory === "/" ? `/${name}` : `${directory}/${name}`;
}

export function joinPath(directory: string, name: string): string {
  return cleanPath(`${directory}/${name}`);
}
