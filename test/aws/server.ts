/**
 * The AWS of the tests on one port of this machine: EBS direct, EC2, SSM, ECR, STS and the metadata service as they are on the wire, with faults by rule. Imports nothing of the client that it
 * judges; itself it is judged by boto3 and the AWS SDK for JavaScript (clients.test.ts).
 */

import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { type Behaviour, calm, type FaultKind, faultFor, Rate } from "./behaviour.ts";
import { type Answer, answerEbs, type EbsMemory, ebsOperation, refusal } from "./ebs.ts";
import { answerEc2, ec2Error } from "./ec2.ts";
import { type AccessKey, type SignatureFault, type Verdict, verifySignature } from "./signature.ts";
import { answerSts, answerTarget, jsonError, Metadata, stsError } from "./small-services.ts";
import { World } from "./world.ts";

const BODY_BYTES_MAX = 1024 * 1024;

export interface AwsOptions {
  readonly region?: string;
  readonly forgetful?: boolean;
  readonly behaviour?: Partial<Behaviour>;
}

export class AwsServer implements AsyncDisposable {
  readonly world: World;
  readonly behaviour: Behaviour;
  /** Requests by operation. */
  readonly counts = new Map<string, number>();
  /** The most that were under way at once. */
  concurrentMax = 0;
  readonly #server: Server;
  readonly #metadata: Metadata;
  readonly #memory: EbsMemory = { putRate: new Rate(), getRate: new Rate(), pages: new Map(), listed: 0 };
  #concurrent = 0;

