/**
 * Where the commands of a page run as they stand there: a scratch directory, a registry with what the pages call HOST/APP, HOST/SIDECAR and HOST/PAUSE, the AWS of test/aws, an API server with pods, and on
 * PATH `headstart`, Debian's `aws` and a `kubectl` that keeps what it is given. Every call is written down.
 */

import assert from "node:assert/strict";
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stringify } from "yaml";
import { leftBehind, takeInventory } from "../../src/sandbox/inventory.ts";
import { execute } from "../../src/sandbox/process.ts";
import { pushImage } from "../../src/sandbox/push.ts";
import { AwsServer } from "../aws/server.ts";
import { buildImage } from "../build-image.ts";
import { FakeRegistry } from "../fakes/registry.ts";
import { COMMAND } from "./place.ts";

/** Small, of two layers; the second one differs from version to version. */
const IMAGES = ["app:1", "app:2", "sidecar:2", "pause:3"] as const;

/** What places share. */
export class DocsRegistry implements AsyncDisposable {
  readonly host: string;
  /** Most of what a short command does is compiling its sources: they keep it here. */
  readonly compileCache: string;
  readonly #registry: FakeRegistry;

  private constructor(registry: FakeRegistry) {
    this.#registry = registry;
    this.host = registry.host;
    this.compileCache = mkdtempSync(join(tmpdir(), "headstart-docs-cache-"));
  }

  /** A registry with the images that the pages name. */
  static async start(): Promise<DocsRegistry> {
    const registry = await FakeRegistry.start();
    await pushImages(registry);
    return new DocsRegistry(registry);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#registry[Symbol.asyncDispose]();
    rmSync(this.compileCache, { recursive: true });
  }
}

async function pushImages(registry: FakeRegistry): Promise<void> {
  const layout = mkdtempSync(join(tmpdir(), "headstart-docs-images-"));
  try {
    for (const image of IMAGES) {
      const [name = ""] = image.split(":");
      const base = { path: `usr/share/${name}`, data: Buffer.alloc(1_500_000, name) };
      await buildImage(layout, image, [[base], [{ path: "etc/version", data: `${image}\n`.repeat(40_000) }]]);
      await pushImage(layout, image, `${registry.host}/${image}`);
    }
  } finally {
    rmSync(layout, { recursive: true });
  }
}

interface Request {
  readonly path: string;
  readonly body: string;
}

