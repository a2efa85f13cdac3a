/**
 * Observation: the facts that modules publish become log lines (JSON on stderr, one event a line), metrics and the time lines of starts. Every fact has its row in `OBSERVED`; a test
 * holds the table against the sources.
 */

import pino, { type Logger } from "pino";
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import { describeError } from "../base/errors.ts";
import { listen } from "../base/events.ts";

type Level = "debug" | "info" | "warn" | "error";

/** Event, least severity of its line, and the fixed phrase of it. `info` is what an operator acts on or looks for later. */
export const OBSERVED: Readonly<Record<string, readonly [Level, string]>> = {
  "fetch:request": ["debug", "fetched"],
  "fetch:request-failed": ["warn", "a fetch failed"],
  "fuse:closed": ["info", "the FUSE connection is closed"],
  "fuse:fault": ["debug", "a read waited for a hole"],
  "fuse:fault-failed": ["warn", "a read failed"],
  "fuse:init": ["info", "the FUSE connection is open"],
  "fuse:trouble": ["warn", "trouble in a FUSE reader"],
  "image:alternative-withheld": ["warn", "a container is not given its image's Nydus form"],
  "image:collect-failed": ["warn", "a layer could not be removed yet"],
  "image:index-refused": ["warn", "an index cannot be used: the layer is pulled whole"],
  "image:missed": ["info", "a lazy start was missed because of the trust policy"],
  "image:nydus-refused": ["warn", "a Nydus image cannot be used: its OCI form stands in"],
  "image:opened": ["info", "an image was opened"],
  "image:unclaimed": ["warn", "an image is left to containerd"],
  "layer:background-error": ["warn", "background fill stopped"],
  "layer:background-pause": ["info", "background fill waits after an error"],
  "layer:boot-changed": ["info", "a layer begins anew after a reboot"],
  "layer:decoder-lost": ["error", "a decoder thread died"],
  "layer:fault": ["debug", "a range was filled"],
  "layer:index-failure": ["warn", "an index does not fit its layer"],
  "layer:pull-broken": ["warn", "an eager pull lost its connection and goes on"],
  "layer:pull-failed": ["warn", "an eager pull failed"],
  "layer:pulled": ["info", "a layer was pulled whole"],
  "layer:removed": ["info", "a layer was removed"],
  "layer:state": ["info", "a layer changed its state"],
  "layer:state-not-saved": ["warn", "a layer's state could not be noted"],
  "layer:sync-failed": ["warn", "a complete layer could not be made durable yet"],
  "layer:unit": ["debug", "a unit was filled"],
  "layer:unit-copied": ["debug", "a unit was copied from another blob"],
  "layer:unit-bad": ["warn", "a unit came with wrong bytes"],
  "layer:unit-log-failed": ["warn", "a filled unit could not be noted"],
  "mount:adopted": ["info", "a mount of before was adopted"],
  "mount:dead": ["warn", "a dead mount was detached"],
  "mount:mounted": ["info", "mounted"],
  "mount:reconcile-failed": ["warn", "a mount could not be reconciled"],
  "mount:store-failed": ["debug", "metadata could not be pushed"],
  "mount:unmounted": ["info", "unmounted"],
  "registry:credentials": ["warn", "a credential source failed"],
  "registry:hosts": ["warn", "a hosts.toml cannot be used"],
  "registry:request": ["debug", "a registry answered"],
  "snapshotter:adopt-failed": ["warn", "mounts of a snapshot could not be taken up again"],
  "snapshotter:background-failed": ["warn", "background work failed"],
  "snapshotter:claimed": ["info", "a layer was claimed"],
  "snapshotter:cleanup": ["debug", "cleaned up"],
  "snapshotter:cleanup-failed": ["warn", "cleaning up failed"],
  "snapshotter:committed": ["debug", "a snapshot was committed"],
  "snapshotter:content-failed": ["debug", "containerd's content store could not be read"],
  "snapshotter:created": ["debug", "a snapshot was created"],
  "snapshotter:declined": ["info", "a layer is left to containerd"],
  "snapshotter:parked": ["debug", "a directory is removed later"],
  "snapshotter:reconcile": ["info", "a snapshot was reconciled"],
  "snapshotter:release-failed": ["warn", "mounts could not be released yet"],
  "snapshotter:removed": ["debug", "a snapshot was removed"],
  "snapshotter:session-failed": ["debug", "a connection of containerd's broke"],
};

