/** Checked access to YAML, TOML and JSON documents that users wrote: what is there of the wrong type is an error that says where. */

import { HeadstartError } from "../../base/errors.ts";

export class Document {
  readonly #value: unknown;
  /** File and path, for messages. */
  readonly where: string;

  constructor(value: unknown, where: string) {
    this.#value = value;
    this.where = where;
  }

  /** A field, however deep; one that is not there is an empty document. Throws HS_MALFORMED where a step on the way is no object. */
  at(...path: readonly string[]): Document {
    let value = this.#value;
    let { where } = this;
    for (const name of path) {
      if (value === undefined || value === null) return new Document(undefined, where);
      if (typeof value !== "object" || Array.isArray(value)) throw malformed(where, "is no object");
      value = Object.hasOwn(value, name) ? (value as Readonly<Record<string, unknown>>)[name] : undefined;
      where = `${where}${where.endsWith(": ") ? "" : "."}${name}`;
    }
    return new Document(value, where);
  }

  get isThere(): boolean {
    return this.#value !== undefined && this.#value !== null;
  }

  /** Throws HS_MALFORMED, as all below. */
  text(): string | undefined {
    if (!this.isThere) return undefined;
    if (typeof this.#value !== "string") throw malformed(this.where, "is no text");
    return this.#value;
  }

  /** A number, or a text that is one (Bottlerocket's settings are texts). */
  number(): number | undefined {
    if (!this.isThere) return undefined;
    const value = typeof this.#value === "bigint" ? Number(this.#value) : this.#value;
    const number = typeof value === "string" && /^\d+(\.\d+)?$/.test(value) ? Number(value) : value;
    if (typeof number !== "number" || !Number.isFinite(number)) throw malformed(this.where, "is no number");
    return number;
  }

  flag(): boolean | undefined {
    if (!this.isThere) return undefined;
    if (typeof this.#value !== "boolean") throw malformed(this.where, "is neither true nor false");
    return this.#value;
  }

  list(): Document[] {
    if (!this.isThere) return [];
    if (!Array.isArray(this.#value)) throw malformed(this.where, "is no list");
    return this.#value.map((each, index) => new Document(each, `${this.where}[${index}]`));
  }

  /** Names of an object's fields. */
  names(): string[] {
    if (!this.isThere) return [];
    if (typeof this.#value !== "object" || Array.isArray(this.#value)) throw malformed(this.where, "is no object");
    return Object.keys(this.#value as object);
  }

  get isObject(): boolean {
    return typeof this.#value === "object" && this.#value !== null && !Array.isArray(this.#value);
  }
}

function malformed(where: string, message: string): HeadstartError {
  return new HeadstartError("HS_DOCTOR_INPUT", { what: `${where} ${message}` });
}
