/** What a verification has found: the first differences in words, all of them in number, and what could not be proven. */

export interface Difference {
  /** Where: a path on the volume, a record of a database, a block. */
  readonly place: string;
  /** Which rule does not hold. */
  readonly rule: Rule;
  readonly message: string;
}

/** One word for each family of rules; docs/volumes.md explains them. */
export const RULES = [
  "partition-table",
  "file-system",
  "store",
  "stray-file",
  "database",
  "image",
  "gc-reference",
  "blob",
  "snapshot",
  "layer",
  "selinux",
  "source",
  "provenance",
] as const;
export type Rule = (typeof RULES)[number];

export interface Unproven {
  readonly what: string;
  readonly why: string;
  readonly count: number;
}

/** More would only repeat one cause. */
export const DIFFERENCES_SHOWN = 20;
const TEXT_MAX = 400;

export class Findings {
  readonly #differences: Difference[] = [];
  readonly #unproven = new Map<string, Unproven>();
  #count = 0;

  get differences(): readonly Difference[] {
    return this.#differences;
  }

  get count(): number {
    return this.#count;
  }

  get unproven(): readonly Unproven[] {
    return [...this.#unproven.values()];
  }

  add(rule: Rule, place: string, message: string): void {
    this.#count++;
    if (this.#differences.length >= DIFFERENCES_SHOWN) return;
    this.#differences.push({ place: cut(place), rule, message: cut(message) });
  }

  /** A value that should be another one. */
  differs(rule: Rule, place: string, what: string, found: unknown, wanted: unknown): void {
    this.add(rule, place, `${what} is ${show(found)}, should be ${show(wanted)}`);
  }

  /** Something that verification had to leave open: neither right nor wrong. */
  open(what: string, why: string, count = 1): void {
    const known = this.#unproven.get(`${what} ${why}`);
    this.#unproven.set(`${what} ${why}`, { what, why, count: (known?.count ?? 0) + count });
  }
}

function show(value: unknown): string {
  if (value === null || value === undefined) return "missing";
  return typeof value === "string" ? value : String(value);
}

/** A hostile volume may have names of any length. */
function cut(text: string): string {
  return text.length <= TEXT_MAX ? text : `${text.slice(0, TEXT_MAX)}…`;
}