/** What of AWS is not headstart's: launch templates are made and node groups changed here. Keeps what it is asked. */
class NodeGroups implements AsyncDisposable {
  static readonly version = "7";
  readonly requests: Request[] = [];
  readonly #server: Server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      const body = Buffer.concat(chunks).toString();
      this.requests.push({ path: request.url!, body });
      const isEks = request.url !== "/";
      response.writeHead(200, { "content-type": isEks ? "application/json" : "text/xml" });
      response.end(
        isEks
          ? JSON.stringify({ update: { id: "1", status: "InProgress", type: "VersionUpdate" } })
          : `<CreateLaunchTemplateVersionResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>1</requestId><launchTemplateVersion><launchTemplateId>lt-1</launchTemplateId><versionNumber>${NodeGroups.version}</versionNumber></launchTemplateVersion></CreateLaunchTemplateVersionResponse>`,
      );
    });
  });

  async listen(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    return this;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

const pod = (namespace: string, image: string) => ({
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name: image.replace(/^.*\//, "").replace(":", "-"), namespace },
  spec: { containers: [{ name: "main", image }] },
});

const node = (osImage: string) => ({
  apiVersion: "v1",
  kind: "Node",
  metadata: { name: "node" },
  status: {
    nodeInfo: {
      osImage,
      containerRuntimeVersion: "containerd://2.1.5",
      operatingSystem: "linux",
      architecture: "amd64",
    },
  },
});

/** Debian's aws is of 2023: it knows neither AWS_ENDPOINT_URL nor VolumeInitializationRate, which came in May 2025. */
const AWS = `#!/bin/sh
set -e
echo "aws $*" >> "$CALLS"
unset AWS_ROLE_ARN AWS_WEB_IDENTITY_TOKEN_FILE
export AWS_ACCESS_KEY_ID="$CLI_KEY" AWS_SECRET_ACCESS_KEY="$CLI_SECRET" AWS_DEFAULT_REGION="$AWS_REGION"
case "$1 $2" in
  "ec2 create-launch-template-version" | "eks "*) endpoint=$NODE_GROUPS ;;
  *) endpoint=$AWS_ENDPOINT_URL ;;
esac
count=$#
for word in "$@"; do
  case $word in
    file://*)
      grep -v VolumeInitializationRate "\${word#file://}" > "\${word#file://}.2023"
      word=$word.2023
      ;;
  esac
  set -- "$@" "$word"
done
shift $count
exec /usr/bin/aws --endpoint-url "$endpoint" "$@"
`;

/** Answers for the pods and the node that there are; \`apply\` keeps the files. */
const KUBECTL = `#!/bin/sh
set -e
echo "kubectl $*" >> "$CALLS"
case "$*" in
  "get pods -A -o yaml") cat "$CLUSTER_FILES/pods.yaml" ;;
  "get node NODE -o yaml") cat "$CLUSTER_FILES/$NODE_SYSTEM.yaml" ;;
  "get node NODE -o jsonpath="* | "get events -A --field-selector reason=Pulled") ;;
  "apply -f "*)
    shift
    while [ $# -gt 0 ]; do
      [ "$1" = -f ]
      cp "$2" "$APPLIED/$(ls "$APPLIED" | wc -l)"
      shift 2
    done
    ;;
  *) echo "kubectl $*: not known here" >&2; exit 1 ;;
esac
`;

export class DocsPlace implements AsyncDisposable {
  /** Where the commands run. */
  readonly directory: string;
  readonly aws: AwsServer;
  readonly nodeGroups: NodeGroups;
  readonly #root: string;
  readonly #host: string;
  readonly #stack = new AsyncDisposableStack();
  readonly #before: ReadonlySet<string>;
  readonly #env: Record<string, string>;
  readonly #credentials: Record<string, string>;

  static async make(registry: DocsRegistry): Promise<DocsPlace> {
    const api = await servePods([pod("kube-system", `${registry.host}/sidecar:2`)]);
    return new DocsPlace(registry, await AwsServer.start(), await new NodeGroups().listen(), api);
  }

  private constructor({ host, compileCache }: DocsRegistry, aws: AwsServer, nodeGroups: NodeGroups, api: Server) {
    this.#root = mkdtempSync(join(tmpdir(), "headstart-docs-"));
    this.#before = takeInventory([this.#root]);
    this.#host = host;
    this.aws = this.#stack.use(aws);
    this.nodeGroups = this.#stack.use(nodeGroups);
    this.#stack.defer(() => {
      api.closeAllConnections();
      api.close();
    });
    const [bin, files, applied] = ["bin", "cluster", "applied"].map((name) => join(this.#root, name));
    this.directory = join(this.#root, "work");
    for (const directory of [bin!, files!, applied!, this.directory]) mkdirSync(directory);
    const programs = {
      aws: AWS,
      kubectl: KUBECTL,
      headstart: `#!/bin/sh\necho "headstart $*" >> "$CALLS"\nexec ${COMMAND} "$@"\n`,
    };
    for (const [name, text] of Object.entries(programs)) {
      writeFileSync(join(bin!, name), text);
      chmodSync(join(bin!, name), 0o755);
    }
    const pods = {
      apiVersion: "v1",
      kind: "List",
      items: ["app:1", "sidecar:2"].map((image) => pod("default", `${host}/${image}`)),
    };
    writeFileSync(join(files!, "pods.yaml"), stringify(pods));
    writeFileSync(join(files!, "bottlerocket.yaml"), stringify(node("Bottlerocket OS 1.50.0 (aws-k8s-1.34)")));
    writeFileSync(join(files!, "al2023.yaml"), stringify(node("Amazon Linux 2023.9.20251110")));
    writeFileSync(join(files!, "kubeconfig"), kubeconfig(api));
    const key = aws.world.addKey();
    const { AWS_ACCESS_KEY_ID = "", AWS_SECRET_ACCESS_KEY = "", ...endpoints } = aws.environment(key);
    this.#credentials = { AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY };
    this.#env = {
      ...endpoints,
      PATH: `${bin}:/usr/sbin:/usr/bin:/sbin:/bin`,
      HOME: this.#root,
      KUBECONFIG: join(files!, "kubeconfig"),
      CALLS: join(this.#root, "calls"),
      APPLIED: applied!,
      CLUSTER_FILES: files!,
      NODE_GROUPS: nodeGroups.url,
      CLI_KEY: key.id,
      CLI_SECRET: key.secret,
      NODE_SYSTEM: "bottlerocket",
      NODE_COMPILE_CACHE: compileCache,
      AWS_EC2_METADATA_DISABLED: "true",
    };
  }

  path(name: string): string {
    return join(this.directory, name);
  }

  /** Texts of a page, with what stands there for the reader's own. */
  own(text: string): string {
    return text
      .replace(/\bHOST\/(APP|SIDECAR|PAUSE)\b/g, (_, name: string) => `${this.#host}/${name.toLowerCase()}`)
      .replace(/\bAPP:(?=\d)/g, "app:")
      .replaceAll("snap-0123456789abcdef0", `$(sed 's/.*"id":"\\([^"]*\\).*/\\1/; q' data.img.snapshot.json)`)
      .replaceAll("/.bottlerocket/rootfs", this.path("rootfs"))
      .replaceAll("--live --volume", `--live ${this.path("rootfs-al2023")} --volume`)
      .replaceAll("/tmp/aws-token", this.path("aws-token"));
  }

  /** Runs a script as `sh -e` does, and returns the calls that it made, one a line. `env` without credentials needs its own. */
  async run(
    where: string,
    script: string,
    env: Readonly<Record<string, string>> = this.#credentials,
  ): Promise<string[]> {
    const before = this.#calls().length;
    try {
      // nothing of this machine's own settings
      const none = Object.fromEntries(Object.keys(process.env).map((name) => [name, undefined]));
      await execute("sh", ["-e", "-c", this.own(script)], {
        cwd: this.directory,
        env: { ...none, ...this.#env, ...env },
      });
    } catch (error) {
      throw new Error(`${where}: ${(error as Error).message}`, { cause: error });
    }
    return this.#calls().slice(before);
  }

  /** What a CI's step that gives credentials gives. */
  get credentials(): Readonly<Record<string, string>> {
    return this.#credentials;
  }

  /** The files that `kubectl apply` was given, in order. */
  applied(): string[] {
    const directory = this.#env.APPLIED!;
    const names = readdirSync(directory).sort((a, b) => Number(a) - Number(b));
    return names.map((name) => readFileSync(join(directory, name), "utf8"));
  }

  /** Mounts a disk image's file system read-only until the end. */
  async mountDisk(image: string, offset: number, target: string): Promise<void> {
    mkdirSync(target, { recursive: true });
    await execute("mount", ["-o", `loop,ro,noload,offset=${offset}`, image, target]);
    this.#stack.defer(() => execute("umount", [target]).then(() => undefined));
  }

  async bind(source: string, target: string): Promise<void> {
    mkdirSync(target, { recursive: true });
    await execute("mount", ["--bind", source, target]);
    this.#stack.defer(() => execute("umount", [target]).then(() => undefined));
  }

  #calls(): string[] {
    try {
      return readFileSync(this.#env.CALLS!, "utf8").trimEnd().split("\n");
    } catch {
      return []; // nothing was called yet
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
    assert.deepEqual(await leftBehind(this.#before, [this.#root]), []);
    rmSync(this.#root, { recursive: true, force: true });
  }
}

async function servePods(items: readonly object[]): Promise<Server> {
  const server = createServer((request, response) => {
    const isPods = /^\/api\/v1\/namespaces\/kube-system\/pods\?/.test(request.url!);
    response.writeHead(isPods ? 200 : 404, { "content-type": "application/json" });
    response.end(isPods ? JSON.stringify({ kind: "PodList", metadata: {}, items }) : "{}");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return server;
}

function kubeconfig(api: Server): string {
  return JSON.stringify({
    apiVersion: "v1",
    kind: "Config",
    "current-context": "main",
    contexts: [{ name: "main", context: { cluster: "c", user: "u" } }],
    clusters: [{ name: "c", cluster: { server: `http://127.0.0.1:${(api.address() as AddressInfo).port}` } }],
    users: [{ name: "u", user: { token: "token" } }],
  });
}
