/**
 * containerd's snapshots service over gRPC on a Unix socket (specs/containerd.md 2): HTTP/2 without TLS, messages of at most 16 MiB. Handlers decode, call, encode; all else is in
 * snapshotter.ts. Other services (CRI's image service) share the listener: given as routes, or as a handler of whatever no route knows.
 * The socket is root's alone (0600, in a directory of 0700 if we make it) and appears by rename: never half ready, never open to others for a moment, and an old one that
 * nobody serves any more is replaced.
 */

import { randomUUID } from "node:crypto";
import { chmodSync, lstatSync, mkdirSync, renameSync, rmSync } from "node:fs";
import {
  createServer,
  type Http2Server,
  type Http2ServerRequest,
  type Http2ServerResponse,
  type ServerHttp2Session,
} from "node:http2";
import { connect } from "node:net";
import { dirname, isAbsolute, join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";
import { EmptySchema, type Timestamp, TimestampSchema } from "@bufbuild/protobuf/wkt";
import type { ConnectRouter, HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { describeError, HeadstartError } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import { failpoint } from "../base/failpoint.ts";
import { LIMITS } from "../base/limits.ts";
import {
  type CommitSnapshotRequest,
  type Info,
  InfoSchema,
  Kind,
  Snapshots,
} from "../gen/github.com/containerd/containerd/api/services/snapshots/v1/snapshots_pb.ts";
import { type Mount as MountMessage, MountSchema } from "../gen/github.com/containerd/containerd/api/types/mount_pb.ts";
import { toConnectError } from "./errors.ts";
import type { Mount } from "./mounts.ts";
import type { Snapshotter } from "./snapshotter.ts";
import type { SnapshotRow } from "./store.ts";

export interface ServeOptions {
  readonly snapshotter: Snapshotter;
  /** Absolute path of the socket (a relative one makes newer `ctr` fail), or a listening descriptor of socket activation. */
  readonly address: string | { readonly fd: number };
  /** Further gRPC services on the same socket. */
  readonly services?: (router: ConnectRouter) => void;
  /** Every request whose path no service has: a proxy passes them on as they are. Default: UNIMPLEMENTED. */
  readonly fallback?: (request: Http2ServerRequest, response: Http2ServerResponse) => void;
}

export interface SnapshotServer extends AsyncDisposable {
  readonly address: string | { readonly fd: number };
}

/** Node's default of 10 would refuse calls beside one message of the greatest size. */
const SESSION_MEMORY_MIB = 64;
/** How long calls under way may take when the server is closed. */
const DRAIN_MS = 2_000;
/** sun_path holds 108 bytes with the final NUL. */
const SOCKET_PATH_BYTES_MAX = 107;

/** Listening when it resolves. Throws HS_CONFIG for an address that cannot be, HS_STATE_BUSY when another process serves it. */
export async function serveSnapshotter(options: ServeOptions): Promise<SnapshotServer> {
  const handler = requestHandler(options);
  const server = createServer({ maxSessionMemory: SESSION_MEMORY_MIB });
  const sessions = new Set<ServerHttp2Session>();
  server.on("session", (session) => {
    sessions.add(session);
    session.on("error", (error) => publish("snapshotter:session-failed", { error: describeError(error) }));
    session.on("close", () => sessions.delete(session));
  });
  server.on("request", handler);
  const remove = await listen(server, options.address);
  let closed: Promise<void> | null = null;
  return {
    address: options.address,
    [Symbol.asyncDispose]() {
      closed ??= close(server, sessions, remove);
      return closed;
    },
  };
}

function requestHandler(options: ServeOptions): (request: Http2ServerRequest, response: Http2ServerResponse) => void {
  const routes = (router: ConnectRouter) => {
    router.service(Snapshots, snapshotsService(options.snapshotter), {
      interceptors: [
        (next) => async (request) => {
          try {
            return await next(request);
          } catch (error) {
            throw toConnectError(error);
          }
        },
      ],
    });
    options.services?.(router);
  };
  const adapter = connectNodeAdapter({
    routes,
    connect: false,
    grpcWeb: false,
    readMaxBytes: LIMITS.grpcMessageBytes,
    writeMaxBytes: LIMITS.grpcMessageBytes,
    fallback: (request, response) =>
      (options.fallback ?? unimplemented)(request as Http2ServerRequest, response as Http2ServerResponse),
  });
  return (request, response) => {
    // grpc-go derives :authority from the socket's address: "localhost", a percent-encoded path, or nothing, by version (specs/containerd.md 2.4). It means nothing on a
    // socket, but the adapter makes a URL of it and of the path, and would throw outside of any handler.
    Object.defineProperty(request, "authority", { value: "localhost" });
    if (!/^\/[\w.]+\/\w+$/.test(request.url)) return (options.fallback ?? unimplemented)(request, response);
    adapter(request, response);
  };
}

/** gRPC status 12 in a response of headers alone ("Trailers-Only", gRPC over HTTP/2). */
function unimplemented(_request: Http2ServerRequest, response: Http2ServerResponse): void {
  response.writeHead(200, {
    "content-type": "application/grpc",
    "grpc-status": "12",
    "grpc-message": "unknown service or method",
  });
  response.end();
}

function snapshotsService(snapshotter: Snapshotter): ServiceImpl<typeof Snapshots> {
  const options = (context: HandlerContext) => ({
    namespace: context.requestHeader.get("containerd-namespace"),
    signal: context.signal,
  });
  return {
    async prepare(request, context) {
      return answer({ mounts: toMounts(await snapshotter.prepare(request, options(context))) });
    },
    async view(request, context) {
      return answer({ mounts: toMounts(await snapshotter.view(request, options(context))) });
    },
    async mounts({ key }, { signal }) {
      return answer({ mounts: toMounts(await snapshotter.mounts(key, { signal })) });
    },
    async commit(request) {
      const { name, key, labels } = request;
      snapshotter.commit({ name, key, labels, parent: commitParent(request) });
      return answer(create(EmptySchema));
    },
    async remove({ key }) {
      snapshotter.remove(key);
      return answer(create(EmptySchema));
    },
    async stat({ key }) {
      return { info: toInfo(snapshotter.stat(key)) };
    },
    async update({ info, updateMask }) {
      const row = snapshotter.update({
        name: info?.name ?? "",
        labels: info?.labels ?? {},
        mask: updateMask?.paths ?? [],
      });
      return answer({ info: toInfo(row) });
    },
    async *list({ filters }) {
      try {
        for (const page of snapshotter.list(filters)) {
          if (page.length > 0) yield { info: page.map(toInfo) };
          // a filter that few rows match must not keep everybody else waiting
          else await setImmediate();
        }
      } catch (error) {
        // the interceptor has returned by the time a stream runs
        throw toConnectError(error);
      }
    },
    async usage({ key }) {
      const { bytes, inodes } = await snapshotter.usage(key);
      return { size: BigInt(bytes), inodes: BigInt(inodes) };
    },
    async cleanup() {
      await snapshotter.cleanup();
      return create(EmptySchema);
    },
  };
}

/** A place for crash tests: everything is done, nobody has been told. */
function answer<T>(message: T): T {
  failpoint("snapshotter:answer");
  return message;
}

function toMounts(mounts: readonly Mount[]): MountMessage[] {
  return mounts.map(({ type, source, options }) => create(MountSchema, { type, source, options: [...options] }));
}

const KINDS = { view: Kind.VIEW, active: Kind.ACTIVE, committed: Kind.COMMITTED } as const;

function toInfo(row: SnapshotRow): Info {
  return create(InfoSchema, {
    name: row.name,
    parent: row.parent,
    kind: KINDS[row.kind],
    createdAt: toTimestamp(row.createdUs),
    updatedAt: toTimestamp(row.updatedUs),
    labels: row.labels,
  });
}

function toTimestamp(us: number): Timestamp {
  const seconds = Math.floor(us / 1e6);
  return create(TimestampSchema, { seconds: BigInt(seconds), nanos: (us - seconds * 1e6) * 1000 });
}

/** `string parent = 5`, which containerd's API has from 2.2 on (capability `rebase`); the interface files here are older and keep it as an unknown field. */
function commitParent(request: CommitSnapshotRequest): string {
  const field = request.$unknown?.findLast(({ no, wireType }) => no === 5 && wireType === WireType.LengthDelimited);
  return field === undefined ? "" : new BinaryReader(field.data).string();
}

/** Resolves with the function that takes the socket away again. */
async function listen(server: Http2Server, address: string | { readonly fd: number }): Promise<() => void> {
  if (typeof address !== "string") {
    await listening(server, () => server.listen({ fd: address.fd }));
    return () => undefined;
  }
  if (!isAbsolute(address)) {
    throw new HeadstartError("HS_CONFIG", { what: `socket address ${JSON.stringify(address)} must be absolute` });
  }
  const directory = dirname(address);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  await refuseIfServed(address);
  const temporary = join(directory, `.${randomUUID().slice(0, 8)}`);
  if (Buffer.byteLength(temporary) > SOCKET_PATH_BYTES_MAX || Buffer.byteLength(address) > SOCKET_PATH_BYTES_MAX) {
    throw new HeadstartError("HS_CONFIG", {
      what: `socket address ${address} is longer than ${SOCKET_PATH_BYTES_MAX} bytes`,
    });
  }
  // private before anybody can know its name: bind(2) takes its mode from the umask, which is of the whole process
  const previousMask = process.umask(0o177);
  try {
    await listening(server, () => {
      server.listen(temporary);
      process.umask(previousMask);
    });
    chmodSync(temporary, 0o600);
    renameSync(temporary, address);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  } finally {
    process.umask(previousMask);
  }
  const { ino } = lstatSync(address);
  return () => {
    // a successor may have put its own there
    if (lstatSync(address, { throwIfNoEntry: false })?.ino === ino) rmSync(address, { force: true });
  };
}

function listening(server: Http2Server, start: () => void): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.once("listening", () => {
      server.off("error", reject);
      resolve();
    });
    start();
  });
}

async function refuseIfServed(address: string): Promise<void> {
  const served = await new Promise<boolean>((resolve) => {
    const socket = connect(address);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
  if (served) throw new HeadstartError("HS_STATE_BUSY", { what: `${address}: another process answers there` });
}

async function close(server: Http2Server, sessions: Set<ServerHttp2Session>, remove: () => void): Promise<void> {
  remove();
  const closed = new Promise<void>((resolve) => {
    server.close(() => resolve());
  });
  // GOAWAY: no new calls on this connection, those under way may end
  for (const session of sessions) session.close();
  const timer = setTimeout(() => {
    for (const session of sessions) session.destroy();
  }, DRAIN_MS);
  await closed;
  clearTimeout(timer);
}
