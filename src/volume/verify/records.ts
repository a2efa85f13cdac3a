/** Reads the records of containerd's databases strictly: what is missing, of another form or not known becomes a difference, named by its place. */

import type { Digest } from "../../base/digest.ts";
import { isDigest } from "../../base/digest.ts";
import { type Bucket, isBucket } from "../bolt/ondisk.ts";
import { readUvarint, uvarint } from "../containerd-db.ts";
import type { Findings, Rule } from "./findings.ts";

const NONE: Bucket = { sequence: 0, entries: new Map() };
const TIME_BYTES = 15;
/** From year 1 to 1970. */
const GO_EPOCH_SECONDS = 62_135_596_800n;

/** One bucket of a known form. Every getter that finds nothing, or nonsense, says so once and gives null. */
export class RecordReader {
  readonly place: string;
  readonly #bucket: Bucket;
  readonly #findings: Findings;
  readonly #rule: Rule;
  readonly #asked = new Set<string>();

  constructor(bucket: Bucket, place: string, findings: Findings, rule: Rule = "database") {
    this.#bucket = bucket;
    this.place = place;
    this.#findings = findings;
    this.#rule = rule;
  }

  get sequence(): number {
    return this.#bucket.sequence;
  }

  get keys(): IterableIterator<string> {
    return this.#bucket.entries.keys();
  }

  has(name: string): boolean {
    return this.#bucket.entries.has(name);
  }

  /** The bucket `name`; an empty one, and a difference, when there is none. */
  bucket(name: string): RecordReader {
    return this.optionalBucket(name) ?? this.#missing(name, "bucket");
  }

  optionalBucket(name: string): RecordReader | null {
    this.#asked.add(name);
    const value = this.#bucket.entries.get(name);
    if (value === undefined) return null;
    if (isBucket(value)) return new RecordReader(value, `${this.place}/${printable(name)}`, this.#findings, this.#rule);
    return this.#missing(name, "bucket");
  }

  /** All that is in it as buckets. */
  buckets(): [name: string, RecordReader][] {
    return [...this.keys].map((name) => [name, this.bucket(name)]);
  }

  bytes(name: string): Uint8Array | null {
    if (!this.has(name)) this.#missing(name, "value");
    return this.optionalBytes(name);
  }

  optionalBytes(name: string): Uint8Array | null {
    this.#asked.add(name);
    const value = this.#bucket.entries.get(name);
    if (value === undefined) return null;
    if (!isBucket(value)) return value;
    this.#missing(name, "value");
    return null;
  }

  text(name: string): string | null {
    const value = this.bytes(name);
    return value === null ? null : Buffer.from(value).toString();
  }

  optionalText(name: string): string | null {
    const value = this.optionalBytes(name);
    return value === null ? null : Buffer.from(value).toString();
  }

  digest(name: string): Digest | null {
    const text = this.text(name);
    if (text === null || isDigest(text)) return text;
    this.wrong(name, `${JSON.stringify(text.slice(0, 100))} is no digest`);
    return null;
  }

  /** A number that is not negative, as Go's PutUvarint writes it. */
  uvarint(name: string): number | null {
    const value = this.bytes(name);
    return value === null ? null : this.#number(name, value);
  }

  /** A number that is not negative, as Go's PutVarint (zig-zag) writes it. */
  varint(name: string): number | null {
    const doubled = this.uvarint(name);
    if (doubled === null || doubled % 2 === 0) return doubled === null ? null : doubled / 2;
    this.wrong(name, "a negative number");
    return null;
  }

  /** Go's time.MarshalBinary in UTC: nanoseconds since 1970. */
  time(name: string): bigint | null {
    const value = this.bytes(name);
    if (value === null) return null;
    const view = new DataView(value.buffer, value.byteOffset, value.byteLength);
    if (value.byteLength === TIME_BYTES && value[0] === 1 && view.getInt16(13) === -1) {
      const nanoseconds = view.getInt32(9);
      const seconds = view.getBigInt64(1) - GO_EPOCH_SECONDS;
      // containerd writes the time of its clock, or of a build: within what 64 bits of nanoseconds hold
      if (nanoseconds >= 0 && nanoseconds < 1e9 && seconds >= 0n && seconds < 2n ** 33n) {
        return seconds * 1_000_000_000n + BigInt(nanoseconds);
      }
    }
    this.wrong(name, `${Buffer.from(value).toString("hex").slice(0, 60)} is no time in UTC`);
    return null;
  }

  /** The texts of a bucket `labels`; empty when there is none. */
  labels(): Map<string, string> {
    const reader = this.optionalBucket("labels");
    if (reader === null) return new Map();
    const labels = new Map([...reader.keys].map((name) => [name, reader.text(name) ?? ""]));
    reader.finish();
    return labels;
  }

  wrong(name: string, message: string): void {
    this.#findings.add(this.#rule, `${this.place}/${printable(name)}`, message);
  }

  /** Says what no getter has asked for. */
  finish(sequence: "zero" | "any" = "zero"): void {
    for (const name of this.keys) if (!this.#asked.has(name)) this.wrong(name, "is not known here");
    if (sequence === "zero" && this.sequence !== 0) {
      this.#findings.add(this.#rule, this.place, `its sequence is ${this.sequence}, should be 0`);
    }
  }

  #number(name: string, value: Uint8Array): number | null {
    const number = readUvarint(value);
    if (number !== null && uvarint(number).byteLength === value.byteLength) return number;
    this.wrong(name, `${Buffer.from(value).toString("hex").slice(0, 60)} is no number`);
    return null;
  }

  #missing(name: string, what: "bucket" | "value"): RecordReader {
    this.wrong(name, `no such ${what}`);
    return new RecordReader(NONE, `${this.place}/${printable(name)}`, this.#findings, this.#rule);
  }
}

/** Keys are bytes, one char each. */
export function printable(name: string): string {
  return /^[\x20-\x7e]*$/.test(name) ? name : `0x${Buffer.from(name, "latin1").toString("hex")}`;
}
