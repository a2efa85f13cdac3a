/**
 * The daemon's configuration: TOML, every key has a default that is right for most, unknown keys are errors that name the nearest one. Read once, frozen, passed down.
 * The schema below is the documentation's source of truth (docs/configuration.md, held by a test).
 */

import { readFileSync } from "node:fs";
import { parse, TomlError } from "smol-toml";
import { HeadstartError } from "../base/errors.ts";
import { MiB } from "../base/limits.ts";

export type TrustPolicy = "bound" | "referrers";
export type Backing = "auto" | "file" | "loop";

export interface DaemonConfig {
  readonly root: string;
  readonly state: string;
  readonly address: string;
  readonly metrics: string;
  readonly log_level: "debug" | "info" | "warn" | "error";
  readonly containerd: { readonly address: string; readonly root: string };
  readonly trust: { readonly policy: TrustPolicy };
  readonly registry: {
    readonly hosts_dir: string;
    readonly docker_config: string;
    readonly credential_provider_config: string;
    readonly credential_provider_bin_dir: string;
  };
  readonly fetch: {
    readonly requests_per_host: number;
    readonly bandwidth_bytes_per_second: number;
    readonly background: boolean;
    readonly demand_timeout_seconds: number;
  };
  readonly eager: { readonly parallel_layers: number };
  readonly lazy: { readonly min_layer_size: number };
  readonly mount: { readonly backing: Backing };
}

interface Key {
  readonly fallback: string | number | boolean;
  readonly help: string;
  readonly choices?: readonly string[];
  readonly min?: number;
}

/** `{state}` in a default is replaced by the effective state directory. */
export const SCHEMA: Readonly<Record<string, Readonly<Record<string, Key>>>> = {
  "": {
    root: {
      fallback: "/var/lib/headstart",
      help: "layers, snapshots and databases; on the disk that images shall use",
    },
    state: { fallback: "/run/headstart", help: "sockets, mounts and journals: gone after a reboot" },
    address: { fallback: "{state}/headstart.sock", help: "socket of the snapshots service" },
    metrics: { fallback: "", help: "HOST:PORT for Prometheus over TCP; empty: only on the status socket" },
    log_level: {
      fallback: "info",
      help: "least severe event that is logged",
      choices: ["debug", "info", "warn", "error"],
    },
  },
  containerd: {
    address: { fallback: "/run/containerd/containerd.sock", help: "containerd's own socket" },
    root: { fallback: "/var/lib/containerd", help: "containerd's root: manifests are read from its content store" },
  },
  trust: {
    policy: {
      fallback: "bound",
      help: "bound: only indexes that the image manifest names by digest; referrers: also those that anyone with push rights attached",
      choices: ["bound", "referrers"],
    },
  },
  registry: {
    hosts_dir: {
      fallback: "/etc/containerd/certs.d:/etc/docker/certs.d",
      help: "hosts.toml directories, separated by colons",
    },
    docker_config: { fallback: "", help: "docker config.json; empty: $DOCKER_CONFIG or ~/.docker/config.json" },
    credential_provider_config: {
      fallback: "",
      help: "kubelet's credential provider configuration (file or directory); empty: that of EKS nodes if it is there",
    },
    credential_provider_bin_dir: { fallback: "", help: "where the credential provider executables are" },
  },
  fetch: {
    requests_per_host: { fallback: 8, help: "ranged requests at once to one registry", min: 1 },
    bandwidth_bytes_per_second: { fallback: 0, help: "limit for background fill; 0: none", min: 0 },
    background: { fallback: true, help: "complete lazy layers in the background" },
    demand_timeout_seconds: {
      fallback: 120,
      help: "how long a read may wait for the registry before it fails with EIO",
      min: 1,
    },
  },
  eager: { parallel_layers: { fallback: 3, help: "layers without an index that are pulled at once", min: 1 } },
  lazy: {
    min_layer_size: {
      fallback: MiB,
      help: "compressed bytes below which an indexed layer is pulled whole: one request is cheaper than two",
      min: 0,
    },
  },
  mount: {
    backing: {
      fallback: "auto",
      help: "auto: try; file: EROFS from the file; loop: through a loop device",
      choices: ["auto", "file", "loop"],
    },
  },
};

export interface LoadedConfig {
  readonly config: DaemonConfig;
  /** Where each value came from: "default", "file" or "command line", by "table.key". */
  readonly origins: ReadonlyMap<string, string>;
}

/**
 * `overrides` are values of the command line by "table.key" ("root" for top-level keys). A missing default file is fine, a missing explicit one an error.
 * Throws HS_CONFIG with line and column.
 */
