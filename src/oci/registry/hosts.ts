/**
 * containerd's `hosts.toml` directories (specs/containerd.md 12; containerd core/remotes/docker/config/hosts.go): which hosts serve the images of one
 * registry, in which order, for what, and how they are spoken to. Files are read again for each repository that is opened.
 */

import { readdir, readFile } from "node:fs/promises";
import { isAbsolute, join, posix } from "node:path";
import { parse as parseToml, type TomlTable } from "smol-toml";
import { describeError, HeadstartError } from "../../base/errors.ts";
import { publish } from "../../base/events.ts";
import { parseGoDuration } from "./duration.ts";
import { isLoopback } from "./transport/proxy.ts";
import type { TlsSettings } from "./transport/undici.ts";

export type Capability = "pull" | "resolve" | "push" | "referrers";
const CAPABILITIES: readonly Capability[] = ["pull", "resolve", "push", "referrers"];

/** One host that serves (or takes) blobs and manifests of a registry. */
export interface RegistryEndpoint {
  readonly scheme: "http" | "https";
  /** host[:port], as in the URL: also the name by which credentials are looked up. */
  readonly host: string;
  /** What stands before `/<repository>/...`: "/v2", or what override_path says. */
  readonly path: string;
  readonly capabilities: ReadonlySet<Capability>;
  readonly tls: TlsSettings;
  readonly headers: Readonly<Record<string, readonly string[]>>;
  readonly dialTimeoutMs: number | undefined;
  /** Sent as `?ns=` to hosts other than the registry itself. */
  readonly namespace: string | undefined;
  /** Plain HTTP is configured or assumed, but TLS settings too: TLS is tried first (containerd's HTTPFallback). */
  readonly tlsFirst: boolean;
}

export const DEFAULT_HOSTS_DIRS = ["/etc/containerd/certs.d", "/etc/docker/certs.d"];

const HOSTS_FILE_BYTES = 1024 * 1024;

/** Splits a `config_path`: directories joined by ":". */
export function splitHostsDirs(configPath: string): string[] {
  return configPath.split(":").filter((part) => part !== "");
}

/** The endpoints of `registry` (an image reference's host), in the order in which they are asked. Throws HS_CONFIG for a word that means nothing. */
export async function loadEndpoints(registry: string, directories: readonly string[]): Promise<RegistryEndpoint[]> {
  const directory = await findHostDirectory(registry, directories);
  if (directory === undefined) return [defaultEndpoint(registry)];
  const path = join(directory, "hosts.toml");
  const text = await readSmallFile(path);
  if (text !== undefined) {
    let table: TomlTable | undefined;
    try {
      table = parseToml(text);
    } catch (error) {
      // as containerd: a file that cannot be parsed is as good as absent, but not silently
      publish("registry:hosts", { registry, file: path, error: describeError(error) });
    }
    if (table !== undefined) return parseHosts(table, registry, directory);
  }
  const tls = await dockerCertificates(directory);
  return [{ ...defaultEndpoint(registry), ...(tls === undefined ? {} : { tls }) }];
}

async function findHostDirectory(registry: string, directories: readonly string[]): Promise<string | undefined> {
  const port = /^(.*):(\d+)$/.exec(registry);
  const names = [...(port === null ? [] : [`${port[1]}_${port[2]}_`]), registry, "_default"];
  for (const directory of directories) {
    for (const name of names) {
      const path = join(directory, name);
      const entries = await readdir(path).catch(() => undefined); // unreadable is as good as absent
      if (entries !== undefined) return path;
    }
  }
  return undefined;
}

