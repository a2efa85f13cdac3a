/**
 * containerd's filter expressions (specs/containerd.md 2.3): `path`, `path==v`, `path!=v`, `path~=regex`, selectors of one expression joined by ","
 * (and), expressions of a list joined by "or". A path is a chain of fields joined by "."; fields and values may be quoted: "…" anywhere, /…/ and |…|
 * for the value behind ~=. Pure; every error is HS_FILTER.
 * Regular expressions come from any client of containerd, so they run in V8's linear-time engine: none can make us hang. What that engine or
 * JavaScript cannot do as Go does (back-references, [[:classes:]], \A, \z, \pL) is refused, not guessed.
 */

import { setFlagsFromString } from "node:v8";
import { HeadstartError } from "../base/errors.ts";

/** What a filter looks at: the value at a path, or undefined when there is none. */
export type Fields = (path: readonly string[]) => string | undefined;
export type Filter = (fields: Fields) => boolean;

/** containerd itself sends about 150 characters; a client's filter of this size is no filter. */
const EXPRESSION_CHARACTERS_MAX = 16_384;
const EXPRESSIONS_MAX = 1024;
const REGEX_CHARACTERS_MAX = 1024;

setFlagsFromString("--enable-experimental-regexp-engine");

export interface FilterSet {
  readonly matches: Filter;
  /** The value that everything which matches has at this path, where the filter says so: lets a store use an index. */
  required(path: readonly string[]): string | undefined;
}

/** Any of the expressions; everything when there are none. Throws HS_FILTER. */
export function parseFilters(expressions: readonly string[]): FilterSet {
  if (expressions.length > EXPRESSIONS_MAX) throw invalid("", 0, `more than ${EXPRESSIONS_MAX} expressions`);
  const filters = expressions.map(parseExpression);
  const matches: Filter = (fields) =>
    filters.some((selectors) => selectors.every((selector) => selector.matches(fields)));
  return {
    matches: filters.length === 0 ? () => true : matches,
    required(path) {
      if (filters.length !== 1) return undefined;
      return (
        filters[0]!.find((selector) => selector.equals !== null && samePath(selector.path, path))?.equals ?? undefined
      );
    },
  };
}

interface Selector {
  readonly path: readonly string[];
  /** The value of an `==`. */
  readonly equals: string | null;
  readonly matches: Filter;
}

/** A label's key may be written as one quoted field or as several with dots between. */
function samePath([first, ...rest]: readonly string[], [otherFirst, ...otherRest]: readonly string[]): boolean {
  return first === otherFirst && rest.join(".") === otherRest.join(".");
}

/** The selectors of one expression, all of which must match; none for the empty one. */
function parseExpression(expression: string): Selector[] {
  if (expression === "") return [];
  if (expression.length > EXPRESSION_CHARACTERS_MAX) {
    throw invalid("", 0, `longer than ${EXPRESSION_CHARACTERS_MAX} characters`);
  }
  const scanner = new Scanner(expression);
  const selectors = [parseSelector(scanner)];
  while (!scanner.atEnd()) {
    if (!scanner.accept(",")) throw scanner.invalid("a comma expected");
    selectors.push(parseSelector(scanner));
  }
  return selectors;
}

function parseSelector(scanner: Scanner): Selector {
  const path = [scanner.field()];
  while (scanner.accept(".")) path.push(scanner.field());
  if (scanner.atEnd() || scanner.peek() === ",") {
    return { path, equals: null, matches: (fields) => fields(path) !== undefined };
  }
  const operator = scanner.operator();
  const value = scanner.value(operator === "~=");
  switch (operator) {
    case "==":
      return { path, equals: value, matches: (fields) => fields(path) === value };
    case "!=":
      return { path, equals: null, matches: (fields) => (fields(path) ?? "") !== value };
    case "~=": {
      const regex = compile(value, scanner);
      return { path, equals: null, matches: (fields) => regex.test(fields(path) ?? "") };
    }
    default:
      throw scanner.invalid(`unknown operator ${operator}: ==, != or ~= expected`);
  }
}

class Scanner {
  readonly #text: string;
  #position = 0;

  constructor(text: string) {
    this.#text = text;
  }

  peek(): string {
    return this.#text[this.#position] ?? "";
  }

  atEnd(): boolean {
    return this.#position >= this.#text.length;
  }

  accept(character: string): boolean {
    if (this.peek() !== character) return false;
    this.#position++;
    return true;
  }

