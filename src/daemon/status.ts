/**
 * The status API: HTTP on STATE/status.sock, root only. `status`, `top`, `explain` and the web page read nothing else. Answers are plain JSON; a path that
 * does not exist is 404 with the list of those that do.
 */

import { chmodSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:http";
import { describeError } from "../base/errors.ts";

/** Each returns plain data at once; nothing here may touch a mount. */
export interface StatusSources {
  images(): unknown;
  layers(): unknown;
  mounts(): unknown;
  starts(): unknown;
  snapshots(): unknown;
  fetches(): unknown;
  config(): unknown;
  metrics(): Promise<string>;
}

const ROUTES = {
  "/v1/images": "images",
  "/v1/layers": "layers",
  "/v1/mounts": "mounts",
  "/v1/starts": "starts",
  "/v1/snapshots": "snapshots",
  "/v1/fetches": "fetches",
  "/v1/config": "config",
} as const;

function makeServer(sources: StatusSources, only: "all" | "metrics"): Server {
  return createServer((request, response) => {
    const path = new URL(request.url ?? "/", "http://status").pathname;
    const send = (status: number, type: string, body: string) => {
      response.writeHead(status, { "content-type": type, "content-length": Buffer.byteLength(body) });
      response.end(request.method === "HEAD" ? undefined : body);
    };
    if (request.method !== "GET" && request.method !== "HEAD") return send(405, "text/plain", "only GET\n");
    if (path === "/metrics") {
      sources.metrics().then(
        (text) => send(200, "text/plain; version=0.0.4", text),
        (error) => send(500, "text/plain", `${describeError(error)}\n`),
      );
      return;
    }
    if (only === "all" && Object.hasOwn(ROUTES, path)) {
      try {
        return send(200, "application/json", `${JSON.stringify(sources[ROUTES[path as keyof typeof ROUTES]]())}\n`);
      } catch (error) {
        // a fault in what is only shown must not end what is served
        return send(500, "text/plain", `${describeError(error)}\n`);
      }
    }
    const known = only === "all" ? [...Object.keys(ROUTES), "/metrics"] : ["/metrics"];
    return send(404, "text/plain", `no such path; there are: ${known.join(" ")}\n`);
  });
}

function listen(server: Server, where: { path: string } | { host: string; port: number }): Promise<AsyncDisposable> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(where, () => {
      server.removeListener("error", reject);
      resolve({
        async [Symbol.asyncDispose]() {
          server.closeAllConnections();
          await new Promise<void>((done) => server.close(() => done()));
        },
      });
    });
  });
}

/** Replaces a socket that a killed predecessor left behind. */
export async function serveStatus(path: string, sources: StatusSources): Promise<AsyncDisposable> {
  rmSync(path, { force: true });
  const served = await listen(makeServer(sources, "all"), { path });
  chmodSync(path, 0o600);
  return served;
}

/** Only /metrics, over TCP: layer digests and references stay on the root-only socket. `address` is HOST:PORT. */
export async function serveMetrics(address: string, sources: StatusSources): Promise<AsyncDisposable> {
  const colon = address.lastIndexOf(":");
  return listen(makeServer(sources, "metrics"), {
    host: address.slice(0, colon).replace(/^\[|\]$/g, ""),
    port: Number(address.slice(colon + 1)),
  });
}
