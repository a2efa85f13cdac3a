/** Content-Range of a 206 (RFC 9110 14.4), checked number by number against what was asked for. Pure. */

import { HeadstartError } from "../../base/errors.ts";

export interface ContentRange {
  readonly start: number;
  /** Exclusive. */
  readonly end: number;
  /** undefined: the server does not say. */
  readonly total: number | undefined;
}

export function parseContentRange(text: string | undefined): ContentRange | undefined {
  const match = /^\s*bytes[ =](\d{1,16})-(\d{1,16})\/(\d{1,16}|\*)\s*$/i.exec(text ?? "");
  if (match === null) return undefined;
  const start = Number(match[1]);
  const end = Number(match[2]) + 1;
  const total = match[3] === "*" ? undefined : Number(match[3]);
  if (![start, end, total ?? 0].every(Number.isSafeInteger) || end <= start || end > (total ?? end)) return undefined;
  return { start, end, total };
}

/**
 * Where the body of a 206 ends: at most at `wanted.end`; a server may give less and is asked again for the rest. Throws HS_REGISTRY_RANGE for
 * other bytes than were asked for, HS_SIZE_MISMATCH when the blob has another size than its descriptor says.
 */
export function checkContentRange(
  header: string | undefined,
  wanted: { readonly start: number; readonly end: number; readonly size: number },
  what: string,
): number {
  const got = parseContentRange(header);
  const asked = `bytes ${wanted.start}-${wanted.end - 1}/${wanted.size}`;
  if (got === undefined) {
    const shown = header === undefined ? "no Content-Range" : `Content-Range ${JSON.stringify(header.slice(0, 80))}`;
    throw new HeadstartError("HS_REGISTRY_RANGE", { what: `${what}: asked for ${asked}, got ${shown}` });
  }
  if (got.total !== undefined && got.total !== wanted.size) {
    throw new HeadstartError("HS_SIZE_MISMATCH", {
      what: `${what}: the registry has ${got.total} bytes, the descriptor says ${wanted.size}`,
      got: got.total,
      want: wanted.size,
    });
  }
  if (got.start !== wanted.start || got.end > wanted.end) {
    throw new HeadstartError("HS_REGISTRY_RANGE", {
      what: `${what}: asked for ${asked}, got bytes ${got.start}-${got.end - 1}/${got.total ?? "*"}`,
    });
  }
  return got.end;
}
