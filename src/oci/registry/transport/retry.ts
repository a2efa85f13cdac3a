/**
 * Wraps a transport: answers that may pass (408, 429, most 5xx) and broken connections are tried again after a back-off with jitter, or
 * after what Retry-After says. The policy is data, the loop is here. Bodies that break later are the reader's business (blob.ts).
 */

import type { Clock } from "../../../base/clock.ts";
import { isHeadstartError } from "../../../base/errors.ts";
import type { Patience, Transport, TransportRequest, TransportResponse } from "./transport.ts";

export interface RetryPolicy {
  /** Sends in all, by patience. containerd: 5 in total, and only one where another host can be asked. */
  readonly attempts: Readonly<Record<Patience, number>>;
  readonly baseMs: number;
  readonly maxMs: number;
  /** A server that wants more patience than this gets its answer reported instead. */
  readonly retryAfterMaxMs: number;
}

export const DEFAULT_RETRY: RetryPolicy = {
  attempts: { full: 5, quick: 2, none: 1 },
  baseMs: 200,
  maxMs: 10_000,
  retryAfterMaxMs: 60_000,
};

export interface RetryParts {
  readonly clock: Clock;
  /** [0, 1) */
  readonly random: () => number;
  readonly policy?: RetryPolicy;
}

export function isRetryableStatus(status: number): boolean {
  return status === 408 || status === 429 || (status >= 500 && status !== 501 && status !== 505);
}

/** Milliseconds to wait from `now`, from seconds or an HTTP date (RFC 9110 10.2.3), or undefined. */
export function parseRetryAfter(text: string | undefined, now: number): number | undefined {
  if (text === undefined) return undefined;
  if (/^\s*\d{1,9}\s*$/.test(text)) return Number(text) * 1000;
  if (!/^\s*(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)/i.test(text)) return undefined;
  const date = Date.parse(text);
  return Number.isNaN(date) ? undefined : Math.max(0, date - now);
}

/** Exponential, with full jitter over the upper half: many clients that failed together do not come back together. */
export function backoffMs(attempt: number, policy: RetryPolicy, random: () => number): number {
  const ceiling = Math.min(policy.maxMs, policy.baseMs * 2 ** attempt);
  return ceiling / 2 + (ceiling / 2) * random();
}

export function withRetry(inner: Transport, parts: RetryParts): Transport {
  const policy = parts.policy ?? DEFAULT_RETRY;
  return {
    async send(request: TransportRequest): Promise<TransportResponse> {
      const replayable = request.body === undefined || request.body instanceof Uint8Array;
      const attempts = replayable ? policy.attempts[request.patience ?? "full"] : 1;
      for (let attempt = 0; ; attempt++) {
        const last = attempt + 1 >= attempts;
        let waitMs = backoffMs(attempt, policy, parts.random);
        try {
          const response = await inner.send(request);
          if (last || !isRetryableStatus(response.status)) return response;
          const asked = parseRetryAfter(response.header("retry-after"), parts.clock.now());
          if (asked !== undefined && asked > policy.retryAfterMaxMs) return response;
          waitMs = Math.max(asked ?? 0, waitMs);
          await response.discard();
        } catch (error) {
          if (last || !isHeadstartError(error, "HS_REGISTRY_UNAVAILABLE")) throw error;
          // a name that does not exist or a certificate that is not trusted does not mend within seconds
          if (PERMANENT.has(String(error.details.reason))) throw error;
        }
        await parts.clock.sleep(waitMs, request.signal);
      }
    },
  };
}

/** Of broken connections: what does not mend within minutes. */
export const PERMANENT: ReadonlySet<string> = new Set([
  "ENOTFOUND",
  "ERR_INVALID_URL",
  "CERT_HAS_EXPIRED",
  "DEPTH_ZERO_SELF_SIGNED_CERT",
  "SELF_SIGNED_CERT_IN_CHAIN",
  "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
  "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
  "ERR_TLS_CERT_ALTNAME_INVALID",
  "ERR_SSL_WRONG_VERSION_NUMBER",
  "ERR_SSL_PACKET_LENGTH_TOO_LONG",
]);
