/**
 * Wraps a transport: publishes one fact `registry:request` for each request when it is over: host, method, kind, status, bytes of body, ms. No path
 * and no query, which may hold a signature.
 */

import type { Clock } from "../../../base/clock.ts";
import { publish } from "../../../base/events.ts";
import type { Transport, TransportRequest, TransportResponse } from "./transport.ts";
import { transportCode } from "./undici.ts";

export function withLog(inner: Transport, clock: Clock): Transport {
  return {
    async send(request: TransportRequest): Promise<TransportResponse> {
      const started = clock.monotonic();
      const fact = { host: request.url.host, method: request.method, kind: request.kind };
      try {
        const response = await inner.send(request);
        response.onClose(({ bytes, error }) => {
          const ms = clock.monotonic() - started;
          publish("registry:request", { ...fact, status: response.status, bytes, ms, error: transportCode(error) });
        });
        return response;
      } catch (error) {
        const ms = clock.monotonic() - started;
        publish("registry:request", { ...fact, status: 0, bytes: 0, ms, error: transportCode(error) ?? "canceled" });
        throw error;
      }
    },
  };
}