/** Without any configuration: the registry itself, by TLS unless it is on this machine. */
export function defaultEndpoint(registry: string): RegistryEndpoint {
  const base = {
    path: "/v2",
    capabilities: new Set(CAPABILITIES),
    tls: { ca: [], client: [], skipVerify: false },
    headers: {},
    dialTimeoutMs: undefined,
    namespace: undefined,
    tlsFirst: false,
  };
  if (registry === "docker.io") return { ...base, scheme: "https", host: "registry-1.docker.io" };
  const { hostname, port } = new URL(`https://${registry}`);
  if (!isLoopback(hostname.replace(/^\[|\]$/g, ""))) return { ...base, scheme: "https", host: registry };
  const explicit = /:(\d+)$/.exec(registry)?.[1] ?? port;
  if (explicit === "80") return { ...base, scheme: "http", host: registry };
  const tls = { ...base.tls, skipVerify: true };
  if (explicit === "" || explicit === "443") return { ...base, scheme: "https", host: registry, tls };
  return { ...base, scheme: "http", host: registry, tls, tlsFirst: true };
}

/** Reads a hosts.toml. `directory` is what relative paths in it begin at. */
export async function parseHosts(table: TomlTable, registry: string, directory: string): Promise<RegistryEndpoint[]> {
  const hosts = table.host ?? {};
  if (!isTable(hosts)) throw bad("host", directory, "a table of tables");
  const endpoints: RegistryEndpoint[] = [];
  for (const [url, settings] of Object.entries(hosts)) {
    if (!isTable(settings)) throw bad(`host.${url}`, directory, "a table");
    endpoints.push(await readEndpoint(url, settings, registry, directory));
  }
  const server = table.server ?? "";
  if (typeof server !== "string") throw bad("server", directory, "a URL");
  endpoints.push(await readEndpoint(server, table, registry, directory));
  return endpoints;
}

async function readEndpoint(
  server: string,
  settings: TomlTable,
  registry: string,
  directory: string,
): Promise<RegistryEndpoint> {
  const where = server === "" ? "server" : server;
  const ca = await Promise.all(
    stringList(settings.ca, `${where}: ca`, directory).map((path) => readPem(path, directory)),
  );
  const client = await readClientPairs(settings.client, where, directory);
  const skipVerify = settings.skip_verify;
  if (skipVerify !== undefined && typeof skipVerify !== "boolean")
    throw bad(`${where}: skip_verify`, directory, "true or false");
  const words = stringList(settings.capabilities, `${where}: capabilities`, directory).map((word) =>
    word.toLowerCase(),
  );
  for (const word of words) {
    if (!CAPABILITIES.includes(word as Capability))
      throw bad(`${where}: capabilities`, directory, "pull, resolve, push or referrers");
  }
  const common = {
    capabilities: new Set(words.length === 0 ? CAPABILITIES : (words as Capability[])),
    headers: readHeaders(settings.header, where, directory),
    dialTimeoutMs: readDuration(settings.dial_timeout, `${where}: dial_timeout`, directory),
  };
  const configuresTls = ca.length > 0 || client.length > 0 || skipVerify !== undefined;
  if (server === "") {
    const base = defaultEndpoint(registry);
    const tls = { ca, client, skipVerify: skipVerify ?? base.tls.skipVerify };
    return { ...base, ...common, tls };
  }
  const url = URL.parse(server.includes("://") ? server : `https://${server}`);
  if (url === null || !/^https?:$/.test(url.protocol) || url.host === "")
    throw bad(where, directory, "a URL of a host");
  const scheme = url.protocol === "http:" ? "http" : "https";
  return {
    ...common,
    scheme,
    host: url.host,
    path: endpointPath(url.pathname, settings.override_path === true),
    tls: { ca, client, skipVerify: skipVerify ?? false },
    namespace: isSameHost(url.host, registry) ? undefined : registry,
    tlsFirst: scheme === "http" && configuresTls && url.port !== "80" && url.port !== "",
  };
}

function endpointPath(pathname: string, override: boolean): string {
  const clean = pathname === "/" ? "" : posix.normalize(pathname).replace(/\/+$/, "");
  return override || clean.endsWith("/v2") ? clean : `${clean}/v2`;
}

function isSameHost(host: string, registry: string): boolean {
  return host === registry || (registry === "docker.io" && host === "registry-1.docker.io");
}

