/** A snapshotter behind its socket, and a gRPC client of it, as containerd is one. */

import { randomUUID } from "node:crypto";
import { connect } from "node:net";
import { join } from "node:path";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { Snapshots } from "../../src/gen/github.com/containerd/containerd/api/services/snapshots/v1/snapshots_pb.ts";
import { serveSnapshotter } from "../../src/snapshotter/server.ts";
import { openSnapshotter, type Snapshotter, type SnapshotterOptions } from "../../src/snapshotter/snapshotter.ts";
import type { SnapshotsClient } from "../suites/snapshotter.ts";
import { FakeLayerProvider } from "./layer-provider.ts";
import { mountAll } from "./mounting.ts";

/** A client over the Unix socket at `address`. `close` ends its connection. */
export function connectSnapshots(address: string): { client: SnapshotsClient; close: () => void } {
  const baseUrl = "http://localhost";
  const sessionManager = new Http2SessionManager(
    baseUrl,
    {},
    { createConnection: () => connect(address), maxSessionMemory: 64 },
  );
  const transport = createGrpcTransport({ baseUrl, sessionManager });
  return { client: createClient(Snapshots, transport), close: () => sessionManager.abort() };
}

/**
 * Shows a committed snapshot through a containerd's own snapshots service, as its clients see it (`ctr images mount` of 1.6 ignores --snapshotter). `target` is an existing directory.
 */
export async function mountThroughContainerd(
  socket: string,
  place: { namespace: string; snapshotter: string; parent: string; target: string },
): Promise<AsyncDisposable> {
  const { client, close } = connectSnapshots(socket);
  const { snapshotter, parent, target } = place;
  const key = `view-${randomUUID()}`;
  const options = { headers: { "containerd-namespace": place.namespace } };
  try {
    // a view that nothing refers to is garbage to containerd
    const labels = { "containerd.io/gc.root": "test" };
    const { mounts } = await client.view({ snapshotter, key, parent, labels }, options);
    const mounted = mountAll(mounts, target);
    return {
      async [Symbol.asyncDispose]() {
        mounted[Symbol.dispose]();
        await client.remove({ snapshotter, key }, options);
        close();
      },
    };
  } catch (error) {
    close();
    throw error;
  }
}

export interface ServedSnapshotter extends AsyncDisposable {
  readonly client: SnapshotsClient;
  readonly snapshotter: Snapshotter;
  readonly provider: FakeLayerProvider;
  readonly address: string;
  readonly root: string;
  close(): Promise<void>;
}

export async function startSnapshotter(
  root: string,
  options: Partial<SnapshotterOptions> & { readonly provider?: FakeLayerProvider; readonly fd?: number } = {},
): Promise<ServedSnapshotter> {
  const provider = options.provider ?? new FakeLayerProvider(join(root, "layers"));
  const snapshotter = await openSnapshotter({ ...options, root, provider });
  const address = join(root, "s.sock");
  const server = await serveSnapshotter({
    snapshotter,
    address: options.fd === undefined ? address : { fd: options.fd },
  });
  const { client, close: disconnect } = connectSnapshots(address);
  const close = async () => {
    disconnect();
    await server[Symbol.asyncDispose]();
    await snapshotter[Symbol.asyncDispose]();
  };
  return { client, snapshotter, provider, address, root, close, [Symbol.asyncDispose]: close };
}
