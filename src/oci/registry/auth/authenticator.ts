/**
 * Answers one registry host's challenges. For each repository it remembers which source of credentials is in use and how the host wants to be
 * spoken to, so that later requests carry their Authorization at once.
 *
 *   anonymous ──401──> source 0 ──401/403──> source 0 renewed ──401/403──> source 1 ──> ... ──> without credential ──> give up
 *
 * Each request renews at most once per source and then walks on, so a host that refuses everything costs a bounded number of requests. Renewing drops
 * the token; the source is asked again without its cache too, but not more often than every few seconds (a plugin is a process and an API call).
 * What is made here is only ever given to requests for this host (host-client.ts).
 */

import type { Clock } from "../../../base/clock.ts";
import { describeError, HeadstartError } from "../../../base/errors.ts";
import { publish } from "../../../base/events.ts";
import type { Secret } from "../../../base/secret.ts";
import { abandonable } from "../wait.ts";
import { type Challenge, parseChallenges, pickChallenge } from "./challenge.ts";
import { basicHeader, bearerHeader, type Credential, type CredentialSource } from "./credentials.ts";
import { mergeScopes } from "./scope.ts";
import type { TokenCache, TokenRequest } from "./token.ts";

/** What went out with a request: hand it back with the answer that refused it. */
export interface Authorization {
  readonly header: Secret | undefined;
  /** Index of the source used; sources.length means without credential. */
  readonly source: number;
  readonly renewal: number;
  readonly token: TokenRequest | undefined;
}

interface Walk {
  readonly repository: string;
  readonly state: RepositoryState;
  readonly scopes: readonly string[];
  readonly round: AuthRound;
}

interface RepositoryState {
  /** How this host wants to be spoken to; undefined before its first challenge. */
  challenge: Challenge | undefined;
  source: number;
  renewal: number;
  forgottenAt: number;
  credential: { readonly value: Credential | undefined } | undefined;
  asking: Promise<void> | undefined;
}

/** One request's way through the sources: those that it renewed already. */
export type AuthRound = Set<number>;

const FORGET_EVERY_MS = 10_000;
const REPOSITORIES_MAX = 1000;

export class Authenticator {
  readonly #origin: URL;
  readonly #host: string;
  readonly #sources: readonly CredentialSource[];
  readonly #tokens: TokenCache;
  readonly #clock: Clock;
  readonly #states = new Map<string, RepositoryState>();

  constructor(parts: {
    readonly origin: URL;
    /** By which credentials are looked up. */
    readonly host: string;
    readonly sources: readonly CredentialSource[];
    readonly tokens: TokenCache;
    readonly clock: Clock;
  }) {
    this.#origin = parts.origin;
    this.#host = parts.host;
    this.#sources = parts.sources;
    this.#tokens = parts.tokens;
    this.#clock = parts.clock;
  }

  /** What to send with a request for these scopes; undefined while the host has not asked for anything. */
  async authorize(
    repository: string,
    scopes: readonly string[],
    round: AuthRound,
    signal?: AbortSignal,
  ): Promise<Authorization | undefined> {
    const state = this.#states.get(repository);
    if (state?.challenge === undefined) return undefined;
    return this.#answer({ repository, state, scopes, round }, state.challenge, signal);
  }

