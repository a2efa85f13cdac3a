/**
 * containerd as our server (specs/containerd.md 9.2): the few of its gRPC services that we use. Connects when first used, and again after it went away. Never call it from a
 * Commit or an Update: it holds its write lock then.
 */

import { connect } from "node:net";
import { type Client, Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { parseDigest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { LIMITS } from "../base/limits.ts";
import { Content } from "../gen/github.com/containerd/containerd/api/services/content/v1/content_pb.ts";
import { Images } from "../gen/github.com/containerd/containerd/api/services/images/v1/images_pb.ts";
import { Version } from "../gen/github.com/containerd/containerd/api/services/version/v1/version_pb.ts";
import type { Descriptor } from "../oci/descriptor.ts";

/** containerd answers from its own database: longer means that it hangs. */
const CALL_MS = 10_000;

export interface CallOptions {
  /** containerd's namespace: "k8s.io" for CRI. */
  readonly namespace: string;
  readonly signal?: AbortSignal | undefined;
}

export class ContainerdClient implements Disposable {
  readonly address: string;
  readonly #sessions: Http2SessionManager;
  readonly #content: Client<typeof Content>;
  readonly #images: Client<typeof Images>;
  readonly #version: Client<typeof Version>;

  /** `address` is the path of its socket, which need not exist yet. */
  constructor(address: string) {
    this.address = address;
    const baseUrl = "http://localhost";
    this.#sessions = new Http2SessionManager(baseUrl, {}, { createConnection: () => connect(address) });
    const transport = createGrpcTransport({
      baseUrl,
      sessionManager: this.#sessions,
      readMaxBytes: LIMITS.grpcMessageBytes,
      defaultTimeoutMs: CALL_MS,
    });
    this.#content = createClient(Content, transport);
    this.#images = createClient(Images, transport);
    this.#version = createClient(Version, transport);
  }

  [Symbol.dispose](): void {
    this.#sessions.abort();
  }

  /**
   * A blob of its content store as this namespace sees it, at most `limit` bytes; null when it is not there. Unverified. Throws HS_LIMIT, and a ConnectError when containerd does not
   * answer.
   */
  async readBlob(digest: string, limit: number, options: CallOptions): Promise<Uint8Array | null> {
    const chunks: Uint8Array[] = [];
    let size = 0;
    try {
      for await (const { offset, data } of this.#content.read({ digest }, callOptions(options))) {
        if (Number(offset) !== size) {
          throw new HeadstartError("HS_MALFORMED", {
            what: `${digest}: containerd sent bytes of offset ${offset} at ${size}`,
          });
        }
        size += data.byteLength;
        if (size > limit) throw new HeadstartError("HS_LIMIT", { what: `${digest}: more than ${limit} bytes` });
        chunks.push(data);
      }
    } catch (error) {
      if (isNotFound(error)) return null;
      throw error;
    }
    return Buffer.concat(chunks);
  }

  /** What an image's name stands for; null when there is no such image. */
  async image(name: string, options: CallOptions): Promise<Descriptor | null> {
    try {
      const target = (await this.#images.get({ name }, callOptions(options))).image?.target;
      if (target === undefined) return null;
      return {
        mediaType: target.mediaType,
        digest: parseDigest(target.digest, `image ${name}`),
        size: Number(target.size),
        annotations: { ...target.annotations },
      };
    } catch (error) {
      if (isNotFound(error)) return null;
      throw error;
    }
  }

  /** Every image of a namespace with what it stands for. */
  async images(options: CallOptions): Promise<{ readonly name: string; readonly target: Descriptor }[]> {
    const { images } = await this.#images.list({ filters: [] }, callOptions(options));
    return images.map(({ name, target }) => ({
      name,
      target: {
        mediaType: target?.mediaType ?? "",
        digest: parseDigest(target?.digest, `image ${name}`),
        size: Number(target?.size ?? 0),
      },
    }));
  }

  /** E.g. "1.6.20~ds1", "v2.1.9". */
  async version(signal?: AbortSignal): Promise<string> {
    return (await this.#version.version({}, signal === undefined ? {} : { signal })).version;
  }
}

function callOptions(options: CallOptions): { headers: Record<string, string>; signal?: AbortSignal } {
  const headers = { "containerd-namespace": options.namespace };
  return options.signal === undefined ? { headers } : { headers, signal: options.signal };
}

function isNotFound(error: unknown): boolean {
  return error instanceof ConnectError && error.code === Code.NotFound;
}