/** What became of one image's start, for /v1/starts. Times are milliseconds since 1970. */
export interface Start {
  readonly reference: string;
  readonly manifest: string;
  readonly openedMs: number;
  readonly openMs: number;
  readonly layers: number;
  readonly lazyLayers: number;
  readonly reason: string | null;
}

const STARTS_MAX = 256;
/** Lines that wait for a log that takes none; what comes beyond is lost. */
const LOG_BYTES_MAX = 1024 * 1024;

export class Observer implements Disposable {
  readonly log: Logger;
  readonly metrics = new Registry();
  readonly starts: Start[] = [];
  readonly #endings: (() => void)[] = [];

  /** `level`: least severe event that is logged. */
  constructor(level: Level) {
    const stderr = pino.destination({ dest: 2, sync: true, maxLength: LOG_BYTES_MAX });
    // a log on a full disk, or whose reader has gone, must not end what is served
    stderr.on("error", () => undefined);
    this.log = pino(
      {
        level,
        base: null,
        timestamp: pino.stdTimeFunctions.isoTime,
        formatters: { level: (label) => ({ level: label }) },
        messageKey: "message",
      },
      stderr,
    );
    for (const [event, [severity, phrase]] of Object.entries(OBSERVED)) {
      this.#on(event, (fact) => this.log[this.#severity(severity, fact)]({ event, ...printable(fact) }, phrase));
    }
    this.#measure();
    this.#on("image:opened", (fact) => {
      this.starts.push({
        reference: String(fact.reference),
        manifest: String(fact.manifest),
        openedMs: Date.now(),
        openMs: Number(fact.ms),
        layers: Number(fact.layers),
        lazyLayers: Number(fact.lazy),
        reason: (fact.reason as string | null) ?? null,
      });
      if (this.starts.length > STARTS_MAX) this.starts.shift();
    });
  }

  /** A number that is read when metrics are asked for. `name` without the prefix. */
  gauge(name: string, help: string, read: () => number): void {
    const gauge: Gauge = new Gauge({
      name: `headstart_${name}`,
      help,
      registers: [this.metrics],
      collect: () => gauge.set(read()),
    });
  }

  [Symbol.dispose](): void {
    for (const end of this.#endings) end();
    this.log.flush();
  }

  #on(event: string, listener: (fact: Record<string, unknown>) => void): void {
    this.#endings.push(listen(event, listener));
  }

  /** A layer that breaks is a warning, whatever its other changes are. */
  #severity(usual: Level, fact: Record<string, unknown>): Level {
    return fact.to === "broken" ? "warn" : usual;
  }

  #measure(): void {
    const registers = [this.metrics];
    collectDefaultMetrics({ register: this.metrics, prefix: "headstart_" });
    const requests = new Counter({
      name: "headstart_registry_requests_total",
      help: "Requests to registries",
      labelNames: ["kind", "status"],
      registers,
    });
    const received = new Counter({
      name: "headstart_registry_received_bytes_total",
      help: "Bytes of bodies from registries",
      registers,
    });
    this.#on("registry:request", (fact) => {
      requests.inc({ kind: String(fact.kind), status: String(fact.status) });
      received.inc(Number(fact.bytes) || 0);
    });
    const buckets = [0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30];
    const waits = new Histogram({
      name: "headstart_fault_wait_seconds",
      help: "How long reads of holes waited",
      buckets,
      registers,
    });
    this.#on("fuse:fault", (fact) => waits.observe(Number(fact.waitMs) / 1000));
    this.#count("fuse:fault-failed", "faults_failed_total", "Reads that failed with an error");
    this.#count("layer:unit-bad", "units_bad_total", "Units that came with wrong bytes");
    this.#count("image:index-refused", "indexes_refused_total", "Indexes that could not be used");
    this.#count("snapshotter:claimed", "layers_claimed_total", "Layers answered with ALREADY_EXISTS");
    this.#count("snapshotter:declined", "layers_declined_total", "Layers left to containerd");
  }

  #count(event: string, name: string, help: string): void {
    const counter = new Counter({ name: `headstart_${name}`, help, registers: [this.metrics] });
    this.#on(event, () => counter.inc());
  }
}

/** Errors become their chain of messages; everything else is plain data already, and secrets print as [redacted] by themselves. */
function printable(fact: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(fact).map(([key, value]) => [key, value instanceof Error ? describeError(value) : value]),
  );
}