export function loadConfig(
  file: { path: string; explicit: boolean } | null,
  overrides: ReadonlyMap<string, string | number | boolean> = new Map(),
): LoadedConfig {
  const given = file === null ? {} : readToml(file.path, file.explicit);
  const origins = new Map<string, string>();
  const values: Record<string, Record<string, unknown>> = {};
  for (const [name, value] of Object.entries(given)) checkKnown(file!.path, name, value);
  for (const [table, keys] of Object.entries(SCHEMA)) {
    const section = (table === "" ? given : (given[table] ?? {})) as Record<string, unknown>;
    const target: Record<string, unknown> = {};
    values[table] = target;
    for (const [name, key] of Object.entries(keys)) {
      const path = table === "" ? name : `${table}.${name}`;
      const override = overrides.get(path);
      const value = override ?? section[name];
      origins.set(path, override !== undefined ? "command line" : value !== undefined ? "file" : "default");
      target[name] = checkValue(path, key, value ?? key.fallback);
    }
  }
  const state = values[""]!.state as string;
  for (const target of Object.values(values)) {
    for (const [name, value] of Object.entries(target))
      if (typeof value === "string") target[name] = value.replace("{state}", state);
  }
  const { "": top, ...tables } = values;
  return { config: deepFreeze({ ...top, ...tables }) as unknown as DaemonConfig, origins };
}

function readToml(path: string, explicit: boolean): Record<string, unknown> {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT" && !explicit) return {};
    throw new HeadstartError("HS_CONFIG", { what: `${path}: cannot be read`, cause: error });
  }
  try {
    return parse(text) as Record<string, unknown>;
  } catch (error) {
    if (error instanceof TomlError)
      throw new HeadstartError("HS_CONFIG", {
        what: `${path}:${error.line}:${error.column}: ${error.message.split("\n")[0]}`,
      });
    throw error;
  }
}

function checkKnown(path: string, name: string, value: unknown): void {
  const isTable = typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Date);
  const keys = isTable ? SCHEMA[name] : SCHEMA[""]![name];
  if (keys === undefined || (isTable && name === "")) {
    throw unknown(path, name, [...Object.keys(SCHEMA[""]!), ...Object.keys(SCHEMA).filter(Boolean)]);
  }
  if (!isTable) return;
  const known = Object.keys(SCHEMA[name]!);
  for (const key of Object.keys(value))
    if (!known.includes(key))
      throw unknown(
        path,
        `${name}.${key}`,
        known.map((k) => `${name}.${k}`),
      );
}

function unknown(path: string, name: string, known: readonly string[]): HeadstartError {
  const nearest = [...known].sort((a, b) => editDistance(name, a) - editDistance(name, b))[0]!;
  return new HeadstartError("HS_CONFIG", { what: `${path}: unknown key ${name}; did you mean ${nearest}?` });
}

function checkValue(path: string, key: Key, value: unknown): string | number | boolean {
  const wrong = (want: string) =>
    new HeadstartError("HS_CONFIG", { what: `${path} must be ${want}, not ${JSON.stringify(value)}` });
  if (typeof value !== typeof key.fallback) throw wrong(`a ${typeof key.fallback}`);
  if (key.choices && !key.choices.includes(value as string)) throw wrong(`one of ${key.choices.join(", ")}`);
  if (typeof value === "number" && !(Number.isSafeInteger(value) && value >= (key.min ?? 0)))
    throw wrong(`a whole number of at least ${key.min ?? 0}`);
  return value as string | number | boolean;
}

function deepFreeze<T extends object>(value: T): T {
  for (const part of Object.values(value)) if (typeof part === "object" && part !== null) deepFreeze(part);
  return Object.freeze(value);
}

/** Levenshtein, for "did you mean". */
export function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      row.push(Math.min(previous[j]! + 1, row[j - 1]! + 1, previous[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)));
    }
    previous = row;
  }
  return previous[b.length]!;
}

/** The effective configuration as TOML, each value with its origin. */
export function printConfig(loaded: LoadedConfig): string {
  const lines: string[] = [];
  for (const [table, keys] of Object.entries(SCHEMA)) {
    if (table !== "") lines.push("", `[${table}]`);
    const section = (table === "" ? loaded.config : loaded.config[table as keyof DaemonConfig]) as unknown as Record<
      string,
      unknown
    >;
    for (const [name, key] of Object.entries(keys)) {
      const origin = loaded.origins.get(table === "" ? name : `${table}.${name}`);
      const setting = `${name} = ${JSON.stringify(section[name])}`;
      lines.push(`${setting.padEnd(60)} # ${origin}: ${key.help}`);
    }
  }
  return `${lines.join("\n")}\n`;
}
