/**
 * Checked reading of small JSON documents: bytes in, values of known type out, or an error that names the field. Unknown fields
 * are left alone. Knows JSON, not images.
 */

import { HeadstartError } from "../base/errors.ts";

export type JsonObject = { readonly [key: string]: unknown };

const decoder = new TextDecoder("utf-8", { fatal: true });

/** Parses UTF-8 JSON of at most `limit` bytes (a byte order mark is skipped). Throws HS_LIMIT, HS_MANIFEST. */
export function parseJson(bytes: Uint8Array, what: string, limit: number): JsonObject {
  if (bytes.byteLength > limit) {
    throw new HeadstartError("HS_LIMIT", { what: `${what}: ${bytes.byteLength} bytes, at most ${limit} are read` });
  }
  let value: unknown;
  try {
    value = JSON.parse(decoder.decode(bytes));
  } catch (cause) {
    throw new HeadstartError("HS_MANIFEST", { what: `${what}: not JSON in UTF-8`, cause });
  }
  return asObject(value, what);
}

export function asObject(value: unknown, what: string): JsonObject {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw wrong(what, "an object", value);
  return value as JsonObject;
}

export function wrong(what: string, wanted: string, got: unknown): HeadstartError {
  const shown = got === undefined ? "missing" : (JSON.stringify(got)?.slice(0, 100) ?? typeof got);
  return new HeadstartError("HS_MANIFEST", { what: `${what}: ${wanted} wanted, got ${shown}` });
}

/** The own field `key`; null counts as absent, as Go's encoding/json has it. */
export function field(object: JsonObject, key: string): unknown {
  return Object.hasOwn(object, key) ? (object[key] ?? undefined) : undefined;
}

export function optionalString(object: JsonObject, key: string, what: string): string | undefined {
  const value = field(object, key);
  if (value !== undefined && typeof value !== "string") throw wrong(`${what}.${key}`, "a string", value);
  return value;
}

export function requiredString(object: JsonObject, key: string, what: string): string {
  const value = optionalString(object, key, what);
  if (value === undefined || value === "") throw wrong(`${what}.${key}`, "a string", value);
  return value;
}

export function optionalArray(object: JsonObject, key: string, what: string, limit: number): readonly unknown[] {
  const value = field(object, key) ?? [];
  if (!Array.isArray(value)) throw wrong(`${what}.${key}`, "an array", value);
  if (value.length > limit) {
    throw new HeadstartError("HS_LIMIT", {
      what: `${what}.${key}: ${value.length} entries, at most ${limit} are read`,
    });
  }
  return value;
}

export function stringArray(object: JsonObject, key: string, what: string, limit: number): readonly string[] {
  return optionalArray(object, key, what, limit).map((value, index) => {
    if (typeof value !== "string") throw wrong(`${what}.${key}[${index}]`, "a string", value);
    return value;
  });
}

/** A map of strings; undefined when absent or empty. */
export function stringMap(object: JsonObject, key: string, what: string): Readonly<Record<string, string>> | undefined {
  const value = field(object, key);
  if (value === undefined) return undefined;
  const entries = Object.entries(asObject(value, `${what}.${key}`));
  for (const [name, text] of entries) {
    if (typeof text !== "string") throw wrong(`${what}.${key}[${JSON.stringify(name)}]`, "a string", text);
  }
  return entries.length === 0 ? undefined : (Object.fromEntries(entries) as Record<string, string>);
}

/** Drops the keys whose value is undefined, so that objects fit exact optional properties. */
export function defined<T extends object>(object: { [K in keyof T]: T[K] | undefined }): T {
  for (const key of Object.keys(object) as (keyof T)[]) if (object[key] === undefined) delete object[key];
  return object as T;
}
