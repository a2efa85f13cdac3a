/**
 * How to reach a Kubernetes cluster and who one is there: what kubectl reads from kubeconfig files, or what a pod finds in its own. Secrets stay in the returned object, never in an error.
 * Source: k8s.io/client-go tools/clientcmd (merging: the first file that sets something wins; relative paths are those of the file).
 */

import { readFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import * as v from "valibot";
import { parse } from "yaml";
import { HeadstartError } from "../../base/errors.ts";

const KUBECONFIG_BYTES_MAX = 16 * 1024 * 1024;

const Text = v.optional(v.nullable(v.string()));
const Cluster = v.object({
  server: v.string(),
  "certificate-authority": Text,
  "certificate-authority-data": Text,
  "insecure-skip-tls-verify": v.optional(v.nullable(v.boolean())),
  "tls-server-name": Text,
  "proxy-url": Text,
});
const Exec = v.object({
  apiVersion: v.string(),
  command: v.string(),
  args: v.optional(v.nullable(v.array(v.string()))),
  env: v.optional(v.nullable(v.array(v.object({ name: v.string(), value: v.string() })))),
});
const User = v.object({
  "client-certificate": Text,
  "client-certificate-data": Text,
  "client-key": Text,
  "client-key-data": Text,
  token: Text,
  tokenFile: Text,
  exec: v.optional(v.nullable(Exec)),
  "auth-provider": v.optional(v.unknown()),
});
const named = <F extends string, S extends v.GenericSchema>(field: F, schema: S) =>
  v.optional(
    v.nullable(
      v.array(v.object({ name: v.string(), [field]: schema } as { name: v.StringSchema<undefined> } & Record<F, S>)),
    ),
  );
const Kubeconfig = v.object({
  "current-context": Text,
  clusters: named("cluster", Cluster),
  users: named("user", User),
  contexts: named("context", v.object({ cluster: v.string(), user: Text })),
});
type Kubeconfig = v.InferOutput<typeof Kubeconfig>;

export interface ExecPlugin {
  readonly apiVersion: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

export interface ClusterAccess {
  readonly server: URL;
  /** Of the kubeconfig, for messages. */
  readonly context: string;
  /** PEM; null: the machine's authorities. */
  readonly ca: string | null;
  readonly skipVerify: boolean;
  readonly serverName: string | null;
  readonly proxy: string | null;
  /** PEM. */
  readonly client: { readonly cert: string; readonly key: string } | null;
  readonly token: string | null;
  /** Asked when there is no token. */
  readonly exec: ExecPlugin | null;
}

type Environment = Readonly<Record<string, string | undefined>>;

export interface KubeconfigOptions {
  /** --kubeconfig: this file alone. */
  readonly file?: string | undefined;
  /** --context: instead of the current one. */
  readonly context?: string | undefined;
  readonly env: Environment;
}

/** Where a pod's own credentials lie. */
const SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount";

/** Throws HS_KUBECONFIG. */
export async function readClusterAccess(options: KubeconfigOptions): Promise<ClusterAccess> {
  const { env } = options;
  const files = kubeconfigFiles(options);
  const found: { file: string; config: Kubeconfig }[] = [];
  for (const file of files) {
    const config = await readKubeconfig(file, options.file !== undefined);
    if (config !== null) found.push({ file, config });
  }
  if (found.length === 0) {
    const pod = await inCluster(env);
    if (pod !== null && options.context === undefined) return pod;
    throw invalid(`no kubeconfig: ${files.join(", ")} ${files.length === 1 ? "is" : "are"} not there`);
  }
  const first = <T>(pick: (config: Kubeconfig) => T | null | undefined): { file: string; value: T } | null => {
    for (const { file, config } of found) {
      const value = pick(config);
      if (value !== undefined && value !== null && value !== "") return { file, value };
    }
    return null;
  };
  const context = options.context ?? first((config) => config["current-context"])?.value;
  if (context === undefined) throw invalid(`${files.join(", ")}: no current-context; name one with --context`);
  const chosen = first((config) => config.contexts?.find(({ name }) => name === context)?.context);
  if (chosen === null) throw invalid(`${files.join(", ")}: there is no context ${context}`);
  const { cluster: clusterName, user: userName } = chosen.value;
  const cluster = first((config) => config.clusters?.find(({ name }) => name === clusterName)?.cluster);
  if (cluster === null)
    throw invalid(`${chosen.file}: context ${context} names no cluster that is there (${clusterName})`);
  const user = first((config) => config.users?.find(({ name }) => name === userName)?.user);
  if (user === null && userName)
    throw invalid(`${chosen.file}: context ${context} names no user that is there (${userName})`);
  return await access(context, cluster, user);
}

function kubeconfigFiles({ file, env }: KubeconfigOptions): string[] {
  if (file !== undefined) return [file];
  const listed = (env.KUBECONFIG ?? "").split(":").filter((each) => each !== "");
  return listed.length > 0 ? listed : [join(env.HOME ?? "/root", ".kube", "config")];
}

/** Null when it is not there and need not be. */
async function readKubeconfig(file: string, isNamed: boolean): Promise<Kubeconfig | null> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (cause) {
    if (!isNamed && (cause as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw invalid(`${file} cannot be read`, cause);
  }
  if (text.length > KUBECONFIG_BYTES_MAX) throw invalid(`${file}: ${text.length} bytes`);
  let document: unknown;
  try {
    document = parse(text);
  } catch {
    // what the parser says quotes the file, which holds secrets
    throw invalid(`${file} is no YAML`);
  }
  const checked = v.safeParse(Kubeconfig, document ?? {});
  if (checked.success) return checked.output;
  throw invalid(`${file} is no kubeconfig: ${v.getDotPath(checked.issues[0]) ?? "it is no object"}`);
}

async function access(
  context: string,
  { file, value: cluster }: { file: string; value: v.InferOutput<typeof Cluster> },
  user: { file: string; value: v.InferOutput<typeof User> } | null,
): Promise<ClusterAccess> {
  let server: URL;
  try {
    server = new URL(cluster.server);
  } catch {
    throw invalid(`${file}: the cluster's server is no URL`);
  }
  const ca = await pem(file, cluster["certificate-authority-data"], cluster["certificate-authority"]);
  const base = {
    server,
    context,
    ca,
    skipVerify: cluster["insecure-skip-tls-verify"] ?? false,
    serverName: cluster["tls-server-name"] || null,
    proxy: cluster["proxy-url"] || null,
  };
  if (user === null) return { ...base, client: null, token: null, exec: null };
  const own = user.value;
  if (own["auth-provider"])
    throw invalid(`${user.file}: auth-provider was removed from Kubernetes 1.26; use an exec plugin or a token`);
  const cert = await pem(user.file, own["client-certificate-data"], own["client-certificate"]);
  const key = await pem(user.file, own["client-key-data"], own["client-key"]);
  if ((cert === null) !== (key === null))
    throw invalid(`${user.file}: a client certificate and its key belong together`);
  const token = own.token || (own.tokenFile ? (await readBeside(user.file, own.tokenFile)).trim() : null);
  const exec = own.exec ?? null;
  return {
    ...base,
    client: cert === null || key === null ? null : { cert, key },
    token,
    exec:
      exec === null
        ? null
        : {
            apiVersion: exec.apiVersion,
            command: exec.command.includes("/") ? resolve(dirname(user.file), exec.command) : exec.command,
            args: exec.args ?? [],
            env: Object.fromEntries((exec.env ?? []).map(({ name, value }) => [name, value])),
          },
  };
}

async function pem(
  file: string,
  data: string | null | undefined,
  path: string | null | undefined,
): Promise<string | null> {
  if (data) return Buffer.from(data, "base64").toString("utf8");
  return path ? await readBeside(file, path) : null;
}

async function readBeside(file: string, path: string): Promise<string> {
  const whole = resolve(dirname(file), path);
  try {
    return await readFile(whole, "utf8");
  } catch (cause) {
    throw invalid(`${whole}, which ${file} names, cannot be read`, cause);
  }
}

async function inCluster(env: Environment): Promise<ClusterAccess | null> {
  const { KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port } = env;
  if (!host || !port) return null;
  const read = (name: string) => readFile(join(SERVICE_ACCOUNT, name), "utf8").catch(() => null);
  const token = await read("token");
  if (token === null) return null;
  return {
    server: new URL(`https://${host.includes(":") ? `[${host}]` : host}:${port}`),
    context: "in-cluster",
    ca: await read("ca.crt"),
    skipVerify: false,
    serverName: null,
    proxy: null,
    client: null,
    token: token.trim(),
    exec: null,
  };
}

function invalid(what: string, cause?: unknown): HeadstartError {
  return new HeadstartError("HS_KUBECONFIG", { what, cause });
}
