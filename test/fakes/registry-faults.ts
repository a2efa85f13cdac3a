/** What the fake registry can do wrong with one answer, and how bytes are sent: whole, in part, slowly, not at all. */

import type { ServerResponse } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { gzipSync } from "node:zlib";

export type Fault =
  /** Another status, at once. */
  | {
      readonly kind: "status";
      readonly status: number;
      readonly headers?: Record<string, string>;
      readonly body?: string;
    }
  /** The connection is closed without an answer. */
  | { readonly kind: "reset" }
  /** The connection breaks after so many bytes of the body. */
  | { readonly kind: "break"; readonly after: number }
  /** Chunked encoding that ends properly, but too early: nothing but a count can tell. */
  | { readonly kind: "short"; readonly by: number }
  /** Silence after so many bytes of the body. */
  | { readonly kind: "stall"; readonly after: number }
  /** A 206 for other bytes, and it says so. */
  | { readonly kind: "shift"; readonly by: number }
  /** The right bytes under a Content-Range that is not true. */
  | { readonly kind: "content-range"; readonly value: string | undefined }
  /** 200 and the whole blob. */
  | { readonly kind: "whole" }
  /** Content-Encoding: gzip. */
  | { readonly kind: "gzip" }
  /** One byte of the body (this one) has one bit wrong. */
  | { readonly kind: "flip"; readonly at: number };

export interface FaultRule {
  /** Only requests whose `METHOD /path` contains this. */
  readonly match?: string | RegExp;
  /** How often; default 1. */
  times?: number;
  /** Where: at the registry itself (default) or where redirects lead. */
  readonly at?: "registry" | "storage";
  readonly fault: Fault;
}

/** Shares a rate among all answers of a server. */
export class Pace {
  bytesPerSecond: number;
  #freeAt = 0;

  constructor(bytesPerSecond: number) {
    this.bytesPerSecond = bytesPerSecond;
  }

  async take(bytes: number): Promise<void> {
    const now = performance.now();
    const start = Math.max(now, this.#freeAt);
    this.#freeAt = start + (bytes / this.bytesPerSecond) * 1000;
    if (this.#freeAt - now > 2) await sleep(this.#freeAt - now);
  }
}

const PIECE = 16 * 1024;

/** Sends a blob or a part of it as the range header and the fault say. Returns the bytes of body that went out. */
export async function sendBytes(
  response: ServerResponse,
  bytes: Uint8Array,
  options: {
    readonly range: string | undefined;
    readonly headers: Record<string, string>;
    readonly fault: Fault | undefined;
    readonly pace: Pace | undefined;
    readonly head: boolean;
  },
): Promise<number> {
  const { fault } = options;
  const headers: Record<string, string | number> = { ...options.headers };
  let range = fault?.kind === "whole" ? undefined : parseRange(options.range, bytes.byteLength);
  if (range === "unsatisfiable") {
    response.writeHead(416, { "content-range": `bytes */${bytes.byteLength}` }).end();
    return 0;
  }
  if (range !== undefined && fault?.kind === "shift") {
    range = { start: range.start + fault.by, end: Math.min(bytes.byteLength, range.end + fault.by) };
  }
  let body = range === undefined ? bytes : bytes.subarray(range.start, range.end);
  if (range !== undefined) headers["content-range"] = `bytes ${range.start}-${range.end - 1}/${bytes.byteLength}`;
  if (fault?.kind === "content-range") {
    delete headers["content-range"];
    if (fault.value !== undefined) headers["content-range"] = fault.value;
  }
  if (fault?.kind === "flip" && body.byteLength > 0) {
    body = Uint8Array.from(body);
    body[fault.at % body.byteLength]! ^= 1;
  }
  if (fault?.kind === "gzip") {
    body = gzipSync(body);
    headers["content-encoding"] = "gzip";
  }
  if (fault?.kind === "short") body = body.subarray(0, Math.max(0, body.byteLength - fault.by));
  else headers["content-length"] = body.byteLength;
  response.writeHead(range === undefined ? 200 : 206, headers);
  if (options.head) {
    response.end();
    return 0;
  }
  return writeBody(response, body, fault, options.pace);
}

async function writeBody(
  response: ServerResponse,
  body: Uint8Array,
  fault: Fault | undefined,
  pace: Pace | undefined,
): Promise<number> {
  const stop =
    fault?.kind === "break" || fault?.kind === "stall" ? Math.min(fault.after, body.byteLength) : body.byteLength;
  let sent = 0;
  const piece = pace === undefined ? 1024 * 1024 : PIECE;
  while (sent < stop && !response.destroyed) {
    const chunk = body.subarray(sent, Math.min(stop, sent + piece));
    await pace?.take(chunk.byteLength);
    sent += chunk.byteLength;
    if (!response.write(chunk)) await drained(response);
  }
  if (fault?.kind === "break") {
    await sleep(20); // lets what was written arrive before the reset
    response.destroy();
  } else if (fault?.kind === "stall") response.flushHeaders();
  else response.end();
  return sent;
}

async function drained(response: ServerResponse): Promise<void> {
  if (response.destroyed) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  response.once("drain", resolve);
  response.once("close", resolve);
  await promise;
  response.off("drain", resolve);
  response.off("close", resolve);
}

export function parseRange(
  text: string | undefined,
  size: number,
): { start: number; end: number } | "unsatisfiable" | undefined {
  const match = /^bytes=(\d*)-(\d*)$/.exec(text ?? "");
  if (match === null || (match[1] === "" && match[2] === "")) return undefined;
  if (match[1] === "") return { start: Math.max(0, size - Number(match[2])), end: size };
  const start = Number(match[1]);
  if (start >= size) return "unsatisfiable";
  return { start, end: match[2] === "" ? size : Math.min(size, Number(match[2]) + 1) };
}
