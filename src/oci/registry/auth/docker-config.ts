/**
 * Credentials of `docker login` and `podman login` (specs/containerd.md 11.2): `auths`, `credHelpers`, `credsStore`, identity and registry tokens. The
 * file is read again at each use, since helpers and kubelets rotate it.
 */

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { HeadstartError } from "../../../base/errors.ts";
import { Secret } from "../../../base/secret.ts";
import { field, type JsonObject } from "../../json.ts";
import { type Credential, type CredentialQuery, type CredentialSource, canonicalHost } from "./credentials.ts";
import { runCredentialProgram } from "./exec.ts";

type Environment = Readonly<Record<string, string | undefined>>;

const CONFIG_CHARACTERS = 4 * 1024 * 1024;
/** What docker calls Docker Hub in its files, and asks helpers for. */
const HUB_KEY = "https://index.docker.io/v1/";
const HELPER_NAME = /^[\w.-]{1,100}$/;

/** Where docker and the containers tools keep their files, most particular first. */
export function dockerConfigPaths(env: Environment): string[] {
  const home = env.HOME ?? "/root";
  const paths = [
    env.REGISTRY_AUTH_FILE,
    env.DOCKER_CONFIG ? join(env.DOCKER_CONFIG, "config.json") : join(home, ".docker", "config.json"),
    env.XDG_RUNTIME_DIR ? join(env.XDG_RUNTIME_DIR, "containers", "auth.json") : undefined,
    join(home, ".config", "containers", "auth.json"),
  ];
  return paths.filter((path) => path !== undefined && path !== "") as string[];
}

export function dockerConfigSource(path: string, env: Environment): CredentialSource {
  return {
    name: `docker configuration ${path}`,
    get: (query, signal) => lookUp(path, env, query, signal),
  };
}

async function lookUp(
  path: string,
  env: Environment,
  query: CredentialQuery,
  signal: AbortSignal | undefined,
): Promise<Credential | undefined> {
  const config = await readConfig(path);
  if (config === undefined) return undefined;
  const helper = helperFor(config, query.host);
  if (helper !== undefined) {
    const credential = await askHelper(helper, helperServer(query.host), env, signal);
    if (credential !== undefined) return credential;
  }
  const auths = object(config, "auths");
  for (const key of configKeys(auths, query)) {
    const entry = object(auths, key);
    const credential = readEntry(entry, `${path}: ${JSON.stringify(key)}`);
    if (credential !== undefined) return credential;
  }
  return undefined;
}

async function readConfig(path: string): Promise<JsonObject | undefined> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw new HeadstartError("HS_CREDENTIALS", { what: `${path} cannot be read`, cause });
  }
  let value: unknown;
  if (text.length <= CONFIG_CHARACTERS) {
    try {
      value = JSON.parse(text);
    } catch {
      value = undefined; // the parser's message quotes the text, which holds secrets
    }
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new HeadstartError("HS_CREDENTIALS", { what: `${path}: not a JSON object` });
  }
  return value as JsonObject;
}

function object(parent: JsonObject, key: string): JsonObject {
  const value = field(parent, key);
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as JsonObject) : {};
}

function helperFor(config: JsonObject, host: string): string | undefined {
  const helpers = object(config, "credHelpers");
  const wanted = canonicalHost(host);
  const key = Object.keys(helpers).find((name) => canonicalHost(keyHost(name).host) === wanted);
  const name = key === undefined ? field(config, "credsStore") : helpers[key];
  return typeof name === "string" && name !== "" ? name : undefined;
}

function helperServer(host: string): string {
  return canonicalHost(host) === "docker.io" ? HUB_KEY : host;
}

/** Keys of `auths` that fit, best first: the longest path that begins the repository, then the host alone. */
export function configKeys(auths: JsonObject, query: CredentialQuery): string[] {
  const wanted = canonicalHost(query.host);
  return Object.keys(auths)
    .map((key) => ({ key, ...keyHost(key) }))
    .filter(({ host, path }) => {
      if (canonicalHost(host) !== wanted) return false;
      return path === "" || query.repository === path || query.repository.startsWith(`${path}/`);
    })
    .sort((a, b) => b.path.length - a.path.length)
    .map(({ key }) => key);
}

/** "https://host/v1/", "host" and "host/path" into their parts; the API versions that docker wrote there are no path. */
function keyHost(key: string): { host: string; path: string } {
  const bare = key.replace(/^https?:\/\//, "");
  const slash = bare.indexOf("/");
  const host = slash < 0 ? bare : bare.slice(0, slash);
  const path = slash < 0 ? "" : bare.slice(slash + 1).replace(/\/+$/, "");
  return { host, path: path === "v1" || path === "v2" ? "" : path };
}

function readEntry(entry: JsonObject, what: string): Credential | undefined {
  const text = (key: string) => {
    const value = field(entry, key);
    return typeof value === "string" && value !== "" ? value : undefined;
  };
  const registryToken = text("registrytoken");
  if (registryToken !== undefined) return { kind: "registry-token", token: new Secret(registryToken) };
  const identityToken = text("identitytoken");
  if (identityToken !== undefined) return { kind: "identity-token", token: new Secret(identityToken) };
  const auth = text("auth");
  if (auth !== undefined) {
    // docker pads with NUL
    const decoded = Buffer.from(auth, "base64").toString("utf8").replace(/\0+$/, "");
    const colon = decoded.indexOf(":");
    if (colon <= 0) throw new HeadstartError("HS_CREDENTIALS", { what: `${what}: auth is no base64 of user:password` });
    const [username, password] = [decoded.slice(0, colon), decoded.slice(colon + 1)];
    return { kind: "password", username, password: new Secret(password) };
  }
  const username = text("username");
  const password = text("password");
  return username === undefined || password === undefined
    ? undefined
    : { kind: "password", username, password: new Secret(password) };
}

/** `docker-credential-<name> get`. Nothing found is no error. */
async function askHelper(
  name: string,
  server: string,
  env: Environment,
  signal: AbortSignal | undefined,
): Promise<Credential | undefined> {
  if (!HELPER_NAME.test(name)) {
    throw new HeadstartError("HS_CREDENTIALS", {
      what: `${JSON.stringify(name.slice(0, 100))} is no name of a credential helper`,
    });
  }
  const program = `docker-credential-${name}`;
  const { status, stdout, complaint } = await runCredentialProgram(program, ["get"], { stdin: server, env, signal });
  if (status !== 0) {
    if (/credentials not found/i.test(stdout + complaint)) return undefined;
    throw new HeadstartError("HS_CREDENTIALS", { what: `${program} get: exit status ${status}: ${complaint}` });
  }
  let answer: unknown;
  try {
    answer = JSON.parse(stdout);
  } catch {
    answer = undefined;
  }
  const { Username: username, Secret: secret } = (answer ?? {}) as { Username?: unknown; Secret?: unknown };
  if (typeof username !== "string" || typeof secret !== "string") {
    throw new HeadstartError("HS_CREDENTIALS", { what: `${program} get: the answer is not what the protocol says` });
  }
  if (secret === "") return undefined;
  if (username === "<token>") return { kind: "identity-token", token: new Secret(secret) };
  return { kind: "password", username, password: new Secret(secret) };
}
