/**
 * Credentials and region from where the process runs: the instance metadata service of EC2 (version 2, with its token), and the endpoint that ECS and EKS Pod Identity name in the environment.
 * Both are asked without a proxy.
 */

import { readFileSync } from "node:fs";
import { type Clock, systemClock } from "../../base/clock.ts";
import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { MiB } from "../../base/limits.ts";
import { Secret } from "../../base/secret.ts";
import { Http, type HttpAnswer, type HttpRequest } from "./http.ts";
import type { CredentialProvider } from "./identity.ts";
import type { Environment } from "./profile.ts";
import type { AwsCredentials } from "./signature.ts";

const TOKEN_SECONDS = 21_600;
/** A machine that is no EC2 instance has nobody there: do not wait long. */
const CONNECT_MS = 1000;
const DEADLINE_MS = 5000;
const ATTEMPTS = 3;
const ROLES = "/latest/meta-data/iam/security-credentials/";

/** Throws HS_AWS_UNAVAILABLE when nobody answers. */
async function ask(
  request: Omit<HttpRequest, "limit" | "deadlineMs">,
  clock: Clock = systemClock,
): Promise<HttpAnswer> {
  await using http = new Http({ connectMs: CONNECT_MS });
  for (let attempt = 1; ; attempt++) {
    try {
      const answer = await http.exchange({ ...request, limit: MiB, deadlineMs: DEADLINE_MS });
      if (answer.status < 500 || attempt === ATTEMPTS) return answer;
    } catch (error) {
      if (!isHeadstartError(error, "HS_AWS_UNAVAILABLE") || attempt === ATTEMPTS) throw error;
      if (/CONNECT|UNREACH|REFUSED/.test(String(error.details.reason))) throw error;
    }
    await clock.sleep(100 * attempt);
  }
}

const text = (answer: HttpAnswer) => Buffer.from(answer.body).toString("utf8").trim();

/** A path's text, or undefined where there is no metadata service or it has nothing there. */
async function readMetadata(path: string, env: Environment): Promise<string | undefined> {
  if (env.AWS_EC2_METADATA_DISABLED?.toLowerCase() === "true") return undefined;
  const base = env.AWS_EC2_METADATA_SERVICE_ENDPOINT || "http://169.254.169.254";
  try {
    const headers = { "x-aws-ec2-metadata-token-ttl-seconds": String(TOKEN_SECONDS) };
    const token = await ask({ method: "PUT", url: new URL("/latest/api/token", base), headers });
    if (token.status !== 200) return undefined;
    const answer = await ask({
      method: "GET",
      url: new URL(path, base),
      headers: { "x-aws-ec2-metadata-token": text(token) },
    });
    return answer.status === 200 ? text(answer) : undefined;
  } catch (error) {
    if (isHeadstartError(error, "HS_AWS_UNAVAILABLE")) return undefined;
    throw error;
  }
}

export async function instanceRegion(env: Environment): Promise<string | undefined> {
  const region = await readMetadata("/latest/meta-data/placement/region", env);
  return region !== undefined && /^[a-z0-9-]{3,30}$/.test(region) ? region : undefined;
}

export function instanceProvider(env: Environment): CredentialProvider {
  return {
    name: "instance metadata",
    async get() {
      const role = (await readMetadata(ROLES, env))?.split("\n")[0]?.trim();
      if (role === undefined || !/^[\w+=,.@-]{1,128}$/.test(role)) return undefined;
      const document = await readMetadata(`${ROLES}${role}`, env);
      return document === undefined ? undefined : parseCredentials(document, "instance metadata");
    },
  };
}

/** Hosts that a full URI without TLS may name: this machine, ECS, EKS Pod Identity. */
const CONTAINER_HOSTS = /^(?:localhost|127(?:\.\d{1,3}){3}|\[::1\]|169\.254\.170\.(?:2|23)|\[fd00:ec2::23\])$/;

export function containerProvider(env: Environment): CredentialProvider {
  return {
    name: "container credentials",
    async get() {
      const relative = env.AWS_CONTAINER_CREDENTIALS_RELATIVE_URI;
      const full = env.AWS_CONTAINER_CREDENTIALS_FULL_URI;
      if (!relative && !full) return undefined;
      const url = relative ? URL.parse(relative, "http://169.254.170.2") : URL.parse(full!);
      if (url === null || (url.protocol !== "https:" && !CONTAINER_HOSTS.test(url.hostname))) {
        throw new HeadstartError("HS_AWS_CREDENTIALS", {
          what: "AWS_CONTAINER_CREDENTIALS_FULL_URI names no host that may be asked",
        });
      }
      const token = containerToken(env);
      const headers = token === undefined ? {} : { authorization: token.reveal() };
      const answer = await ask({ method: "GET", url, headers });
      if (answer.status !== 200) {
        throw new HeadstartError("HS_AWS_CREDENTIALS", {
          what: `container credentials at ${url.host}: HTTP ${answer.status}`,
        });
      }
      return parseCredentials(text(answer), "container credentials");
    },
  };
}

function containerToken(env: Environment): Secret | undefined {
  const file = env.AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE;
  if (!file)
    return env.AWS_CONTAINER_AUTHORIZATION_TOKEN ? new Secret(env.AWS_CONTAINER_AUTHORIZATION_TOKEN) : undefined;
  try {
    return new Secret(readFileSync(file, "utf8").trim());
  } catch (cause) {
    throw new HeadstartError("HS_AWS_CREDENTIALS", { what: `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE ${file}`, cause });
  }
}

/** The document that metadata services and credential processes give; the latter call the token SessionToken. Throws HS_AWS_CREDENTIALS, never quoting it. */
export function parseCredentials(document: string, what: string): AwsCredentials {
  let value: Record<string, unknown>;
  try {
    value = JSON.parse(document) as Record<string, unknown>;
  } catch {
    throw new HeadstartError("HS_AWS_CREDENTIALS", { what: `${what}: the answer is not JSON` });
  }
  const {
    AccessKeyId: id,
    SecretAccessKey: secret,
    Token: token = value.SessionToken,
    Expiration: expiration,
  } = value ?? {};
  if (typeof id !== "string" || !/^\w{16,128}$/.test(id) || typeof secret !== "string" || secret === "") {
    throw new HeadstartError("HS_AWS_CREDENTIALS", { what: `${what}: the answer has no access key` });
  }
  const expiresAt = typeof expiration === "string" ? Date.parse(expiration) : Number.NaN;
  return {
    accessKeyId: id,
    secretAccessKey: new Secret(secret),
    sessionToken: typeof token === "string" && token !== "" ? new Secret(token) : undefined,
    expiresAt: Number.isNaN(expiresAt) ? undefined : expiresAt,
  };
}
