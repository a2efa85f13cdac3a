/**
 * AWS Signature Version 4 of one request. Pure. The signing key of a day, region and service is made once; a body whose SHA-256 the caller knows is not hashed again.
 *
 * The only place that reads a secret key. Session tokens go into a header, so requests as a whole are secret: they are never logged.
 */

import { createHash, createHmac } from "node:crypto";
import type { Secret } from "../../base/secret.ts";

export interface AwsCredentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: Secret;
  /** Of temporary credentials. */
  readonly sessionToken: Secret | undefined;
  /** Milliseconds since 1970; undefined: they stay. */
  readonly expiresAt: number | undefined;
}

export interface Signable {
  readonly method: string;
  readonly url: URL;
  /** Lower case names; all of them are signed. */
  readonly headers: Readonly<Record<string, string>>;
  /** Hex. */
  readonly bodySha256: string;
}

const KEYS_MAX = 16;

/** Keeps signing keys, by day, region, service and secret. */
export class Signer {
  readonly region: string;
  readonly service: string;
  readonly #keys = new Map<string, Buffer>();

  constructor(region: string, service: string) {
    this.region = region;
    this.service = service;
  }

  /** The headers to send: those given, and the signature's. `now` in milliseconds since 1970. */
  sign(request: Signable, credentials: AwsCredentials, now: number): Record<string, string> {
    const time = new Date(now).toISOString().replace(/[-:]|\.\d{3}/g, "");
    const day = time.slice(0, 8);
    const headers: Record<string, string> = {
      ...request.headers,
      host: request.url.host,
      "x-amz-date": time,
      "x-amz-content-sha256": request.bodySha256,
      ...(credentials.sessionToken !== undefined && { "x-amz-security-token": credentials.sessionToken.reveal() }),
    };
    const names = Object.keys(headers).sort();
    const signedNames = names.join(";");
    const canonical = [
      request.method,
      canonicalPath(request.url.pathname),
      canonicalQuery(request.url.searchParams),
      ...names.map((name) => `${name}:${headers[name]!.trim().replace(/ +/g, " ")}`),
      "",
      signedNames,
      request.bodySha256,
    ].join("\n");
    const scope = `${day}/${this.region}/${this.service}/aws4_request`;
    const hash = createHash("sha256").update(canonical).digest("hex");
    const signature = hmac(this.#key(day, credentials), `AWS4-HMAC-SHA256\n${time}\n${scope}\n${hash}`).toString("hex");
    headers.authorization = `AWS4-HMAC-SHA256 Credential=${credentials.accessKeyId}/${scope}, SignedHeaders=${signedNames}, Signature=${signature}`;
    return headers;
  }

  #key(day: string, credentials: AwsCredentials): Buffer {
    const name = `${day} ${credentials.accessKeyId}`;
    const known = this.#keys.get(name);
    if (known !== undefined) return known;
    const first = hmac(`AWS4${credentials.secretAccessKey.reveal()}`, day);
    const key = [this.region, this.service, "aws4_request"].reduce<Buffer>(hmac, first);
    if (this.#keys.size >= KEYS_MAX) this.#keys.clear();
    this.#keys.set(name, key);
    return key;
  }
}

function hmac(key: string | Buffer, data: string): Buffer {
  return createHmac("sha256", key).update(data).digest();
}

/** Every segment encoded once more than it is in the URL, as all services but S3 want it. */
function canonicalPath(path: string): string {
  return path.split("/").map(percentEncode).join("/");
}

function canonicalQuery(query: URLSearchParams): string {
  return [...query]
    .map(([name, value]) => `${percentEncode(name)}=${percentEncode(value)}`)
    .sort()
    .join("&");
}

/** RFC 3986: all but its unreserved characters. */
export function percentEncode(text: string): string {
  return encodeURIComponent(text).replace(/[!'()*]/g, (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`);
}