  field(): string {
    this.#skipBlanks();
    if (this.peek() === '"') return this.#quoted('"');
    const name = this.#take(/[A-Za-z0-9_-]+/y);
    if (name === "") throw this.invalid("a field name or a quoted one expected");
    return name;
  }

  operator(): string {
    this.#skipBlanks();
    const operator = this.#take(/[=!~]+/y);
    if (operator === "") throw this.invalid("an operator (==, !=, ~=) expected");
    return operator;
  }

  value(alternativeQuotes: boolean): string {
    this.#skipBlanks();
    const quote = this.peek();
    if (quote === '"' || (alternativeQuotes && (quote === "/" || quote === "|"))) return this.#quoted(quote);
    // the same characters are quotes for containerd's scanner, which then refuses them: so do we
    if (quote === "/" || quote === "|") throw this.invalid(`${quote} quotes only a regular expression`);
    const value = this.#take(/[^\s,=!~."/|\0][^\s,\0]*/y);
    if (value === "") throw this.invalid("a value or a quoted one expected");
    return value;
  }

  /** A Go string literal with `quote` as its delimiter. */
  #quoted(quote: string): string {
    const start = this.#position++;
    let value = "";
    while (!this.accept(quote)) {
      const character = this.peek();
      if (character === "" || character === "\n") {
        this.#position = start;
        throw this.invalid("the quoted text does not end");
      }
      this.#position++;
      value += character === "\\" ? this.#escape(quote) : character;
    }
    return value;
  }

  #escape(quote: string): string {
    const character = this.peek();
    this.#position++;
    if (character === quote || character === "\\") return character;
    const simple = SIMPLE_ESCAPES[character];
    if (simple !== undefined) return simple;
    const digits = HEX_DIGITS[character];
    if (digits !== undefined) return this.#code(this.#digits(/[0-9a-fA-F]/y, digits), 16);
    this.#position--;
    if (/[0-7]/.test(character)) return this.#code(this.#digits(/[0-7]/y, 3), 8);
    throw this.invalid("unknown escape");
  }

  #digits(digit: RegExp, count: number): string {
    let digits = "";
    for (let index = 0; index < count; index++) {
      const next = this.#take(digit);
      if (next === "") throw this.invalid(`an escape of ${count} digits expected`);
      digits += next;
    }
    return digits;
  }

  #code(digits: string, base: number): string {
    const code = Number.parseInt(digits, base);
    // names and labels are UTF-8: bytes that are no character of their own, and surrogates, cannot be in them
    const isByte = digits.length <= 3;
    if (code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff) || (isByte && code > 0x7f)) {
      throw this.invalid("the escape is not a character");
    }
    return String.fromCodePoint(code);
  }

  #skipBlanks(): void {
    this.#take(/\s+/y);
  }

  #take(pattern: RegExp): string {
    pattern.lastIndex = this.#position;
    const taken = pattern.exec(this.#text)?.[0] ?? "";
    this.#position += taken.length;
    return taken;
  }

  invalid(message: string): HeadstartError {
    return invalid(this.#text, this.#position, message);
  }
}

const SIMPLE_ESCAPES: Readonly<Record<string, string>> = {
  a: "\x07",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
  v: "\v",
};
const HEX_DIGITS: Readonly<Record<string, number>> = { x: 2, u: 4, U: 8 };

function compile(pattern: string, scanner: Scanner): RegExp {
  if (pattern.length > REGEX_CHARACTERS_MAX) {
    throw scanner.invalid(`a regular expression longer than ${REGEX_CHARACTERS_MAX} characters`);
  }
  const differing = /\[\[:|\\(?:[^dDwWsSbBtnrfvx\W_]|_|$)|\(\?(?!:|<[A-Za-z])/.exec(pattern.replaceAll("\\\\", "__"));
  if (differing !== null) throw scanner.invalid(`"${differing[0]}" is not supported in a regular expression`);
  try {
    return new RegExp(pattern, "l");
  } catch (error) {
    throw scanner.invalid(`bad regular expression: ${(error as Error).message}`);
  }
}

function invalid(expression: string, position: number, message: string): HeadstartError {
  const shown = expression.length > 200 ? `${expression.slice(0, 200)}…` : expression;
  return new HeadstartError("HS_FILTER", {
    what: `filter ${JSON.stringify(shown)}, character ${position}: ${message}`,
  });
}
