/**
 * Bearer tokens (distribution token spec, and OAuth2's form of it): fetched from the realm that the registry names, kept per (host, realm,
 * service, scopes, credential), fetched once however many ask, renewed in the background before they end.
 * The realm is only trusted as far as the registry itself is: no plain HTTP realm for an HTTPS registry, no redirect is followed, and the credential that
 * goes there is the one configured for this registry.
 */

import type { Clock } from "../../../base/clock.ts";
import { HeadstartError } from "../../../base/errors.ts";
import { Flights } from "../../../base/limit.ts";
import { LIMITS } from "../../../base/limits.ts";
import { Secret } from "../../../base/secret.ts";
import { readSmallBody, registryError } from "../errcode.ts";
import type { Transport, TransportResponse } from "../transport/transport.ts";
import { abandonable } from "../wait.ts";
import { basicHeader, type Credential } from "./credentials.ts";

export interface TokenRequest {
  /** The registry's origin, whose scheme the realm must match. */
  readonly registry: URL;
  readonly realm: string;
  readonly service: string | undefined;
  readonly scopes: readonly string[];
  readonly credential: Credential | undefined;
}

interface Token {
  readonly value: Secret;
  readonly fetchedAt: number;
  readonly expiresAt: number;
}

const CLIENT_ID = "headstart";
/** Of the spec: a server that does not say means 60 s. */
const EXPIRES_DEFAULT_S = 60;
const EXPIRES_MAX_S = 86_400;
/** Not used in the last tenth of its life; renewed in the background in the last quarter. */
const USABLE = 0.9;
const RENEW_FROM = 0.75;
const TOKENS_MAX = 1000;
/** One fetch serves all who wait, so it has a deadline of its own instead of one caller's signal. */
const FETCH_DEADLINE_MS = 60_000;

export class TokenCache {
  readonly #tokens = new Map<string, Token>();
  readonly #flights = new Flights<string, Token>();
  readonly #transport: Transport;
  readonly #clock: Clock;

  constructor(transport: Transport, clock: Clock) {
    this.#transport = transport;
    this.#clock = clock;
  }