  private constructor(options: AwsOptions) {
    this.world = new World(options);
    this.behaviour = { ...calm(), ...options.behaviour };
    this.#metadata = new Metadata(this.world);
    this.#server = createServer({ keepAliveTimeout: 60_000, requestTimeout: 0 }, (request, response) => {
      void this.#serve(request, response);
    });
  }

  static async start(options: AwsOptions = {}): Promise<AwsServer> {
    const server = new AwsServer(options);
    await new Promise<void>((resolve) => server.#server.listen(0, "127.0.0.1", 4096, resolve));
    return server;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  count(operation: string): number {
    return this.counts.get(operation) ?? 0;
  }

  /** What a client's environment needs to find all services here, with this key. */
  environment(key: AccessKey): Record<string, string> {
    return {
      ...this.endpoints(),
      AWS_ACCESS_KEY_ID: key.id,
      AWS_SECRET_ACCESS_KEY: key.secret,
      ...(key.sessionToken !== undefined && { AWS_SESSION_TOKEN: key.sessionToken }),
    };
  }

  /** Endpoints and region alone: credentials come from elsewhere. */
  endpoints(): Record<string, string> {
    return {
      AWS_ENDPOINT_URL: this.url,
      AWS_REGION: this.world.region,
      AWS_DEFAULT_REGION: this.world.region,
      AWS_EC2_METADATA_SERVICE_ENDPOINT: this.url,
      AWS_CONFIG_FILE: "/dev/null",
      AWS_SHARED_CREDENTIALS_FILE: "/dev/null",
    };
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    this.#concurrent++;
    this.concurrentMax = Math.max(this.concurrentMax, this.#concurrent);
    response.once("close", () => this.#concurrent--);
    try {
      const body = await readBody(request);
      if (body === undefined) {
        response.writeHead(413).end();
        return;
      }
      if (this.behaviour.latencyMs > 0) await sleep(this.behaviour.latencyMs);
      const operation = operationOf(request, body);
      const count = this.count(operation) + 1;
      this.counts.set(operation, count);
      const fault = faultFor(this.behaviour, operation, count);
      if (fault === "reset") request.socket.destroy();
      else if (fault !== "hang") send(response, this.#answer(request, body, fault), fault);
    } catch {
      request.socket.destroy(); // the client went away
    }
  }

  #answer(request: IncomingMessage, body: Buffer, fault: FaultKind | undefined): Answer {
    const { method = "GET", url: target = "/", headers } = request;
    const [path, query] = target.split("?") as [string, string?];
    const header = (name: string) => {
      const value = headers[name];
      return Array.isArray(value) ? value[0] : value;
    };
    const metadata = this.#metadata.answer(method, path, header);
    if (metadata !== undefined) return metadata;
    const sha256 = createHash("sha256").update(body).digest();
    const bodySha256 = sha256.toString("hex");
    const verdict = verifySignature({ method, target, headers, body, bodySha256 }, this.world.keys, this.world.now());
    const form = new URLSearchParams(path === "/" ? body.toString("utf8") : "");
    const style = styleOf(path, verdict, form, header("x-amz-target"));
    const webIdentity = form.get("Action") === "AssumeRoleWithWebIdentity";
    if (fault === "throttle" || fault === "500" || fault === "html" || fault === "late" || fault === "denied")
      return faultAnswer(style, fault);
    if (!verdict.ok && !webIdentity) return unsigned(style, verdict.fault, verdict.message);
    const signedFor = verdict.service;
    if (!webIdentity && signedFor !== style)
      return unsigned(style, "mismatch", `Credential should be scoped to correct service: '${style}'.`);
    switch (style) {
      case "ebs": {
        const parsed = { method, path, query: new URLSearchParams(query), headers, body, sha256 };
        return answerEbs(this.world, this.behaviour, this.#memory, parsed);
      }
      case "ec2":
        return answerEc2(this.world, this.behaviour, form);
      case "sts":
        return answerSts(this.world, form, verdict.ok ? verdict.key : undefined);
      default:
        return answerTarget(this.world, header("x-amz-target") ?? "", body);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
    this.world[Symbol.dispose]();
  }
}

type Style = "ebs" | "ec2" | "sts" | "ssm" | "ecr";

function styleOf(path: string, verdict: Verdict, form: URLSearchParams, target: string | undefined): Style {
  if (path !== "/") return "ebs";
  if (target !== undefined) return target.startsWith("AmazonSSM.") ? "ssm" : "ecr";
  return verdict.service === "sts" || /^(?:AssumeRole|GetCallerIdentity)/.test(form.get("Action") ?? "")
    ? "sts"
    : "ec2";
}

function operationOf(request: IncomingMessage, body: Buffer): string {
  const path = (request.url ?? "/").split("?")[0]!;
  if (path !== "/") return ebsOperation(request.method ?? "GET", path)?.name ?? `${request.method} ${path}`;
  const target = request.headers["x-amz-target"];
  if (typeof target === "string") return target.split(".")[1] ?? target;
  return new URLSearchParams(body.toString("utf8")).get("Action") ?? "?";
}

/** The services' own words for a signature that they do not take. */
const AUTH_FAULTS: Readonly<
  Record<SignatureFault, { readonly json: string; readonly ec2: string; readonly sts: string }>
> = {
  missing: { json: "MissingAuthenticationTokenException", ec2: "MissingParameter", sts: "MissingAuthenticationToken" },
  "unknown-key": { json: "UnrecognizedClientException", ec2: "AuthFailure", sts: "InvalidClientTokenId" },
  mismatch: { json: "InvalidSignatureException", ec2: "SignatureDoesNotMatch", sts: "SignatureDoesNotMatch" },
  "expired-token": { json: "ExpiredTokenException", ec2: "RequestExpired", sts: "ExpiredToken" },
  "bad-token": { json: "UnrecognizedClientException", ec2: "AuthFailure", sts: "InvalidClientTokenId" },
  skewed: { json: "InvalidSignatureException", ec2: "RequestExpired", sts: "SignatureDoesNotMatch" },
};

function unsigned(style: Style, fault: SignatureFault, message: string): Answer {
  const names = AUTH_FAULTS[fault];
  if (style === "ebs") return refusal(403, names.json, message);
  if (style === "ec2") return ec2Error(403, names.ec2, message);
  return style === "sts" ? stsError(403, names.sts, message) : jsonError(400, names.json, message);
}

function faultAnswer(style: Style, fault: "throttle" | "500" | "html" | "late" | "denied"): Answer {
  if (fault === "html") {
    return {
      status: 502,
      headers: { "content-type": "text/html" },
      body: "<html><body><h1>502 Bad Gateway</h1></body></html>",
    };
  }
  if (style === "ebs") {
    if (fault === "throttle") return refusal(400, "RequestThrottledException", "Rate exceeded", "ACCOUNT_THROTTLED");
    if (fault === "late") return refusal(400, "ValidationException", "The request timed out", "WRITE_REQUEST_TIMEOUT");
    if (fault === "500") return refusal(500, "InternalServerException", "An internal error has occurred");
    return refusal(403, "AccessDeniedException", "not authorized to perform this operation", "UNAUTHORIZED_ACCOUNT");
  }
  const [status, code] = {
    throttle: [503, style === "ec2" ? "RequestLimitExceeded" : "ThrottlingException"] as const,
    "500": [500, "InternalError"] as const,
    late: [408, "RequestTimeout"] as const,
    denied: style === "ec2" ? ([403, "UnauthorizedOperation"] as const) : ([400, "AccessDeniedException"] as const),
  }[fault];
  const message = fault === "denied" ? "You are not authorized to perform this operation." : fault;
  if (style === "ec2") return ec2Error(status, code, message);
  return style === "sts"
    ? stsError(status, code, message)
    : jsonError(fault === "throttle" ? 400 : status, code, message);
}

async function readBody(request: IncomingMessage): Promise<Buffer | undefined> {
  const chunks: Buffer[] = [];
  let total = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    total += chunk.byteLength;
    if (total > BODY_BYTES_MAX) return undefined;
    chunks.push(chunk);
  }
  return chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks);
}

function send(response: ServerResponse, answer: Answer, fault: FaultKind | undefined): void {
  if (fault === "lost") {
    response.socket?.destroy();
    return;
  }
  const body = Buffer.from(answer.body as Uint8Array);
  if (fault === "wrong-bytes" && body.byteLength > 0) body[body.byteLength >> 1]! ^= 1;
  const length = String(body.byteLength);
  response.writeHead(answer.status, {
    ...answer.headers,
    "content-length": length,
    "x-amzn-requestid": crypto.randomUUID(),
  });
  if (fault === "cut") {
    response.write(body.subarray(0, body.byteLength >> 1), () => response.socket?.destroy());
    return;
  }
  if (fault !== "slow") {
    response.end(body);
    return;
  }
  void (async () => {
    const step = Math.max(1, Math.ceil(body.byteLength / 8));
    for (let at = 0; at < body.byteLength && !response.destroyed; at += step) {
      response.write(body.subarray(at, at + step));
      await sleep(40);
    }
    response.end();
  })();
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
