/**
 * Kubelet credential provider plugins (specs/containerd.md 11.1): the programs that a node's kubelet is configured with, run by ourselves. So a node
 * without any docker configuration (EKS) has credentials, and they can be renewed.
 */

import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { parse as parseYaml } from "yaml";
import type { Clock } from "../../../base/clock.ts";
import { HeadstartError } from "../../../base/errors.ts";
import { Flights } from "../../../base/limit.ts";
import { Secret } from "../../../base/secret.ts";
import { field, type JsonObject } from "../../json.ts";
import { parseGoDuration } from "../duration.ts";
import { abandonable } from "../wait.ts";
import { type Credential, type CredentialQuery, type CredentialSource, canonicalHost } from "./credentials.ts";
import { runCredentialProgram } from "./exec.ts";

export interface KubeletProviders {
  /** A file, or a directory of *.yaml, *.yml and *.json in the order of their names. */
  readonly configPath: string;
  readonly binDir: string;
}

/** Where Amazon's node images have them. */
export const EKS_PROVIDERS: KubeletProviders = {
  configPath: "/etc/eks/image-credential-provider/config.json",
  binDir: "/etc/eks/image-credential-provider",
};

interface Provider {
  readonly name: string;
  readonly apiVersion: string;
  readonly matchImages: readonly string[];
  readonly defaultCacheMs: number;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

interface Answer {
  readonly cacheKey: "Image" | "Registry" | "Global";
  readonly cacheMs: number;
  readonly auth: readonly { readonly pattern: string; readonly credential: Credential }[];
}

const API_VERSIONS = /^credentialprovider\.kubelet\.k8s\.io\/v1(?:alpha1|beta1)?$/;
const CONFIG_CHARACTERS = 1024 * 1024;
const CACHE_MAX = 1000;

export function kubeletSource(
  providers: KubeletProviders,
  options: {
    readonly clock: Clock;
    readonly env: Readonly<Record<string, string | undefined>>;
    readonly deadlineMs?: number;
  },
): CredentialSource {
  const cache = new Map<string, { answer: Answer; expiresAt: number }>();
  const flights = new Flights<string, Answer>();
  const keysOf = (provider: Provider, query: CredentialQuery) =>
    (["Image", "Registry", "Global"] as const).map((type) => cacheKey(provider, type, query));

  async function ask(provider: Provider, query: CredentialQuery, signal: AbortSignal | undefined): Promise<Answer> {
    for (const key of keysOf(provider, query)) {
      const known = cache.get(key);
      if (known !== undefined && options.clock.now() < known.expiresAt) return known.answer;
    }
    const flight = flights.join(cacheKey(provider, "Image", query), () =>
      runProvider(provider, providers.binDir, query, { env: options.env, deadlineMs: options.deadlineMs }),
    );
    const answer = await abandonable(flight, signal);
    if (answer.cacheMs > 0) {
      if (cache.size >= CACHE_MAX) cache.delete(cache.keys().next().value!);
      const expiresAt = options.clock.now() + answer.cacheMs;
      cache.set(cacheKey(provider, answer.cacheKey, query), { answer, expiresAt });
    }
    return answer;
  }

  return {
    name: `kubelet credential providers ${providers.configPath}`,
    async get(query, signal) {
      const image = imageOf(query);
      for (const provider of await readProviders(providers.configPath)) {
        if (!provider.matchImages.some((pattern) => matchImage(pattern, image))) continue;
        const { auth } = await ask(provider, query, signal);
        const found = auth.find(({ pattern }) => matchImage(pattern, image));
        if (found !== undefined) return found.credential;
      }
      return undefined;
    },
    forget(query) {
      // a refused credential may sit under any of the three keys, of any provider
      for (const key of cache.keys()) {
        const [, type, value] = JSON.parse(key) as [string, string, string];
        if (type === "Global" || value === imageOf(query) || value === canonicalHost(query.host)) cache.delete(key);
      }
    },
  };
}

function cacheKey(provider: Provider, type: Answer["cacheKey"], query: CredentialQuery): string {
  const value = { Image: imageOf(query), Registry: canonicalHost(query.host), Global: "" }[type];
  return JSON.stringify([provider.name, type, value]);
}

function imageOf(query: CredentialQuery): string {
  return `${canonicalHost(query.host)}/${query.repository}`;
}

/**
 * Kubernetes' rule for matchImages: as many host labels, each a glob; a port that is given must be the same; a path must be a prefix.
 * Both sides are host[:port][/path].
 */
export function matchImage(pattern: string, image: string): boolean {
  const wanted = splitImage(pattern);
  const given = splitImage(image);
  if (wanted === undefined || given === undefined) return false;
  if (wanted.port !== undefined && wanted.port !== given.port) return false;
  if (wanted.labels.length !== given.labels.length || !given.path.startsWith(wanted.path)) return false;
  return wanted.labels.every((label, index) => matchLabel(label, given.labels[index]!));
}

function splitImage(text: string): { labels: string[]; port: string | undefined; path: string } | undefined {
  const match = /^(?:https?:\/\/)?([^/:]+)(?::(\d+))?(\/.*)?$/.exec(text);
  if (match === null) return undefined;
  return { labels: match[1]!.toLowerCase().split("."), port: match[2], path: match[3] ?? "" };
}

/** `*` is any part of one label, `?` one character. */
function matchLabel(glob: string, label: string): boolean {
  let [g, l, star, mark] = [0, 0, -1, 0];
  while (l < label.length) {
    if (glob[g] === "*") {
      star = g++;
      mark = l;
    } else if (g < glob.length && (glob[g] === "?" || glob[g] === label[l])) {
      g++;
      l++;
    } else if (star >= 0) {
      g = star + 1;
      l = ++mark;
    } else return false;
  }
  while (glob[g] === "*") g++;
  return g === glob.length;
}

async function readProviders(path: string): Promise<Provider[]> {
  try {
    if (!(await stat(path)).isDirectory()) return parseProviders(await readFile(path, "utf8"), path);
    const names = (await readdir(path)).filter((name) => /\.(?:ya?ml|json)$/.test(name)).sort();
    const files = names.map((name) => join(path, name));
    const all = await Promise.all(files.map(async (file) => parseProviders(await readFile(file, "utf8"), file)));
    return all.flat();
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return [];
    if (cause instanceof HeadstartError) throw cause;
    throw new HeadstartError("HS_CREDENTIALS", { what: `${path} cannot be read`, cause });
  }
}

/** Reads a CredentialProviderConfig, YAML or JSON. Throws HS_CREDENTIALS. */
export function parseProviders(text: string, what: string): Provider[] {
  let document: unknown;
  if (text.length <= CONFIG_CHARACTERS) {
    try {
      document = parseYaml(text, { maxAliasCount: 10 });
    } catch (cause) {
      throw new HeadstartError("HS_CREDENTIALS", { what: `${what}: no YAML`, cause });
    }
  }
  const root = asRecord(document);
  if (root === undefined || field(root, "kind") !== "CredentialProviderConfig") {
    throw new HeadstartError("HS_CREDENTIALS", { what: `${what}: not a CredentialProviderConfig` });
  }
  return records(field(root, "providers")).flatMap((item) => {
    const [name, apiVersion] = [field(item, "name"), field(item, "apiVersion")];
    if (typeof name !== "string" || !/^[^\s/\\]{1,255}$/.test(name) || name === "." || name === "..") {
      throw new HeadstartError("HS_CREDENTIALS", { what: `${what}: a provider without a sound name` });
    }
    if (typeof apiVersion !== "string" || !API_VERSIONS.test(apiVersion)) {
      throw new HeadstartError("HS_CREDENTIALS", { what: `${what}: ${name}: this apiVersion is not known` });
    }
    // those want the token of a pod's service account, which we do not have
    if (field(item, "tokenAttributes") !== undefined) return [];
    const duration = field(item, "defaultCacheDuration");
    const env = records(field(item, "env")).map(
      (entry) => [String(entry.name ?? ""), String(entry.value ?? "")] as const,
    );
    return [
      {
        name,
        apiVersion,
        matchImages: texts(field(item, "matchImages")),
        defaultCacheMs: (typeof duration === "string" ? parseGoDuration(duration) : undefined) ?? 0,
        args: texts(field(item, "args")),
        env: Object.fromEntries(env),
      },
    ];
  });
}

async function runProvider(
  provider: Provider,
  binDir: string,
  query: CredentialQuery,
  options: {
    readonly env: Readonly<Record<string, string | undefined>>;
    readonly deadlineMs: number | undefined;
  },
): Promise<Answer> {
  const request = { apiVersion: provider.apiVersion, kind: "CredentialProviderRequest", image: imageOf(query) };
  const { status, stdout, complaint } = await runCredentialProgram(join(binDir, provider.name), provider.args, {
    stdin: JSON.stringify(request),
    env: { ...options.env, ...provider.env },
    ...(options.deadlineMs === undefined ? {} : { deadlineMs: options.deadlineMs }),
  });
  const what = `kubelet credential provider ${provider.name}`;
  if (status !== 0)
    throw new HeadstartError("HS_CREDENTIALS", { what: `${what}: exit status ${status}: ${complaint}` });
  return readAnswer(stdout, provider, what);
}

function readAnswer(stdout: string, provider: Provider, what: string): Answer {
  let document: unknown;
  try {
    document = JSON.parse(stdout);
  } catch {
    document = undefined; // the parser's message would quote secrets
  }
  const root = asRecord(document);
  if (root === undefined || field(root, "kind") !== "CredentialProviderResponse") {
    throw new HeadstartError("HS_CREDENTIALS", { what: `${what}: no CredentialProviderResponse` });
  }
  if (field(root, "apiVersion") !== provider.apiVersion) {
    throw new HeadstartError("HS_CREDENTIALS", { what: `${what}: answers with another apiVersion` });
  }
  const duration = field(root, "cacheDuration");
  const key = field(root, "cacheKeyType");
  const auth = asRecord(field(root, "auth")) ?? {};
  // the longest pattern wins: reverse order of bytes, as in kubelet
  const patterns = Object.keys(auth).sort().reverse();
  return {
    cacheKey: key === "Registry" || key === "Global" ? key : "Image",
    cacheMs: (typeof duration === "string" ? parseGoDuration(duration) : undefined) ?? provider.defaultCacheMs,
    auth: patterns.flatMap((pattern) => {
      const { username, password } = asRecord(auth[pattern]) ?? {};
      if (typeof username !== "string" || typeof password !== "string" || password === "") return [];
      return [{ pattern, credential: { kind: "password", username, password: new Secret(password) } as const }];
    }),
  };
}

function asRecord(value: unknown): JsonObject | undefined {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as JsonObject) : undefined;
}

function records(value: unknown): JsonObject[] {
  return (Array.isArray(value) ? value : []).map(asRecord).filter((item) => item !== undefined);
}

function texts(value: unknown): string[] {
  return (Array.isArray(value) ? value : []).filter((item) => typeof item === "string");
}
