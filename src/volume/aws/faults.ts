/**
 * The border between AWS's answers and our errors: reads what a service says in its own way (REST-JSON, JSON by target, XML), sorts it by what a client does about it, and makes the error. What a
 * service says may quote the request, session token and all, so whatever is ours and secret is cut out of it.
 */

import { type ErrorCode, HeadstartError } from "../../base/errors.ts";
import type { AwsCredentials } from "./signature.ts";
import { descendants, parseXml, textOf } from "./xml.ts";

export interface AwsFault {
  /** "ValidationException", "InvalidSnapshot.NotFound", or "" where a proxy answered. */
  readonly code: string;
  /** EBS says one: "INVALID_BLOCK". */
  readonly reason: string | undefined;
  readonly message: string;
}

/** What a client does: "again" later, "slower", with "fresh-credentials", with the clock set ("skewed"), or nothing. */
export type Remedy = "again" | "slower" | "fresh-credentials" | "skewed" | "none";

const SLOWER =
  /^(?:RequestThrottled(?:Exception)?|Throttling(?:Exception)?|(?:EC2)?ThrottledException|RequestLimitExceeded|TooManyRequestsException|SlowDown|ConcurrentLimitExceededException|BandwidthLimitExceeded|PriorRequestNotComplete|ProvisionedThroughputExceededException|TransactionInProgressException)$/;
const EXPIRED = /^(?:ExpiredToken(?:Exception)?|RequestExpired|TokenRefreshRequired)$/;
const SKEWED =
  /^(?:RequestTimeTooSkewed|RequestInTheFuture|AuthFailure|SignatureDoesNotMatch|InvalidSignatureException)$/;
const AGAIN =
  /^(?:InternalServerException|InternalServerError|InternalError|InternalFailure|ServiceUnavailable(?:Exception)?|Unavailable|RequestTimeout(?:Exception)?|IDPCommunicationError)$/;
/** Reasons of EBS's ValidationException: the bytes did not come in time; an earlier put of the same bytes, whose answer was lost, is not over. */
const AGAIN_REASONS: ReadonlySet<string> = new Set(["WRITE_REQUEST_TIMEOUT", "CONFLICTING_BLOCK_UPDATE"]);
const DENIED =
  /^(?:AccessDenied(?:Exception)?|UnauthorizedOperation|AuthFailure|UnrecognizedClientException|InvalidClientTokenId|SignatureDoesNotMatch|InvalidSignatureException|MissingAuthenticationToken(?:Exception)?|OptInRequired|IncompleteSignature|InvalidIdentityToken|IDPRejectedClaim)$/;
const NOT_FOUND =
  /^(?:ResourceNotFoundException|InvalidSnapshot\.NotFound|ParameterNotFound|InvalidLaunchTemplateId\.NotFound)$/;

export function remedy(status: number, fault: AwsFault): Remedy {
  const { code, reason = "", message } = fault;
  if (SLOWER.test(code) || status === 429) return "slower";
  if (EXPIRED.test(code)) return "fresh-credentials";
  if (SKEWED.test(code) && /expired|not yet current|too skewed|in the future|15 min/i.test(message.slice(0, 300)))
    return "skewed";
  if (
    AGAIN.test(code) ||
    AGAIN_REASONS.has(reason) ||
    status === 408 ||
    (status >= 500 && status !== 501 && status !== 505)
  )
    return "again";
  return "none";
}

/** Never throws: what cannot be read leaves the status to speak. */
export function readFault(typeHeader: string | undefined, body: Uint8Array): AwsFault {
  const text = Buffer.from(body).toString("utf8");
  const typed = typeHeader?.split(":")[0] ?? "";
  if (/^\s*</.test(text)) return readXmlFault(text);
  try {
    const value = JSON.parse(text) as Record<string, unknown>;
    const type =
      typed ||
      String(value.__type ?? value.code ?? "")
        .split("#")
        .at(-1)!;
    return {
      code: printable(type),
      reason: typeof value.Reason === "string" ? printable(value.Reason) : undefined,
      message: String(value.Message ?? value.message ?? ""),
    };
  } catch {
    return { code: printable(typed), reason: undefined, message: "" };
  }
}

function readXmlFault(text: string): AwsFault {
  try {
    const [error] = descendants(parseXml(text, "an error"), "Error");
    const code = error === undefined ? "" : printable(textOf(error, "Code") ?? "");
    return { code, reason: undefined, message: error === undefined ? "" : (textOf(error, "Message") ?? "") };
  } catch {
    return { code: "", reason: undefined, message: "" }; // a proxy's page
  }
}

export function awsError(
  what: string,
  status: number,
  fault: AwsFault,
  credentials: AwsCredentials | undefined,
): HeadstartError {
  const names = [fault.code, fault.reason].filter((part) => part !== undefined && part !== "").join(" ");
  const message = printable(redact(fault.message, credentials));
  return new HeadstartError(errorCode(status, fault), {
    what: `${what}: ${names === "" ? `HTTP ${status}` : names}${message === "" ? "" : `: ${message}`}`,
    status,
    fault: fault.code,
    reason: fault.reason,
  });
}

function errorCode(status: number, fault: AwsFault): ErrorCode {
  const act = remedy(status, fault);
  if (act === "slower") return "HS_AWS_RATE";
  if (act === "fresh-credentials") return "HS_AWS_CREDENTIALS";
  if (act === "again") return "HS_AWS_UNAVAILABLE";
  if (NOT_FOUND.test(fault.code) || status === 404) return "HS_AWS_NOT_FOUND";
  if (DENIED.test(fault.code) || status === 401 || status === 403) return "HS_AWS_DENIED";
  return fault.code === "" ? "HS_AWS_PROTOCOL" : "HS_AWS_REFUSED";
}

/** Takes secrets of ours out of a text, whole or percent-encoded. */
export function redact(text: string, credentials: AwsCredentials | undefined): string {
  if (credentials === undefined) return text;
  let clean = text;
  for (const secret of [
    credentials.sessionToken?.reveal(),
    credentials.secretAccessKey.reveal(),
    credentials.accessKeyId,
  ]) {
    if (secret === undefined || secret === "") continue;
    for (const form of [secret, encodeURIComponent(secret)]) clean = clean.replaceAll(form, "[redacted]");
  }
  return clean;
}

/** Control characters must not reach a terminal. */
function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}]/gu, " ").slice(0, 300);
}
