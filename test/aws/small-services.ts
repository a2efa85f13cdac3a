/** SSM PutParameter and GetParameter, ECR GetAuthorizationToken, STS, the instance metadata service and the containers' credentials: as much as a push meets. */

import { randomBytes } from "node:crypto";
import type { Answer } from "./ebs.ts";
import type { AccessKey } from "./signature.ts";
import { OWNER, type World } from "./world.ts";

const TARGET_ERROR = "application/x-amz-json-1.1";

export function jsonError(status: number, type: string, message: string): Answer {
  return { status, headers: { "content-type": TARGET_ERROR }, body: JSON.stringify({ __type: type, message }) };
}

function json(value: object): Answer {
  return { status: 200, headers: { "content-type": TARGET_ERROR }, body: JSON.stringify(value) };
}

/** Services that are called by X-Amz-Target. */
export function answerTarget(world: World, target: string, body: Buffer): Answer {
  const input = JSON.parse(body.toString("utf8") || "{}") as Record<string, unknown>;
  switch (target) {
    case "AmazonSSM.PutParameter":
      return putParameter(world, input);
    case "AmazonSSM.GetParameter": {
      const found = world.parameters.get(String(input.Name));
      if (found === undefined) return jsonError(400, "ParameterNotFound", "no such parameter");
      return json({ Parameter: { Name: input.Name, Type: "String", Value: found.value, Version: found.version } });
    }
    case "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken":
      return json({
        authorizationData: [
          {
            authorizationToken: Buffer.from(`AWS:${world.registryPassword}`).toString("base64"),
            expiresAt: (world.now() + 12 * 3_600_000) / 1000,
            proxyEndpoint: `https://${OWNER}.dkr.ecr.${world.region}.amazonaws.com`,
          },
        ],
      });
    default:
      return jsonError(400, "UnknownOperationException", target);
  }
}

function putParameter(world: World, input: Readonly<Record<string, unknown>>): Answer {
  const { Name: name, Value: value, Type: type, Overwrite: overwrite = false } = input;
  if (typeof name !== "string" || !/^[\w./-]{1,1011}$/.test(name)) return jsonError(400, "ValidationException", "Name");
  if (typeof value !== "string" || value === "" || value.length > 4096)
    return jsonError(400, "ValidationException", "Value");
  const known = world.parameters.get(name);
  if (known !== undefined && overwrite !== true) {
    return jsonError(
      400,
      "ParameterAlreadyExists",
      "The parameter already exists. To overwrite this value, set the overwrite option.",
    );
  }
  if (known === undefined && type !== "String") return jsonError(400, "ValidationException", "Type");
  const version = (known?.version ?? 0) + 1;
  world.parameters.set(name, { value, version });
  return json({ Version: version, Tier: "Standard" });
}

/** `caller` is undefined for a call without a signature, which web identity is. */
export function answerSts(world: World, fields: URLSearchParams, caller: AccessKey | undefined): Answer {
  const action = fields.get("Action") ?? "";
  if (action === "AssumeRoleWithWebIdentity") {
    if (fields.get("WebIdentityToken") !== world.webIdentityToken) {
      return stsError(400, "InvalidIdentityToken", "The web identity token that was passed is not valid");
    }
  } else if (action !== "AssumeRole" && action !== "GetCallerIdentity") {
    return stsError(400, "InvalidAction", action);
  } else if (caller === undefined) {
    return stsError(403, "MissingAuthenticationToken", "Request is missing Authentication Token");
  }
  if (action === "GetCallerIdentity") {
    return stsAnswer(
      action,
      `<Account>${OWNER}</Account><UserId>AIDA</UserId><Arn>arn:aws:iam::${OWNER}:user/test</Arn>`,
    );
  }
  const role = fields.get("RoleArn") ?? "";
  if (!/^arn:aws:iam::\d{12}:role\/[\w+=,.@/-]+$/.test(role)) return stsError(400, "ValidationError", "RoleArn");
  if (!/^[\w+=,.@-]{2,64}$/.test(fields.get("RoleSessionName") ?? ""))
    return stsError(400, "ValidationError", "RoleSessionName");
  const key = world.addKey({ temporary: true, lifeMs: world.sessionLifeMs });
  return stsAnswer(
    action,
    `<Credentials><AccessKeyId>${key.id}</AccessKeyId><SecretAccessKey>${key.secret}</SecretAccessKey><SessionToken>${key.sessionToken}</SessionToken><Expiration>${new Date(
      key.expiresAt!,
    ).toISOString()}</Expiration></Credentials><AssumedRoleUser><Arn>${role}</Arn><AssumedRoleId>AROA:x</AssumedRoleId></AssumedRoleUser>`,
  );
}

function stsAnswer(action: string, body: string): Answer {
  return {
    status: 200,
    headers: { "content-type": "text/xml" },
    body: `<${action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><${action}Result>${body}</${action}Result><ResponseMetadata><RequestId>${crypto.randomUUID()}</RequestId></ResponseMetadata></${action}Response>`,
  };
}

export function stsError(status: number, code: string, message: string): Answer {
  return {
    status,
    headers: { "content-type": "text/xml" },
    body: `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>${code}</Code><Message>${message.replace(
      /[&<>]/g,
      " ",
    )}</Message></Error><RequestId>${crypto.randomUUID()}</RequestId></ErrorResponse>`,
  };
}

const plain = (status: number, body: string): Answer => ({ status, headers: { "content-type": "text/plain" }, body });

/** IMDSv2, which wants a token that a PUT gives; and the endpoint that ECS and EKS Pod Identity give to containers. */
export class Metadata {
  readonly #world: World;
  readonly #tokens = new Set<string>();
  #current: AccessKey | undefined;

  constructor(world: World) {
    this.#world = world;
  }

  answer(method: string, path: string, header: (name: string) => string | undefined): Answer | undefined {
    if (path === "/container-credentials") {
      if (header("authorization") !== this.#world.containerToken) return plain(403, "forbidden");
      return this.#credentials();
    }
    if (path === "/latest/api/token") {
      const seconds = Number(header("x-aws-ec2-metadata-token-ttl-seconds"));
      if (method !== "PUT" || !(seconds >= 1 && seconds <= 21_600)) return plain(400, "");
      const token = randomBytes(30).toString("base64url");
      this.#tokens.add(token);
      return plain(200, token);
    }
    if (!path.startsWith("/latest/")) return undefined;
    if (!this.#tokens.has(header("x-aws-ec2-metadata-token") ?? "")) return plain(401, "");
    switch (path) {
      case "/latest/meta-data/iam/security-credentials/":
        return plain(200, "node-role");
      case "/latest/meta-data/iam/security-credentials/node-role":
        return this.#credentials();
      case "/latest/meta-data/placement/region":
        return plain(200, this.#world.region);
      default:
        return plain(404, "");
    }
  }

  #credentials(): Answer {
    const now = this.#world.now();
    const known = this.#world.keys.get(this.#current?.id ?? "");
    if (this.#current === undefined || (known?.expiresAt ?? 0) - now < 5 * 60_000) {
      this.#current = this.#world.addKey({ temporary: true, lifeMs: this.#world.sessionLifeMs });
    }
    const key = this.#current;
    return {
      status: 200,
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        Code: "Success",
        Type: "AWS-HMAC",
        AccessKeyId: key.id,
        SecretAccessKey: key.secret,
        Token: key.sessionToken,
        Expiration: new Date(key.expiresAt!).toISOString(),
      }),
    };
  }
}