  /** A token that is good for now. Throws HS_REGISTRY_AUTH, HS_REGISTRY_UNAVAILABLE, HS_REGISTRY_PROTOCOL. */
  async get(request: TokenRequest, signal?: AbortSignal): Promise<Secret> {
    const key = keyOf(request);
    const known = this.#tokens.get(key);
    const now = this.#clock.now();
    if (known !== undefined && now < known.fetchedAt + (known.expiresAt - known.fetchedAt) * USABLE) {
      if (now > known.fetchedAt + (known.expiresAt - known.fetchedAt) * RENEW_FROM) {
        // a failure now is no news: the token is still good, and the fetch that must succeed comes later
        this.#fetch(key, request).catch(() => undefined);
      }
      return known.value;
    }
    return (await abandonable(this.#fetch(key, request), signal)).value;
  }

  forget(request: TokenRequest): void {
    this.#tokens.delete(keyOf(request));
  }

  #fetch(key: string, request: TokenRequest): Promise<Token> {
    return this.#flights.join(key, async () => {
      const token = await fetchToken(this.#transport, request, this.#clock);
      if (this.#tokens.size >= TOKENS_MAX) this.#tokens.delete(this.#tokens.keys().next().value!);
      this.#tokens.set(key, token);
      return token;
    });
  }
}

const identities = new WeakMap<Credential, number>();
let lastIdentity = 0;

/** Credentials are told apart by object, so that no secret is ever part of a key. */
function keyOf(request: TokenRequest): string {
  let identity = 0;
  if (request.credential !== undefined) {
    identity = identities.get(request.credential) ?? ++lastIdentity;
    identities.set(request.credential, identity);
  }
  return JSON.stringify([request.registry.origin, request.realm, request.service, request.scopes, identity]);
}

async function fetchToken(transport: Transport, request: TokenRequest, clock: Clock): Promise<Token> {
  const realm = checkedRealm(request);
  const what = `token from ${realm.host}`;
  const signal = AbortSignal.timeout(FETCH_DEADLINE_MS);
  let response: TransportResponse | undefined;
  if (request.credential !== undefined) {
    response = await transport.send({
      method: "POST",
      url: realm,
      kind: "token",
      headers: { "content-type": "application/x-www-form-urlencoded", accept: "application/json" },
      body: Buffer.from(oauthForm(request, request.credential)),
      signal,
    });
    // servers without OAuth answer so; then the older form (specs/containerd.md 13.1)
    const noOauth = [400, 401, 404, 405].includes(response.status);
    if (noOauth && request.credential.kind === "password") {
      await response.discard();
      response = undefined;
    }
  }
  response ??= await transport.send({
    method: "GET",
    url: withQuery(realm, request),
    kind: "token",
    headers: {
      accept: "application/json",
      ...(request.credential?.kind === "password"
        ? { authorization: basicHeader(request.credential.username, request.credential.password).reveal() }
        : {}),
    },
    signal,
  });
  if (response.status !== 200) {
    const error = await registryError(response, what);
    // 400 and 403 from a token server mean: not with this credential
    if (response.status >= 400 && response.status < 500 && response.status !== 429 && response.status !== 408) {
      throw new HeadstartError("HS_REGISTRY_AUTH", { what, cause: error, status: response.status });
    }
    throw error;
  }
  return readToken(await readSmallBody(response, LIMITS.tokenAnswerBytes), what, clock.now());
}

function checkedRealm(request: TokenRequest): URL {
  const realm = URL.parse(request.realm, request.registry);
  const refuse = (why: string) =>
    new HeadstartError("HS_REGISTRY_PROTOCOL", { what: `${request.registry.host} names a token server ${why}` });
  if (realm === null || !/^https?:$/.test(realm.protocol)) throw refuse("that is no URL");
  if (realm.protocol === "http:" && request.registry.protocol === "https:") {
    throw refuse(`without TLS (${realm.host}), though it speaks TLS itself`);
  }
  realm.username = "";
  realm.password = "";
  realm.hash = "";
  return realm;
}

function oauthForm(request: TokenRequest, credential: Credential): string {
  const form = new URLSearchParams({ client_id: CLIENT_ID });
  if (request.service !== undefined) form.set("service", request.service);
  if (request.scopes.length > 0) form.set("scope", request.scopes.join(" "));
  if (credential.kind === "password") {
    form.set("grant_type", "password");
    form.set("username", credential.username);
    form.set("password", credential.password.reveal());
  } else {
    form.set("grant_type", "refresh_token");
    form.set("refresh_token", credential.token.reveal());
  }
  return form.toString();
}

function withQuery(realm: URL, request: TokenRequest): URL {
  const url = new URL(realm);
  if (request.service !== undefined) url.searchParams.set("service", request.service);
  for (const scope of request.scopes) url.searchParams.append("scope", scope);
  return url;
}

function readToken(body: Uint8Array | undefined, what: string, now: number): Token {
  let document: unknown;
  try {
    document = body === undefined ? undefined : JSON.parse(Buffer.from(body).toString("utf8"));
  } catch {
    document = undefined; // the answer may hold a token, so it is not quoted
  }
  const fields = (typeof document === "object" && document !== null ? document : {}) as Record<string, unknown>;
  const value = [fields.token, fields.access_token].find((text) => typeof text === "string" && text !== "");
  // what would break a header is no token
  if (typeof value !== "string" || !/^[\x21-\x7e]+$/.test(value)) {
    throw new HeadstartError("HS_REGISTRY_PROTOCOL", { what: `${what}: the answer holds no token` });
  }
  const seconds =
    typeof fields.expires_in === "number" && fields.expires_in > 0 ? fields.expires_in : EXPIRES_DEFAULT_S;
  // by our own clock from now on: issued_at is the server's
  return { value: new Secret(value), fetchedAt: now, expiresAt: now + Math.min(seconds, EXPIRES_MAX_S) * 1000 };
}
