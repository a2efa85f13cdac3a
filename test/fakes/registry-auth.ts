/** Who may do what at the fake registry: HTTP Basic, or bearer tokens from a token server on a port of its own. */

import { randomUUID } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";

export interface AuthOptions {
  readonly kind: "basic" | "bearer";
  /** User name to password. */
  readonly users: Readonly<Record<string, string>>;
  /** Pulling needs no user (bearer: but a token). */
  readonly anonymousPull?: boolean;
  /** `expires_in` of tokens; default 300. */
  readonly tokenSeconds?: number;
  /** The token server speaks OAuth's POST too. */
  readonly oauth?: boolean;
  /** Refused credentials get this instead of 401, as ECR does with 403. */
  readonly refusal?: 403;
  /** Identity token (OAuth refresh token) to user. */
  readonly identityTokens?: Readonly<Record<string, string>>;
}

interface Grant {
  readonly user: string | undefined;
  readonly scopes: readonly string[];
  readonly expiresAt: number;
}

export interface TokenRecord {
  readonly method: string;
  readonly authorization: string | undefined;
  readonly scopes: readonly string[];
  readonly status: number;
}

export class FakeAuth {
  readonly options: AuthOptions;
  readonly log: TokenRecord[] = [];
  realm = "";
  readonly #grants = new Map<string, Grant>();

  constructor(options: AuthOptions) {
    this.options = options;
  }

  /** Every token given so far is worth nothing. */
  revokeAll(): void {
    this.#grants.clear();
  }

  /** True if the request may go on; otherwise it was answered. */
  admit(request: IncomingMessage, response: ServerResponse, repository: string, action: "pull" | "push"): boolean {
    const { options } = this;
    const scope = `repository:${repository}:${action === "push" ? "pull,push" : "pull"}`;
    const { authorization } = request.headers;
    if (options.kind === "basic") {
      if (options.anonymousPull && action === "pull" && authorization === undefined) return true;
      if (this.#basicUser(authorization) !== undefined) return true;
      const status = authorization === undefined ? 401 : (options.refusal ?? 401);
      response.writeHead(status, status === 401 ? { "www-authenticate": 'Basic realm="fake"' } : {});
      response.end(JSON.stringify({ errors: [{ code: status === 401 ? "UNAUTHORIZED" : "DENIED", message: "no" }] }));
      return false;
    }
    const grant = this.#grants.get(/^Bearer (\S+)$/.exec(authorization ?? "")?.[1] ?? "");
    if (grant !== undefined && Date.now() < grant.expiresAt && allows(grant.scopes, repository, action)) return true;
    const parameters = [`realm="${this.realm}"`, 'service="fake"', `scope="${scope}"`];
    if (authorization !== undefined) parameters.push('error="invalid_token"');
    response.writeHead(401, { "www-authenticate": `Bearer ${parameters.join(",")}` });
    response.end(JSON.stringify({ errors: [{ code: "UNAUTHORIZED", message: "authentication required" }] }));
    return false;
  }

  /** The token server. */
  async answerToken(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? "/", "http://fake");
    const { authorization } = request.headers;
    let user = this.#basicUser(authorization);
    let scopes = url.searchParams.getAll("scope").flatMap((text) => text.split(" "));
    let status = authorization === undefined || user !== undefined ? 200 : 401;
    if (request.method === "POST") {
      const form = new URLSearchParams(await readText(request));
      scopes = (form.get("scope") ?? "").split(" ");
      if (!this.options.oauth) status = 404;
      else if (form.get("grant_type") === "refresh_token") {
        user = this.options.identityTokens?.[form.get("refresh_token") ?? ""];
        status = user === undefined ? 401 : 200;
      } else {
        user = form.get("username") ?? undefined;
        if (user === undefined || this.options.users[user] !== form.get("password")) status = 401;
      }
    }
    this.log.push({ method: request.method ?? "", authorization, scopes, status });
    if (status !== 200) {
      response.writeHead(status).end();
      return;
    }
    const granted = scopes.flatMap((scope) => {
      if (user !== undefined) return [scope];
      return this.options.anonymousPull ? [scope.replace(/:[^:]*$/, ":pull")] : [];
    });
    const seconds = this.options.tokenSeconds ?? 300;
    const token = randomUUID();
    this.#grants.set(token, { user, scopes: granted, expiresAt: Date.now() + seconds * 1000 });
    response.writeHead(200, { "content-type": "application/json" });
    response.end(JSON.stringify({ token, expires_in: seconds }));
  }

  #basicUser(authorization: string | undefined): string | undefined {
    const match = /^Basic (\S+)$/.exec(authorization ?? "");
    if (match === null) return undefined;
    const text = Buffer.from(match[1]!, "base64").toString("utf8");
    const user = text.slice(0, text.indexOf(":"));
    return this.options.users[user] === text.slice(user.length + 1) ? user : undefined;
  }
}

function allows(scopes: readonly string[], repository: string, action: string): boolean {
  return scopes.some((scope) => {
    const [type, ...rest] = scope.split(":");
    const actions = rest.pop()?.split(",") ?? [];
    return (
      type === "repository" && rest.join(":") === repository && (actions.includes(action) || actions.includes("*"))
    );
  });
}

export async function readText(request: IncomingMessage): Promise<string> {
  return Buffer.from(await readBytes(request)).toString("utf8");
}

export async function readBytes(request: IncomingMessage): Promise<Uint8Array> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}