async function readClientPairs(
  value: unknown,
  where: string,
  directory: string,
): Promise<{ cert: string; key: string }[]> {
  if (value === undefined) return [];
  const list: unknown[] = typeof value === "string" ? [value] : Array.isArray(value) ? value : [undefined];
  const wanted = "a path, a list of paths, or a list of [certificate, key]";
  return Promise.all(
    list.map(async (item) => {
      const paths = typeof item === "string" ? [item] : item;
      if (
        !Array.isArray(paths) ||
        paths.length < 1 ||
        paths.length > 2 ||
        paths.some((path) => typeof path !== "string")
      ) {
        throw bad(`${where}: client`, directory, wanted);
      }
      const cert = await readPem(paths[0], directory);
      // a lone path, or an empty key path, means that the file holds both
      return { cert, key: paths[1] ? await readPem(paths[1], directory) : cert };
    }),
  );
}

function readHeaders(value: unknown, where: string, directory: string): Record<string, string[]> {
  if (value === undefined) return {};
  if (!isTable(value)) throw bad(`${where}: header`, directory, "a table");
  const headers: Record<string, string[]> = {};
  for (const [name, item] of Object.entries(value)) {
    const values = stringList(item, `${where}: header ${name}`, directory);
    const sound =
      /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/.test(name) && values.every((text) => /^[\t\x20-\x7e\x80-\xff]*$/.test(text));
    if (!sound) throw bad(`${where}: header ${name}`, directory, "a header name and its value");
    headers[name.toLowerCase()] = values;
  }
  return headers;
}

const DIAL_MS_MAX = 3_600_000;

function readDuration(value: unknown, where: string, directory: string): number | undefined {
  if (value === undefined) return undefined;
  const ms = typeof value === "string" ? parseGoDuration(value.trim()) : undefined;
  if (ms === undefined) throw bad(where, directory, 'a duration such as "1s"');
  return Math.min(Math.max(1, ms), DIAL_MS_MAX);
}

/** As docker lays them out: *.crt are authorities, *.cert with *.key of the same name are client pairs. */
async function dockerCertificates(directory: string): Promise<TlsSettings | undefined> {
  const names = (await readdir(directory)).sort();
  const ca = await Promise.all(names.filter((name) => name.endsWith(".crt")).map((name) => readPem(name, directory)));
  const client = await Promise.all(
    names
      .filter((name) => name.endsWith(".cert"))
      .map(async (name) => ({
        cert: await readPem(name, directory),
        key: await readPem(name.replace(/\.cert$/, ".key"), directory),
      })),
  );
  return ca.length + client.length === 0 ? undefined : { ca, client, skipVerify: false };
}

async function readPem(path: string, directory: string): Promise<string> {
  const absolute = isAbsolute(path) ? path : join(directory, path);
  const text = await readSmallFile(absolute);
  if (text === undefined)
    throw new HeadstartError("HS_CONFIG", { what: `${absolute}: named by hosts.toml, but not there` });
  return text;
}

async function readSmallFile(path: string): Promise<string | undefined> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw new HeadstartError("HS_CONFIG", { what: `${path} cannot be read`, cause });
  }
  if (text.length > HOSTS_FILE_BYTES) throw new HeadstartError("HS_CONFIG", { what: `${path}: longer than 1 MiB` });
  return text;
}

function stringList(value: unknown, where: string, directory: string): string[] {
  if (value === undefined) return [];
  const list: unknown[] = Array.isArray(value) ? value : [value];
  if (list.some((item) => typeof item !== "string")) throw bad(where, directory, "a string or a list of strings");
  return list as string[];
}

function isTable(value: unknown): value is TomlTable {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Date);
}

function bad(where: string, directory: string, wanted: string): HeadstartError {
  return new HeadstartError("HS_CONFIG", { what: `${join(directory, "hosts.toml")}: ${where}: ${wanted} wanted` });
}
