/** Against an API server of our own that speaks HTTPS, pages its lists and checks who asks. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import type { IncomingMessage } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import type { TLSSocket } from "node:tls";
import { type HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { clusterImages } from "./images.ts";
import { readClusterAccess } from "./kubeconfig.ts";

const directory = mkdtempSync(join(tmpdir(), "headstart-cluster-"));
after(() => rmSync(directory, { recursive: true }));
const [key, cert] = [join(directory, "key.pem"), join(directory, "cert.pem")];
execFileSync(
  "openssl",
  [
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:prime256v1",
    "-nodes",
    "-days",
    "2",
    "-subj",
    "/CN=cluster",
  ].concat(["-addext", "subjectAltName=IP:127.0.0.1,DNS:api.example", "-keyout", key, "-out", cert]),
  { stdio: "pipe" },
);

interface Pod {
  readonly namespace: string;
  readonly images: readonly string[];
  readonly init?: readonly string[];
}

const SECRET = "sup3rs3cret-token";

class ApiServer implements AsyncDisposable {
  readonly asked: string[] = [];
  pods: readonly Pod[] = [];
  /** Most pods in a page, whatever the limit says. */
  pageSize = 2;
  answer: ((request: IncomingMessage) => { status: number; body: string } | null) | null = null;
  readonly #server = createServer(
    {
      key: readFileSync(key),
      cert: readFileSync(cert),
      ca: readFileSync(cert),
      requestCert: true,
      rejectUnauthorized: false,
    },
    (request, response) => {
      this.asked.push(request.url!);
      const { status, body } = this.answer?.(request) ?? this.#list(request);
      response.writeHead(status, { "content-type": "application/json" }).end(body);
    },
  );

  async listen(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    return this;
  }

  get url(): string {
    return `https://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  #list(request: IncomingMessage): { status: number; body: string } {
    const isKnown =
      request.headers.authorization === `Bearer ${SECRET}` ||
      (request.socket as TLSSocket).getPeerCertificate().subject?.CN === "cluster";
    if (!isKnown) return { status: 401, body: "{}" };
    const url = new URL(request.url!, this.url);
    const match = /^\/prefix\/api\/v1(?:\/namespaces\/([^/]+))?\/pods$/.exec(url.pathname);
    if (match === null) return { status: 404, body: "{}" };
    const all = this.pods.filter(({ namespace }) => match[1] === undefined || namespace === match[1]);
    const start = Number(url.searchParams.get("continue") ?? 0);
    const end = start + Math.min(this.pageSize, Number(url.searchParams.get("limit")));
    const items = all.slice(start, end).map(({ namespace, images, init }) => ({
      metadata: { namespace },
      spec: {
        containers: images.map((image) => ({ image })),
        ...(init && { initContainers: init.map((image) => ({ image })) }),
      },
    }));
    const metadata = end < all.length ? { continue: String(end) } : {};
    return { status: 200, body: JSON.stringify({ kind: "PodList", metadata, items }) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

function kubeconfig(
  name: string,
  server: string,
  user: object,
  cluster: object = { "certificate-authority": "cert.pem" },
) {
  const file = join(directory, name);
  const config = {
    apiVersion: "v1",
    kind: "Config",
    "current-context": "main",
    contexts: [{ name: "main", context: { cluster: "c", user: "u" } }],
    clusters: [{ name: "c", cluster: { server: `${server}/prefix/`, ...cluster } }],
    users: [{ name: "u", user }],
  };
  writeFileSync(file, JSON.stringify(config));
  return file;
}

const list = async (file: string, namespaces: readonly string[] = []) =>
  await clusterImages(await readClusterAccess({ file, env: {} }), { namespaces, env: process.env });

const PODS: readonly Pod[] = [
  { namespace: "a", images: ["nginx:1", "registry.example/app@sha256:".concat("a".repeat(64))], init: ["busybox"] },
  { namespace: "a", images: ["nginx:1", "nginx:1"] },
  { namespace: "b", images: ["localhost/kubernetes/pause:0.1.0", "Not An Image"] },
  { namespace: "b", images: ["docker.io/library/nginx:1"] },
  { namespace: "b", images: ["registry.example:5000/x/y:2"] },
];

test("all pages of all namespaces are read, names are made whole, each counts the pods that name it", async () => {
  await using api = await new ApiServer().listen();
  api.pods = PODS;
  const images = await list(kubeconfig("token", api.url, { token: SECRET }));
  assert.deepEqual(images, [
    { reference: "docker.io/library/busybox:latest", pods: 1 },
    { reference: "docker.io/library/nginx:1", pods: 3 },
    { reference: `registry.example/app@sha256:${"a".repeat(64)}`, pods: 1 },
    { reference: "registry.example:5000/x/y:2", pods: 1 },
  ]);
  assert.equal(api.asked.length, 3);
  const some = await list(kubeconfig("token", api.url, { token: SECRET }), ["b"]);
  assert.deepEqual(
    some.map(({ reference }) => reference),
    ["docker.io/library/nginx:1", "registry.example:5000/x/y:2"],
  );
});

test("a token file, a client certificate and an exec plugin are ways in; the plugin is told what is wanted", async () => {
  await using api = await new ApiServer().listen();
  api.pods = PODS.slice(0, 1);
  writeFileSync(join(directory, "token.txt"), `${SECRET}\n`);
  assert.equal((await list(kubeconfig("file", api.url, { tokenFile: "token.txt" }))).length, 3);
  const pair = { "client-certificate-data": readFileSync(cert).toString("base64"), "client-key": "key.pem" };
  assert.equal((await list(kubeconfig("cert", api.url, pair))).length, 3);
  const plugin = join(directory, "plugin.sh");
  writeFileSync(
    plugin,
    `#!/bin/sh
case "$KUBERNETES_EXEC_INFO" in *client.authentication.k8s.io/v1*) ;; *) exit 3 ;; esac
[ "$1 $CLUSTER" = "get-token prod" ] || { echo "unknown cluster" >&2; exit 4; }
echo '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{"token":"${SECRET}"}}'
`,
  );
  chmodSync(plugin, 0o755);
  const exec = { apiVersion: "client.authentication.k8s.io/v1", command: "./plugin.sh", args: ["get-token"] };
  const user = { exec: { ...exec, env: [{ name: "CLUSTER", value: "prod" }] } };
  assert.equal((await list(kubeconfig("exec", api.url, user))).length, 3);
  await assert.rejects(list(kubeconfig("exec-bad", api.url, { exec })), (error) => {
    assert.ok(isHeadstartError(error, "HS_CREDENTIALS"));
    assert.match(error.message, /ended with 4: unknown cluster/);
    return true;
  });
});

test("what goes wrong at the server is said without the token", async () => {
  await using api = await new ApiServer().listen();
  const file = kubeconfig("token", api.url, { token: SECRET });
  const cases: readonly (readonly [{ status: number; body: string }, RegExp])[] = [
    [{ status: 401, body: SECRET }, /401.*not accepted/],
    [{ status: 403, body: SECRET }, /403.*--kube-namespace/],
    [{ status: 500, body: SECRET }, /HTTP 500/],
    [{ status: 200, body: `no JSON ${SECRET}` }, /no JSON/],
    [{ status: 200, body: `{"items":"${SECRET}"}` }, /no list of pods/],
  ];
  for (const [answer, message] of cases) {
    api.answer = () => answer;
    await assert.rejects(list(file), (error) => {
      assert.ok(isHeadstartError(error, "HS_CLUSTER"), String(error));
      assert.match(error.message, message);
      assert.ok(!JSON.stringify([error, (error as HeadstartError).message, error.stack]).includes(SECRET));
      return true;
    });
  }
});

test("a server of another authority is not believed unless the kubeconfig says so", async () => {
  await using api = await new ApiServer().listen();
  api.pods = PODS.slice(0, 1);
  const user = { token: SECRET };
  await assert.rejects(list(kubeconfig("strange", api.url, user, {})), (error) =>
    isHeadstartError(error, "HS_CLUSTER"),
  );
  assert.equal((await list(kubeconfig("skip", api.url, user, { "insecure-skip-tls-verify": true }))).length, 3);
  const other = { "certificate-authority": "cert.pem", "tls-server-name": "api.example" };
  assert.equal((await list(kubeconfig("name", api.url, user, other))).length, 3);
  assert.equal(api.asked.length, 2);
});

test("kubeconfigs are merged as kubectl merges them, and bad ones are named without what they hold", async () => {
  const one = join(directory, "one");
  const two = join(directory, "two");
  writeFileSync(one, "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n");
  writeFileSync(
    two,
    "current-context: y\nclusters: [{name: c, cluster: {server: 'https://h:1'}}]\nusers: [{name: u, user: {token: t}}]\n",
  );
  const merged = await readClusterAccess({ env: { KUBECONFIG: `${one}:${join(directory, "missing")}:${two}` } });
  assert.deepEqual([merged.context, merged.server.host, merged.token], ["x", "h:1", "t"]);
  const bad: readonly (readonly [string, RegExp])[] = [
    [`users: [{name: u, user: {token: [${SECRET}]}}]`, /no kubeconfig: users\.0\.user\.token/],
    [`a: ${SECRET}: b: {`, /no YAML/],
    ["contexts: []", /no current-context/],
    ["current-context: nowhere", /no context nowhere/],
    ["current-context: x\ncontexts: [{name: x, context: {cluster: c}}]", /names no cluster/],
  ];
  for (const [text, message] of bad) {
    writeFileSync(one, text);
    await assert.rejects(readClusterAccess({ file: one, env: {} }), (error) => {
      assert.ok(isHeadstartError(error, "HS_KUBECONFIG"), String(error));
      assert.match(error.message, message);
      assert.ok(!`${error.message}${error.stack}${String(error.cause)}`.includes(SECRET));
      return true;
    });
  }
  await assert.rejects(readClusterAccess({ env: { HOME: directory } }), (error) =>
    isHeadstartError(error, "HS_KUBECONFIG"),
  );
});
