/** The border between a registry's answers and our errors (distribution-spec, "Error Codes"): maps statuses, quotes the registry's words. */

import { type ErrorCode, HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { LIMITS } from "../../base/limits.ts";
import type { TransportResponse } from "./transport/transport.ts";

export interface RegistryFault {
  readonly code: string;
  readonly message: string;
}

/** Reads a short body to its end, or gives up on a long one: undefined. Drops the connection then. */
export async function readSmallBody(response: TransportResponse, limit: number): Promise<Uint8Array | undefined> {
  const chunks: Uint8Array[] = [];
  let total = 0;
  for await (const chunk of response.body) {
    total += chunk.byteLength;
    if (total > limit) return undefined;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/** The errors in an answer: `{"errors":[{code,message}]}`, also S3's XML `<Code>`. Never throws. */
export async function readFaults(response: TransportResponse): Promise<RegistryFault[]> {
  try {
    const body = await readSmallBody(response, LIMITS.errorBodyBytes);
    return body === undefined ? [] : parseFaults(Buffer.from(body).toString("utf8"));
  } catch {
    return []; // the status alone is the message then
  }
}

export function parseFaults(text: string): RegistryFault[] {
  const xml = /<Code>([\w.-]{1,100})<\/Code>(?:\s*<Message>([^<]{0,300})<\/Message>)?/.exec(text);
  if (xml !== null) return [{ code: xml[1]!, message: printable(xml[2] ?? "") }];
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch {
    return [];
  }
  if (typeof document !== "object" || document === null || !("errors" in document)) return [];
  const list: unknown[] = Array.isArray(document.errors) ? document.errors.slice(0, 10) : [];
  return list.flatMap((item) => {
    if (typeof item !== "object" || item === null) return [];
    const { code, message } = item as { code?: unknown; message?: unknown };
    return [{ code: printable(String(code ?? "")), message: printable(typeof message === "string" ? message : "") }];
  });
}

/** Control characters of a hostile registry must not reach a terminal. */
function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}]/gu, " ").slice(0, 200);
}

/** Reads the answer's body and makes the error for it. `missing` is the code for 404. */
export async function registryError(
  response: TransportResponse,
  what: string,
  missing: "HS_NOT_FOUND" | "HS_BLOB_NOT_FOUND" = "HS_NOT_FOUND",
): Promise<HeadstartError> {
  const faults = await readFaults(response);
  const said = faults.map((fault) => [fault.code, fault.message].filter((part) => part !== "").join(": ")).join("; ");
  return new HeadstartError(codeFor(response.status, missing), {
    what: `${what}: HTTP ${response.status}${said === "" ? "" : ` (${said})`}`,
    status: response.status,
    faults: faults.map((fault) => fault.code),
  });
}

function codeFor(status: number, missing: ErrorCode): ErrorCode {
  if (status === 401) return "HS_REGISTRY_AUTH";
  if (status === 403) return "HS_REGISTRY_DENIED";
  if (status === 404 || status === 410) return missing;
  if (status === 429) return "HS_REGISTRY_RATE";
  if (status === 408 || status >= 500) return "HS_REGISTRY_UNAVAILABLE";
  return "HS_REGISTRY_PROTOCOL";
}

const TELLING: readonly ErrorCode[] = [
  "HS_DIGEST_MISMATCH",
  "HS_SIZE_MISMATCH",
  "HS_REGISTRY_RANGE",
  "HS_REGISTRY_AUTH",
  "HS_REGISTRY_DENIED",
  "HS_CREDENTIALS",
  "HS_REGISTRY_RATE",
  "HS_REGISTRY_PROTOCOL",
  "HS_REGISTRY_UNAVAILABLE",
];

/** Of the errors of several hosts the one that tells most: anything rather than "not found", the last host's among equals. */
export function mostTelling(errors: readonly unknown[]): unknown {
  const rank = (error: unknown) => {
    if (!isHeadstartError(error)) return -1;
    const index = TELLING.indexOf(error.code);
    return index < 0 ? TELLING.length : index;
  };
  return errors.reduce((best, error) => (rank(error) <= rank(best) ? error : best));
}