  /** After a 401 or 403: what to try next, or undefined when there is nothing left to try. */
  async challenged(
    repository: string,
    scopes: readonly string[],
    used: Authorization | undefined,
    authenticate: string | undefined,
    round: AuthRound,
    signal?: AbortSignal,
  ): Promise<Authorization | undefined> {
    const state = this.#state(repository);
    const challenge = pickChallenge(parseChallenges(authenticate)) ?? state.challenge;
    if (challenge === undefined) return undefined;
    state.challenge = challenge;
    // another request has moved on meanwhile: go where it went
    const current = used !== undefined && used.source === state.source && used.renewal === state.renewal;
    if (used !== undefined && current && !this.#moveOn({ repository, state, scopes, round }, used)) return undefined;
    return this.#answer({ repository, state, scopes, round }, challenge, signal);
  }

  #state(repository: string): RepositoryState {
    let state = this.#states.get(repository);
    if (state === undefined) {
      if (this.#states.size >= REPOSITORIES_MAX) this.#states.delete(this.#states.keys().next().value!);
      state = {
        challenge: undefined,
        source: 0,
        renewal: 0,
        forgottenAt: Number.NEGATIVE_INFINITY,
        credential: undefined,
        asking: undefined,
      };
      this.#states.set(repository, state);
    }
    return state;
  }

  /** False when there is nothing left to try for this request. */
  #moveOn({ repository, state, round }: Walk, used: Authorization): boolean {
    if (used.token !== undefined) this.#tokens.forget(used.token);
    state.renewal++;
    if (!round.has(state.source)) {
      round.add(state.source);
      const now = this.#clock.monotonic();
      if (now - state.forgottenAt >= FORGET_EVERY_MS) {
        state.forgottenAt = now;
        this.#sources[state.source]?.forget?.({ host: this.#host, repository });
        state.credential = undefined;
      }
      return true;
    }
    state.credential = undefined;
    if (state.source < this.#sources.length) {
      state.source++;
      return true;
    }
    // the next request begins at the best source again
    state.source = 0;
    return false;
  }

  async #answer(walk: Walk, challenge: Challenge, signal: AbortSignal | undefined): Promise<Authorization | undefined> {
    const { repository, state, scopes } = walk;
    for (;;) {
      const credential = await this.#credential(repository, state, signal);
      const place = { source: state.source, renewal: state.renewal };
      if (challenge.scheme === "basic") {
        if (credential === undefined) return undefined;
        if (credential.kind === "password") {
          return { ...place, header: basicHeader(credential.username, credential.password), token: undefined };
        }
      }
      if (credential?.kind === "registry-token")
        return { ...place, header: bearerHeader(credential.token), token: undefined };
      if (challenge.scheme === "bearer") {
        const token: TokenRequest = {
          registry: this.#origin,
          realm: challenge.parameters.realm!,
          service: challenge.parameters.service,
          // what the registry wants may be more than what we thought of
          scopes: mergeScopes(scopes, relevantScopes(challenge, repository)),
          credential,
        };
        try {
          return { ...place, header: bearerHeader(await this.#tokens.get(token, signal)), token };
        } catch (error) {
          if (!(error instanceof HeadstartError) || error.code !== "HS_REGISTRY_AUTH") throw error;
          // this credential is refused by the token server: the next one
          if (!this.#moveOn(walk, { ...place, header: undefined, token })) throw error;
          continue;
        }
      }
      // an identity token and a host that wants a password: not for this host
      if (state.source >= this.#sources.length) return undefined;
      state.source++;
      state.credential = undefined;
    }
  }

  /** The credential of the source in use. Requests that begin together ask once: a helper is a process, and each credential its own token. */
  async #credential(
    repository: string,
    state: RepositoryState,
    signal: AbortSignal | undefined,
  ): Promise<Credential | undefined> {
    while (state.credential === undefined) {
      state.asking ??= this.#ask(repository, state).finally(() => {
        state.asking = undefined;
      });
      await abandonable(state.asking, signal);
    }
    return state.credential.value;
  }

  /** Sources that have none for this host, or are broken, are passed. They keep their own deadlines. */
  async #ask(repository: string, state: RepositoryState): Promise<void> {
    while (state.source < this.#sources.length) {
      const index = state.source;
      const source = this.#sources[index]!;
      let value: Credential | undefined;
      try {
        value = await source.get({ host: this.#host, repository });
      } catch (error) {
        publish("registry:credentials", { host: this.#host, source: source.name, error: describeError(error) });
      }
      if (state.source !== index) continue; // a refusal moved us on while we asked
      if (value !== undefined) {
        state.credential = { value };
        return;
      }
      state.source++;
    }
    state.credential = { value: undefined };
  }
}

/** Only scopes of this very repository: a registry must not make us ask for a token to somebody's other repositories. */
function relevantScopes(challenge: Challenge, repository: string): string[] {
  const asked = challenge.parameters.scope?.split(/\s+/) ?? [];
  return asked.filter((scope) => scope.startsWith(`repository:${repository}:`) || scope.startsWith("registry:"));
}
