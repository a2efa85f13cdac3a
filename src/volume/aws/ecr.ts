/** Credentials for private ECR registries from the AWS provider chain, for whoever has no stored login: the last of the credential sources. */

import { systemClock } from "../../base/clock.ts";
import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { Secret } from "../../base/secret.ts";
import type { Credential, CredentialSource } from "../../oci/registry/auth/credentials.ts";
import { type ConnectOptions, connectAws } from "./connect.ts";

const HOST = /^\d{12}\.dkr[.-]ecr(?:-fips)?\.([a-z0-9-]+)\.(?:amazonaws\.com(?:\.cn)?|amazonaws\.eu|on\.aws)$/;
const EARLY_MS = 10 * 60_000;

/** Without AWS credentials it takes seconds to find that out: not for every request. */
const NOBODY_MS = 60_000;

interface Token {
  /** Undefined: there are no AWS credentials here. */
  readonly credential: Credential | undefined;
  readonly expiresAt: number;
}

/** No AWS credentials, and hosts that are none of ECR's: no credential. Tokens are kept by region until shortly before their end. */
export function ecrSource(options: Omit<ConnectOptions, "region" | "endpoint"> = {}): CredentialSource {
  const { clock = systemClock } = options;
  const tokens = new Map<string, Token>();
  return {
    name: "AWS provider chain",
    async get({ host }, signal) {
      const region = HOST.exec(host)?.[1];
      if (region === undefined) return undefined;
      const known = tokens.get(region);
      if (known !== undefined && known.expiresAt - EARLY_MS > clock.now()) return known.credential;
      const token = await authorizationToken({ ...options, region }, signal);
      tokens.set(region, token ?? { credential: undefined, expiresAt: clock.now() + EARLY_MS + NOBODY_MS });
      return token?.credential;
    },
    forget({ host }) {
      tokens.delete(HOST.exec(host)?.[1] ?? "");
    },
  };
}

async function authorizationToken(
  options: ConnectOptions,
  signal: AbortSignal | undefined,
): Promise<Token | undefined> {
  await using aws = await connectAws(options);
  try {
    const answer = await aws.client.call({
      service: "ecr",
      operation: "GetAuthorizationToken",
      method: "POST",
      path: "/",
      headers: {
        "content-type": "application/x-amz-json-1.1",
        "x-amz-target": "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
      },
      body: Buffer.from("{}"),
      attempts: 4,
      signal,
    });
    return parseToken(Buffer.from(answer.body).toString("utf8"));
  } catch (error) {
    if (!isHeadstartError(error)) throw error;
    // without any AWS credentials the registry itself says what it wants
    if (error.code === "HS_AWS_CREDENTIALS" && error.details.sources !== undefined) return undefined;
    throw new HeadstartError("HS_CREDENTIALS", { what: "AWS provider chain", cause: error });
  }
}

function parseToken(text: string): Token {
  const wrong = () =>
    new HeadstartError("HS_CREDENTIALS", { what: "ECR GetAuthorizationToken: the answer has no token" });
  let entry: { authorizationToken?: unknown; expiresAt?: unknown } | undefined;
  try {
    entry = (JSON.parse(text) as { authorizationData?: (typeof entry)[] }).authorizationData?.[0];
  } catch {
    throw wrong(); // without its cause, which may quote the token
  }
  const { authorizationToken: token, expiresAt } = entry ?? {};
  if (typeof token !== "string") throw wrong();
  const [username, ...rest] = Buffer.from(token, "base64").toString("utf8").split(":");
  const password = rest.join(":");
  if (!username || password === "") throw wrong();
  const seconds = typeof expiresAt === "number" && Number.isFinite(expiresAt) ? expiresAt : 0;
  return { credential: { kind: "password", username, password: new Secret(password) }, expiresAt: seconds * 1000 };
}
