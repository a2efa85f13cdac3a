/**
 * What kubelet asks of containerd, over the CRI gRPC services: pull, pod, container, log. Pods live in the node's network with an empty
 * hostname, so that no CNI is needed, and below one cgroup of ours, so that they can be swept.
 */

import { mkdirSync, readFileSync } from "node:fs";
import { connect as connectSocket } from "node:net";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { type Client, Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { systemClock } from "../base/clock.ts";
import { HeadstartError } from "../base/errors.ts";
import {
  ContainerConfigSchema,
  ContainerState,
  type ContainerStatus,
  type Image,
  ImageService,
  NamespaceMode,
  type PodSandboxConfig,
  PodSandboxConfigSchema,
  RuntimeService,
} from "../gen/k8s.io/cri-api/pkg/apis/runtime/v1/api_pb.ts";

export interface CriPlaces {
  /** Name of the parent cgroup, without a slash. */
  readonly cgroup: string;
  /** Where container logs are written. */
  readonly logs: string;
}

export interface CriPod {
  readonly id: string;
  readonly config: PodSandboxConfig;
}

export interface CriContainerOptions {
  readonly name: string;
  readonly image: string;
  /** Replaces the image's entry point. */
  readonly command?: readonly string[];
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  readonly mounts?: readonly { readonly host: string; readonly container: string; readonly readonly?: boolean }[];
}

export interface CriContainer {
  readonly id: string;
  readonly logPath: string;
}

const CALL_MS = 120_000;
const PULL_MS = 900_000;
const POLL_MS = 5;
const STOP_SECONDS = 2n;
const NAMESPACES = { network: NamespaceMode.NODE, pid: NamespaceMode.CONTAINER, ipc: NamespaceMode.POD };

export class CriClient {
  readonly #manager: Http2SessionManager;
  readonly #places: CriPlaces;
  /** To containerd's socket, for its own services too. */
  readonly transport: Transport;
  readonly runtime: Client<typeof RuntimeService>;
  readonly images: Client<typeof ImageService>;
  #counter = 0;

  /** Does not connect yet. `socket` is an absolute path. */
  constructor(socket: string, places: CriPlaces) {
    this.#places = places;
    this.#manager = new Http2SessionManager("http://localhost", {}, { createConnection: () => connectSocket(socket) });
    this.transport = createGrpcTransport({ baseUrl: "http://localhost", sessionManager: this.#manager });
    this.runtime = createClient(RuntimeService, this.transport);
    this.images = createClient(ImageService, this.transport);
  }

  /** Fails unless containerd and its CRI plugin answer. */
  async status(): Promise<void> {
    await this.runtime.version({}, { timeoutMs: 2_000 });
    await this.images.listImages({}, { timeoutMs: 2_000 });
  }

  /** Returns the image's ID (the digest of its configuration). */
  async pull(image: string, options: { readonly runtimeHandler?: string; readonly signal?: AbortSignal } = {}) {
    const answer = await this.images.pullImage(
      { image: { image, runtimeHandler: options.runtimeHandler ?? "" } },
      { timeoutMs: PULL_MS, ...(options.signal === undefined ? {} : { signal: options.signal }) },
    );
    return answer.imageRef;
  }

  async listImages(): Promise<readonly Image[]> {
    return (await this.images.listImages({}, { timeoutMs: CALL_MS })).images;
  }

  /** Names the topmost snapshot of a pulled image. Throws HS_NOT_FOUND. */
  async chainID(image: string): Promise<string> {
    const { info } = await this.images.imageStatus({ image: { image }, verbose: true }, { timeoutMs: CALL_MS });
    const { chainID } = JSON.parse(info.info ?? "{}") as { chainID?: string };
    if (chainID === undefined) throw new HeadstartError("HS_NOT_FOUND", { what: `image ${image}: not pulled by CRI` });
    return chainID;
  }

  async removeImage(image: string): Promise<void> {
    await this.images.removeImage({ image: { image } }, { timeoutMs: CALL_MS });
  }

  /** Starts a pod's sandbox: kubelet does so before it pulls the images of the containers. */
  async runPod(name: string): Promise<CriPod> {
    const uid = `${name}-${process.pid}-${++this.#counter}`;
    const logDirectory = join(this.#places.logs, uid);
    mkdirSync(logDirectory, { recursive: true });
    const config = create(PodSandboxConfigSchema, {
      metadata: { name, uid, namespace: "default", attempt: 0 },
      hostname: "", // with NODE network the pod has the node's
      logDirectory,
      linux: { cgroupParent: `/${this.#places.cgroup}`, securityContext: { namespaceOptions: NAMESPACES } },
    });
    const { podSandboxId } = await this.runtime.runPodSandbox({ config }, { timeoutMs: CALL_MS });
    return { id: podSandboxId, config };
  }

  async createContainer(pod: CriPod, options: CriContainerOptions): Promise<CriContainer> {
    const logPath = `${options.name}.log`;
    const config = create(ContainerConfigSchema, {
      metadata: { name: options.name, attempt: 0 },
      image: { image: options.image },
      command: [...(options.command ?? [])],
      args: [...(options.args ?? [])],
      envs: Object.entries(options.env ?? {}).map(([key, value]) => ({ key, value: Buffer.from(value) })),
      mounts: (options.mounts ?? []).map((mount) => ({
        hostPath: mount.host,
        containerPath: mount.container,
        readonly: mount.readonly ?? false,
      })),
      logPath,
      linux: { securityContext: { namespaceOptions: NAMESPACES } },
    });
    const request = { podSandboxId: pod.id, config, sandboxConfig: pod.config };
    const { containerId } = await this.runtime.createContainer(request, { timeoutMs: CALL_MS });
    return { id: containerId, logPath: join(pod.config.logDirectory, logPath) };
  }

  async startContainer(container: CriContainer): Promise<void> {
    await this.runtime.startContainer({ containerId: container.id }, { timeoutMs: CALL_MS });
  }

  async containerStatus(container: CriContainer): Promise<ContainerStatus> {
    const answer = await this.runtime.containerStatus({ containerId: container.id }, { timeoutMs: CALL_MS });
    if (answer.status === undefined) throw new HeadstartError("HS_NOT_FOUND", { what: `container ${container.id}` });
    return answer.status;
  }

  /** The container's process on the host. */
  async containerPid(container: CriContainer): Promise<number> {
    const request = { containerId: container.id, verbose: true };
    const { info } = await this.runtime.containerStatus(request, { timeoutMs: CALL_MS });
    return (JSON.parse(info.info ?? "{}") as { pid?: number }).pid ?? 0;
  }

  /** Waits for the container's end; its exit code. Throws HS_CONTAINER_NOT_READY after `timeoutMs`. */
  async waitForExit(container: CriContainer, timeoutMs = 60_000): Promise<number> {
    const deadline = systemClock.monotonic() + timeoutMs;
    while (true) {
      const status = await this.containerStatus(container);
      if (status.state === ContainerState.CONTAINER_EXITED) return status.exitCode;
      if (systemClock.monotonic() > deadline) {
        throw new HeadstartError("HS_CONTAINER_NOT_READY", { what: `container ${container.id} still runs` });
      }
      await systemClock.sleep(POLL_MS);
    }
  }

  /** Runs a command inside; its output. */
  async exec(container: CriContainer, command: readonly string[], timeoutSeconds = 60) {
    const request = { containerId: container.id, cmd: [...command], timeout: BigInt(timeoutSeconds) };
    const answer = await this.runtime.execSync(request, { timeoutMs: (timeoutSeconds + 5) * 1000 });
    return {
      stdout: Buffer.from(answer.stdout).toString(),
      stderr: Buffer.from(answer.stderr).toString(),
      exitCode: answer.exitCode,
    };
  }

  async removeContainer(container: CriContainer): Promise<void> {
    await this.runtime.stopContainer({ containerId: container.id, timeout: STOP_SECONDS }, { timeoutMs: CALL_MS });
    await this.runtime.removeContainer({ containerId: container.id }, { timeoutMs: CALL_MS });
  }

  /** Stops and removes the pod with its containers. */
  async removePod(pod: CriPod): Promise<void> {
    const { containers } = await this.runtime.listContainers(
      { filter: { podSandboxId: pod.id } },
      { timeoutMs: CALL_MS },
    );
    for (const { id } of containers) {
      await this.runtime.stopContainer({ containerId: id, timeout: STOP_SECONDS }, { timeoutMs: CALL_MS });
    }
    await this.runtime.stopPodSandbox({ podSandboxId: pod.id }, { timeoutMs: CALL_MS });
    await this.runtime.removePodSandbox({ podSandboxId: pod.id }, { timeoutMs: CALL_MS });
  }

  close(): void {
    this.#manager.abort();
  }
}

/** True for the answer "there is no such thing". */
export function isNotFound(error: unknown): boolean {
  return error instanceof ConnectError && error.code === Code.NotFound;
}

/** True for the answer "there is no such service": the CRI plugin is not there. */
export function isUnimplemented(error: unknown): boolean {
  return error instanceof ConnectError && error.code === Code.Unimplemented;
}

/**
 * The text of a CRI log file so far, without containerd's "<time> stdout F " in front of each line (P: the line goes on in the next record).
 */
export function readCriLog(path: string): string {
  let text = "";
  let raw: string;
  try {
    raw = readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return ""; // made at the container's start
    throw error;
  }
  for (const line of raw.split("\n")) {
    const match = /^\S+ std(?:out|err) ([FP])\S* (.*)$/s.exec(line);
    if (match) text += match[1] === "F" ? `${match[2]}\n` : match[2];
  }
  return text;
}
