/** WWW-Authenticate headers (RFC 9110 11.6.1): several challenges, quoted strings, tokens. Anything unreadable ends the list. Pure. */

export interface Challenge {
  /** Lower case: "bearer", "basic". */
  readonly scheme: string;
  /** Names in lower case. */
  readonly parameters: Readonly<Record<string, string>>;
}

const TOKEN = /[!#$%&'*+\-.^_`|~0-9A-Za-z]+/y;
/** Longer than any honest one; a bound for what a hostile server makes us scan. */
const HEADER_MAX = 16 * 1024;

export function parseChallenges(header: string | undefined): Challenge[] {
  const challenges: Challenge[] = [];
  if (header === undefined || header.length > HEADER_MAX) return challenges;
  const scanner = new Scanner(header);
  let current: { scheme: string; parameters: Record<string, string> } | undefined;
  for (;;) {
    scanner.skip(/[\s,]+/y);
    const name = scanner.match(TOKEN);
    if (name === undefined) return challenges;
    const afterName = scanner.position;
    scanner.skip(/\s+/y);
    if (current !== undefined && scanner.match(/=(?!=*\s*(?:,|$))\s*/y) !== undefined) {
      const value = scanner.quoted() ?? scanner.match(/[^\s,"]+/y);
      if (value === undefined) return challenges;
      if (!Object.hasOwn(current.parameters, name.toLowerCase())) define(current.parameters, name.toLowerCase(), value);
      continue;
    }
    scanner.position = afterName;
    current = { scheme: name.toLowerCase(), parameters: {} };
    challenges.push(current);
    // a token68 credential ("Negotiate YII=") has no parameters
    scanner.match(/\s+[A-Za-z0-9\-._~+/]+=*(?=\s*(?:,|$))/y);
  }
}

function define(parameters: Record<string, string>, name: string, value: string): void {
  Object.defineProperty(parameters, name, { value, enumerable: true, configurable: true, writable: true });
}

class Scanner {
  readonly text: string;
  position = 0;

  constructor(text: string) {
    this.text = text;
  }

  match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.position;
    const found = pattern.exec(this.text);
    if (found === null) return undefined;
    this.position = pattern.lastIndex;
    return found[0];
  }

  skip(pattern: RegExp): void {
    this.match(pattern);
  }

  /** A quoted-string with its escapes undone. An unterminated one is none. */
  quoted(): string | undefined {
    const found = this.match(/"(?:[^"\\]|\\[\s\S])*"/y);
    return found?.slice(1, -1).replace(/\\([\s\S])/g, "$1");
  }
}

/** The challenge that we answer: bearer before basic (specs/containerd.md 13.1); digest is not spoken by any registry. */
export function pickChallenge(challenges: readonly Challenge[]): Challenge | undefined {
  return (
    challenges.find((one) => one.scheme === "bearer" && one.parameters.realm !== undefined) ??
    challenges.find((one) => one.scheme === "basic")
  );
}
