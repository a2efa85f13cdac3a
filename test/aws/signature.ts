/**
 * Checks AWS Signature Version 4 of a request as a service does: from the bytes on the wire, with the secret that the access key id stands for. Written from the public description of the
 * algorithm and of what boto3 and the AWS SDK send (specs/warm-volume.md 9); shares nothing with the client under test.
 */

import { createHash, createHmac, timingSafeEqual } from "node:crypto";

export interface AccessKey {
  readonly id: string;
  readonly secret: string;
  /** Of temporary credentials: must come with each request. */
  readonly sessionToken?: string;
  /** Milliseconds since 1970. */
  readonly expiresAt?: number;
}

export interface SignedRequest {
  readonly method: string;
  /** Path and query, as on the request line. */
  readonly target: string;
  /** As Node has them: lower case names. */
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: Uint8Array;
  /** Hex; the caller may need it too. */
  readonly bodySha256: string;
}

export type Verdict =
  | { readonly ok: true; readonly key: AccessKey; readonly region: string; readonly service: string }
  | { readonly ok: false; readonly fault: SignatureFault; readonly message: string; readonly service: string };

export type SignatureFault = "missing" | "unknown-key" | "mismatch" | "expired-token" | "bad-token" | "skewed";

const SKEW_MS = 15 * 60 * 1000;

export function verifySignature(request: SignedRequest, keys: ReadonlyMap<string, AccessKey>, nowMs: number): Verdict {
  const header = (name: string) => {
    const value = request.headers[name];
    return Array.isArray(value) ? value.join(",") : value;
  };
  const parts =
    /^AWS4-HMAC-SHA256 Credential=([^/,]+)\/(\d{8})\/([^/,]+)\/([^/,]+)\/aws4_request, ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})$/.exec(
      header("authorization") ?? "",
    );
  if (parts === null) return { ok: false, fault: "missing", message: "Missing Authentication Token", service: "" };
  const [, id, date, region, service, signedNames, signature] = parts as unknown as [string, ...string[]] as string[];
  const refuse = (fault: SignatureFault, message: string): Verdict => ({
    ok: false,
    fault,
    message,
    service: service!,
  });
  const key = keys.get(id!);
  if (key === undefined) return refuse("unknown-key", "The security token included in the request is invalid.");
  const time = header("x-amz-date") ?? "";
  const at = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(time);
  if (at === null || time.slice(0, 8) !== date)
    return refuse("mismatch", "Date in Credential scope does not match X-Amz-Date.");
  const signedAt = Date.UTC(
    Number(at[1]),
    Number(at[2]) - 1,
    Number(at[3]),
    Number(at[4]),
    Number(at[5]),
    Number(at[6]),
  );
  const names = signedNames!.split(";");
  const unsigned = Object.keys(request.headers).filter((name) => name.startsWith("x-amz-") && !names.includes(name));
  if (!names.includes("host") || unsigned.length > 0) {
    return refuse(
      "mismatch",
      `headers that must be signed and are not: ${[...(names.includes("host") ? [] : ["host"]), ...unsigned].join(", ")}`,
    );
  }
  const claimed = header("x-amz-content-sha256");
  if (claimed !== undefined && claimed !== "UNSIGNED-PAYLOAD" && claimed !== request.bodySha256) {
    return refuse("mismatch", "The provided x-amz-content-sha256 header does not match what was computed.");
  }
  const [path, query] = splitTarget(request.target);
  const canonical = [
    request.method,
    path.split("/").map(encode).join("/") || "/",
    canonicalQuery(query),
    ...names.map((name) => `${name}:${(header(name) ?? "").trim().replace(/ +/g, " ")}`),
    "",
    signedNames!,
    claimed ?? request.bodySha256,
  ].join("\n");
  const scope = `${date}/${region}/${service}/aws4_request`;
  const text = `AWS4-HMAC-SHA256\n${time}\n${scope}\n${sha256Hex(canonical)}`;
  const hmac = (secret: string | Buffer, data: string) => createHmac("sha256", secret).update(data).digest();
  const signing = [region!, service!, "aws4_request"].reduce(hmac, hmac(`AWS4${key.secret}`, date!));
  if (!timingSafeEqual(hmac(signing, text), Buffer.from(signature!, "hex"))) {
    // the real services quote the canonical string too, session token and all: clients must not print it
    return refuse(
      "mismatch",
      `The request signature we calculated does not match the signature you provided. The Canonical String for this request should have been '${canonical}'`,
    );
  }
  if (Math.abs(signedAt - nowMs) > SKEW_MS)
    return refuse("skewed", `Signature expired: ${time} is not within 15 minutes.`);
  if (key.sessionToken !== undefined && header("x-amz-security-token") !== key.sessionToken) {
    return refuse("bad-token", "The security token included in the request is invalid.");
  }
  if (key.expiresAt !== undefined && key.expiresAt <= nowMs) {
    return refuse("expired-token", `The security token included in the request is expired: ${key.id}`);
  }
  return { ok: true, key, region: region!, service: service! };
}

function splitTarget(target: string): [string, string] {
  const mark = target.indexOf("?");
  return mark < 0 ? [target, ""] : [target.slice(0, mark), target.slice(mark + 1)];
}

function canonicalQuery(query: string): string {
  if (query === "") return "";
  return query
    .split("&")
    .map((pair) => {
      const [name, ...rest] = pair.split("=");
      return `${encode(decodeURIComponent(name!))}=${encode(decodeURIComponent(rest.join("=")))}`;
    })
    .sort()
    .join("&");
}

/** RFC 3986: all but unreserved characters. A path's percent signs are encoded once more, as every service but S3 does. */
function encode(text: string): string {
  return encodeURIComponent(text).replace(/[!'()*]/g, (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`);
}

function sha256Hex(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}
