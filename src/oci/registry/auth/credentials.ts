/**
 * Credentials and where they come from. A source is asked for one host (the one that is contacted: a mirror is another host than the
 * image's) and answers with a credential or none. Order of sources: specs/containerd.md 11.
 */

import { HeadstartError } from "../../../base/errors.ts";
import { Secret } from "../../../base/secret.ts";

export type Credential =
  | { readonly kind: "password"; readonly username: string; readonly password: Secret }
  /** An OAuth refresh token ("identity token" in docker's words). */
  | { readonly kind: "identity-token"; readonly token: Secret }
  /** A bearer token for the registry itself, sent as it is. */
  | { readonly kind: "registry-token"; readonly token: Secret };

export interface CredentialQuery {
  /** The host that is contacted, with its port if it is not the scheme's: "registry-1.docker.io", "localhost:5000". */
  readonly host: string;
  readonly repository: string;
}

export interface CredentialSource {
  /** For messages: "--creds", "docker configuration". */
  readonly name: string;
  /** Throws HS_CREDENTIALS when the source is broken (as against: has nothing for this host). */
  get(query: CredentialQuery, signal?: AbortSignal): Promise<Credential | undefined>;
  /** The last answer was refused: the next `get` must not come from a cache. */
  forget?(query: CredentialQuery): void;
}

/** Reads `--creds user:password`. It holds for one host only: the one that the command names. Throws HS_USAGE. */
export function staticCredentials(text: string, host: string, name = "--creds"): CredentialSource {
  const colon = text.indexOf(":");
  if (colon <= 0) throw new HeadstartError("HS_USAGE", { what: `${name}: write USER:PASSWORD` });
  const credential = {
    kind: "password",
    username: text.slice(0, colon),
    password: new Secret(text.slice(colon + 1)),
  } as const;
  return fixedCredential(credential, host, name);
}

export function fixedCredential(credential: Credential, host: string, name: string): CredentialSource {
  const wanted = canonicalHost(host);
  return {
    name,
    get: async (query) => (canonicalHost(query.host) === wanted ? credential : undefined),
  };
}

/** Docker Hub goes by several names. */
export function canonicalHost(host: string): string {
  const lower = host.toLowerCase();
  return lower === "registry-1.docker.io" || lower === "index.docker.io" ? "docker.io" : lower;
}

/** A value for an Authorization header. */
export function basicHeader(username: string, password: Secret): Secret {
  return new Secret(`Basic ${Buffer.from(`${username}:${password.reveal()}`, "utf8").toString("base64")}`);
}

export function bearerHeader(token: Secret): Secret {
  return new Secret(`Bearer ${token.reveal()}`);
}
