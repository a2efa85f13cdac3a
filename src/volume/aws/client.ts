/**
 * Signed calls to AWS services with the patience that they want (specs/warm-volume.md 9): throttling, failures, broken connections and expired credentials are met with another attempt after a
 * full-jitter back-off; every other refusal is an error at once. A body is sent again as the same bytes.
 */

import { createHash } from "node:crypto";
import type { Clock } from "../../base/clock.ts";
import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { MiB } from "../../base/limits.ts";
import { VERSION } from "../../base/version.ts";
import { PERMANENT } from "../../oci/registry/transport/retry.ts";
import { type AwsFault, awsError, readFault, remedy } from "./faults.ts";
import type { Http, HttpAnswer } from "./http.ts";
import type { Identity } from "./identity.ts";
import { Signer } from "./signature.ts";

export type AwsService = "ebs" | "ec2" | "ssm" | "sts" | "ecr";

/** How an attempt ended, for whoever sets the pace: "refused" says nothing about it. */
export type Outcome = "done" | "throttled" | "failed" | "refused";

export interface Pacer {
  /** Waits for leave to send. */
  begin(signal: AbortSignal | undefined): Promise<void>;
  end(outcome: Outcome): void;
}

export interface AwsCall {
  readonly service: AwsService;
  /** "PutSnapshotBlock": for messages. */
  readonly operation: string;
  readonly method: "GET" | "PUT" | "POST";
  readonly path: string;
  readonly query?: Readonly<Record<string, string | undefined>>;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: Uint8Array;
  /** Hex, of the body; made here where the caller does not know it. */
  readonly bodySha256?: string;
  /** The most that the answer may have. */
  readonly limit?: number;
  /** `limit` bytes to put it into. */
  readonly into?: Uint8Array;
  readonly attempts?: number;
  readonly pacer?: Pacer;
  /** True for a refusal that another attempt may mend. */
  readonly again?: (fault: AwsFault, status: number) => boolean;
  readonly signal?: AbortSignal | undefined;
}

export interface AwsParts {
  readonly http: Http;
  /** Undefined: calls are not signed. */
  readonly identity: Identity | undefined;
  readonly region: string;
  readonly endpoint: (service: AwsService) => URL;
  readonly clock: Clock;
  /** [0, 1), for the jitter of back-offs. */
  readonly random: () => number;
  readonly backoff?: { readonly baseMs: number; readonly maxMs: number };
}

const ATTEMPTS = 10;
const BACKOFF = { baseMs: 100, maxMs: 10_000 };
/** 512 KiB at 10 KB/s: slower is as good as broken. */
const DEADLINE_MS = 60_000;
const ANSWER_BYTES = 16 * MiB;
/** A clock that is further off than this is set by AWS's. */
const SKEW_MS = 60_000;

export class AwsClient {
  readonly region: string;
  /** Requests that were sent, those that were sent again among them. */
  requests = 0;
  retries = 0;
  readonly #parts: AwsParts;
  readonly #signers = new Map<AwsService, Signer>();
  #skewMs = 0;

  constructor(parts: AwsParts) {
    this.#parts = parts;
    this.region = parts.region;
  }

  /** Throws HS_AWS_DENIED, HS_AWS_REFUSED, HS_AWS_NOT_FOUND, HS_AWS_RATE, HS_AWS_UNAVAILABLE, HS_AWS_PROTOCOL, HS_AWS_CREDENTIALS; `details.fault` and `details.reason` are AWS's names. */
  async call(call: AwsCall): Promise<HttpAnswer> {
    const { clock, random } = this.#parts;
    const { baseMs, maxMs } = this.#parts.backoff ?? BACKOFF;
    const attempts = call.attempts ?? ATTEMPTS;
    const url = this.#url(call);
    const bodySha256 =
      call.bodySha256 ??
      createHash("sha256")
        .update(call.body ?? "")
        .digest("hex");
    let renewals = 0;
    for (let attempt = 1; ; attempt++) {
      const result = await this.#attempt(call, url, bodySha256);
      if ("answer" in result) return result.answer;
      const { error, act } = result;
      if (attempt >= attempts || act === "none") throw error;
      if (act === "fresh-credentials" && ++renewals > 2) throw error;
      this.retries++;
      if (act !== "skewed") await clock.sleep(random() * Math.min(maxMs, baseMs * 2 ** (attempt - 1)), call.signal);
    }
  }

  async #attempt(
    call: AwsCall,
    url: URL,
    bodySha256: string,
  ): Promise<{ answer: HttpAnswer } | { error: unknown; act: ReturnType<typeof remedy> }> {
    const { http, identity, clock } = this.#parts;
    const { method, body, into, pacer, signal } = call;
    const what = `${call.operation} at ${url.host}`;
    const credentials = await identity?.get(signal);
    await pacer?.begin(signal);
    let outcome: Outcome = "failed";
    try {
      const plain = { "user-agent": `headstart/${VERSION}`, ...call.headers };
      const headers =
        credentials === undefined
          ? plain
          : this.#signer(call.service).sign(
              { method, url, bodySha256, headers: plain },
              credentials,
              clock.now() + this.#skewMs,
            );
      this.requests++;
      const limit = call.limit ?? ANSWER_BYTES;
      const answer = await http.exchange({ method, url, headers, body, limit, into, deadlineMs: DEADLINE_MS, signal });
      if (answer.status >= 200 && answer.status < 300) {
        outcome = "done";
        return { answer };
      }
      const fault = readFault(answer.header("x-amzn-errortype"), answer.body);
      let act = remedy(answer.status, fault);
      outcome = act === "slower" ? "throttled" : act === "again" ? "failed" : "refused";
      if (act === "fresh-credentials" || act === "skewed") {
        if (this.#setClock(answer)) act = "skewed";
        else if (credentials !== undefined && identity?.forget(credentials)) act = "fresh-credentials";
        else act = "none";
      }
      if (act === "none" && call.again?.(fault, answer.status)) act = "again";
      return { error: awsError(what, answer.status, fault, credentials), act };
    } catch (error) {
      if (!isHeadstartError(error, "HS_AWS_UNAVAILABLE")) throw error;
      const named = new HeadstartError("HS_AWS_UNAVAILABLE", {
        what: call.operation,
        reason: error.details.reason,
        cause: error,
      });
      return { error: named, act: PERMANENT.has(String(error.details.reason)) ? "none" : "again" };
    } finally {
      pacer?.end(outcome);
    }
  }

  /** True when the answer's date shows that our clock was wrong. */
  #setClock(answer: HttpAnswer): boolean {
    const theirs = Date.parse(answer.header("date") ?? "");
    const ours = this.#parts.clock.now() + this.#skewMs;
    if (Number.isNaN(theirs) || Math.abs(theirs - ours) < SKEW_MS) return false;
    this.#skewMs += theirs - ours;
    return true;
  }

  #url(call: AwsCall): URL {
    const url = new URL(this.#parts.endpoint(call.service));
    url.pathname = `${url.pathname.replace(/\/$/, "")}${call.path}`;
    for (const [name, value] of Object.entries(call.query ?? {})) {
      if (value !== undefined) url.searchParams.set(name, value);
    }
    return url;
  }

  #signer(service: AwsService): Signer {
    let signer = this.#signers.get(service);
    if (signer === undefined) {
      signer = new Signer(this.region, service);
      this.#signers.set(service, signer);
    }
    return signer;
  }
}
