/**
 * The images that a cluster's pods name: what its new nodes will be asked for. Reads pods by the Kubernetes API, page by page; needs the right to list pods and nothing else.
 */

import * as v from "valibot";
import { describeError, HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { MiB } from "../../base/limits.ts";
import { formatReference, parseReference } from "../../oci/reference.ts";
import { runCredentialProgram } from "../../oci/registry/auth/exec.ts";
import { UndiciTransport } from "../../oci/registry/transport/undici.ts";
import type { ClusterAccess, ExecPlugin } from "./kubeconfig.ts";

export interface ClusterImage {
  /** Whole: with its host, and a tag or digest. */
  readonly reference: string;
  /** Pods that name it. */
  readonly pods: number;
}

export interface ClusterOptions {
  /** Only these; empty: all. */
  readonly namespaces: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly signal?: AbortSignal | undefined;
}

const PAGE_PODS = 500;
/** A pod has some 10 KB. */
const PAGE_BYTES_MAX = 256 * MiB;
/** A cluster has at most 150,000 pods. */
const PAGES_MAX = 10_000;
const ANSWER_MS = 60_000;

const Containers = v.optional(v.nullable(v.array(v.object({ image: v.optional(v.nullable(v.string())) }))));
const PodList = v.object({
  metadata: v.object({ continue: v.optional(v.nullable(v.string())) }),
  items: v.nullable(
    v.array(
      v.object({
        spec: v.object({ containers: Containers, initContainers: Containers, ephemeralContainers: Containers }),
      }),
    ),
  ),
});

/**
 * Sorted by reference. Finished pods count too: their jobs come again. What is no reference, or on the node alone (`localhost/…`), is left out. Throws HS_CLUSTER, HS_KUBECONFIG,
 * HS_CREDENTIALS.
 */
export async function clusterImages(access: ClusterAccess, options: ClusterOptions): Promise<ClusterImage[]> {
  const credentials = await logIn(access, options);
  await using transport = openTransport(access, credentials.client, options.env);
  const counts = new Map<string, number>();
  const spaces = options.namespaces.map((name) => `/api/v1/namespaces/${encodeURIComponent(name)}/pods`);
  for (const path of spaces.length === 0 ? ["/api/v1/pods"] : spaces) {
    for await (const images of pods({ access, transport, token: credentials.token }, path, options.signal)) {
      for (const image of new Set(images)) {
        const reference = wholeReference(image);
        if (reference !== null) counts.set(reference, (counts.get(reference) ?? 0) + 1);
      }
    }
  }
  const sorted = [...counts].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
  return sorted.map(([reference, count]) => ({ reference, pods: count }));
}

interface Session {
  readonly access: ClusterAccess;
  readonly transport: UndiciTransport;
  readonly token: string | null;
}

/** The images of one pod after the other. */
async function* pods(session: Session, path: string, signal: AbortSignal | undefined): AsyncGenerator<string[]> {
  let next = "";
  for (let page = 0; page < PAGES_MAX; page++) {
    const query = next === "" ? "" : `&continue=${encodeURIComponent(next)}`;
    const list = await get(session, `${path}?limit=${PAGE_PODS}${query}`, signal);
    for (const { spec } of list.items ?? []) {
      const containers = [spec.initContainers, spec.containers, spec.ephemeralContainers];
      yield containers.flatMap((each) => each ?? []).flatMap(({ image }) => (image ? [image] : []));
    }
    next = list.metadata.continue ?? "";
    if (next === "") return;
  }
  throw failed(session.access, `more than ${PAGES_MAX} pages of pods`);
}

async function get(
  { access, transport, token }: Session,
  path: string,
  signal: AbortSignal | undefined,
): Promise<v.InferOutput<typeof PodList>> {
  const { server } = access;
  let status: number;
  let text = "";
  try {
    const answer = await transport.send({
      method: "GET",
      url: new URL(`${server.origin}${server.pathname.replace(/\/$/, "")}${path}`),
      kind: "manifest",
      headers: { accept: "application/json", ...(token === null ? {} : { authorization: `Bearer ${token}` }) },
      signal,
    });
    status = answer.status;
    const chunks: Uint8Array[] = [];
    let bytes = 0;
    for await (const chunk of answer.body) {
      bytes += chunk.byteLength;
      if (bytes > PAGE_BYTES_MAX) throw failed(access, `an answer of more than ${PAGE_BYTES_MAX} bytes`);
      chunks.push(chunk);
    }
    text = Buffer.concat(chunks).toString("utf8");
  } catch (cause) {
    signal?.throwIfAborted();
    if (isHeadstartError(cause, "HS_CLUSTER", "HS_KUBECONFIG")) throw cause;
    throw failed(access, `no answer: ${describeError(cause)}`, cause);
  }
  if (status !== 200) throw failed(access, `GET ${path.split("?")[0]}: HTTP ${status}${REASONS[status] ?? ""}`);
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch {
    throw failed(access, "an answer that is no JSON");
  }
  const checked = v.safeParse(PodList, document);
  if (!checked.success) throw failed(access, `an answer that is no list of pods (${v.getDotPath(checked.issues[0])})`);
  return checked.output;
}

const REASONS: { readonly [status: number]: string } = {
  401: ": these credentials are not accepted",
  403: ": these credentials may not list pods there; with --kube-namespace fewer rights are enough",
  404: ": there is no such namespace, or it is no Kubernetes API",
  410: ": the list changed while it was read; try again",
};

function wholeReference(image: string): string | null {
  try {
    const reference = parseReference(image);
    return reference.host === "localhost" ? null : formatReference(reference);
  } catch {
    return null;
  }
}

function openTransport(
  access: ClusterAccess,
  client: ClusterAccess["client"],
  env: ClusterOptions["env"],
): UndiciTransport {
  const { proxy, ca, serverName, skipVerify } = access;
  if (proxy !== null && !URL.canParse(proxy))
    throw new HeadstartError("HS_KUBECONFIG", { what: `context ${access.context}: its proxy-url is no URL` });
  return new UndiciTransport({
    tls: {
      ca: [],
      client: client === null ? [] : [client],
      skipVerify,
      onlyCa: ca === null ? undefined : [ca],
      serverName: serverName ?? undefined,
    },
    timeouts: { headersMs: ANSWER_MS, stallMs: ANSWER_MS },
    env: proxy === null ? env : { HTTPS_PROXY: proxy, HTTP_PROXY: proxy },
    connections: 1,
  });
}

const ExecCredential = v.object({
  kind: v.literal("ExecCredential"),
  status: v.object({
    token: v.optional(v.nullable(v.string())),
    clientCertificateData: v.optional(v.nullable(v.string())),
    clientKeyData: v.optional(v.nullable(v.string())),
  }),
});

async function logIn(
  access: ClusterAccess,
  options: ClusterOptions,
): Promise<{ token: string | null; client: ClusterAccess["client"] }> {
  const { token, client, exec } = access;
  if (exec === null || token !== null) return { token, client };
  const status = await runPlugin(exec, access, options);
  const { clientCertificateData: cert, clientKeyData: key } = status;
  return { token: status.token ?? null, client: cert && key ? { cert, key } : client };
}

/** What `aws eks get-token` and its like answer (client.authentication.k8s.io/v1, v1beta1). */
async function runPlugin(plugin: ExecPlugin, access: ClusterAccess, { env, signal }: ClusterOptions) {
  const info = { apiVersion: plugin.apiVersion, kind: "ExecCredential", spec: { interactive: false } };
  const { status, stdout, complaint } = await runCredentialProgram(plugin.command, plugin.args, {
    stdin: "",
    env: { ...env, ...plugin.env, KUBERNETES_EXEC_INFO: JSON.stringify(info) },
    signal,
  });
  const bad = (message: string) =>
    new HeadstartError("HS_CREDENTIALS", { what: `context ${access.context}: ${plugin.command} ${message}` });
  if (status !== 0) throw bad(`ended with ${status}: ${complaint}`);
  let document: unknown;
  try {
    document = JSON.parse(stdout);
  } catch {
    // not quoted: it holds secrets
    throw bad("printed no JSON");
  }
  const checked = v.safeParse(ExecCredential, document);
  if (!checked.success) throw bad(`printed no ExecCredential (${v.getDotPath(checked.issues[0])})`);
  return checked.output.status;
}

function failed(access: ClusterAccess, message: string, cause?: unknown): HeadstartError {
  return new HeadstartError("HS_CLUSTER", {
    what: `${access.server.host} (context ${access.context}): ${message}`,
    cause,
  });
}
