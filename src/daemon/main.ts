/**
 * The server process: builds the parts, connects them, and decides nothing. One AsyncDisposableStack, closed in reverse. Started by the supervisor, which holds /dev/fuse (inherited as
 * HEADSTART_FUSE_FD) and starts the next one when this dies; everything here is found again from --root and --state.
 *
 *   main.ts [--config FILE] [--overrides JSON]
 */

import { writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { bootId } from "../base/boot.ts";
import { describeError, HeadstartError } from "../base/errors.ts";
import { makePrivateDirectory } from "../base/files.ts";
import { impliedLower } from "../erofs/overlay.ts";
import { FetchScheduler } from "../fetch/scheduler.ts";
import { HoleServer } from "../fuse/hole-server.ts";
import { ImageProvider } from "../image/provider.ts";
import { isListing } from "../image/substitutes.ts";
import { LayerStore } from "../layer/store.ts";
import { exitNow } from "../linux/process.ts";
import { Chains } from "../mount/chain.ts";
import { probeLadder } from "../mount/ladder.ts";
import { LayerMounts, layerOfNodeid } from "../mount/layers.ts";
import { credentialSources } from "../oci/registry/auth/sources.ts";
import { Registry } from "../oci/registry/registry.ts";
import { ContainerdClient } from "../snapshotter/containerd.ts";
import { ContainerdContent } from "../snapshotter/content.ts";
import { serveSnapshotter } from "../snapshotter/server.ts";
import { openSnapshotter, type Snapshotter } from "../snapshotter/snapshotter.ts";
import { type DaemonConfig, type LoadedConfig, loadConfig } from "./config.ts";
import { layerProvider } from "./layer-provider.ts";
import { collectWhenSettled } from "./memory.ts";
import { Observer } from "./observe.ts";
import { serveMetrics, serveStatus } from "./status.ts";

async function serve(loaded: LoadedConfig, parts: AsyncDisposableStack): Promise<void> {
  const { config } = loaded;
  makePrivateDirectory(config.root);
  makePrivateDirectory(config.state);
  const observer = parts.use(new Observer(config.log_level));
  const { log } = observer;

  parts.use(collectWhenSettled());
  const registry = parts.use(openRegistry(config));
  const scheduler = new FetchScheduler({
    parallel: config.fetch.requests_per_host,
    ...(config.fetch.bandwidth_bytes_per_second > 0 && {
      backgroundBytesPerSecond: config.fetch.bandwidth_bytes_per_second,
    }),
  });
  const store = parts.use(
    await LayerStore.open(config.root, {
      fetcher: scheduler,
      bootId: bootId(),
      deadlineMs: config.fetch.demand_timeout_seconds * 1000,
      // the next container that wants the layer gets a whole one
      onIndexFailure: (layer) => images.maker.start(layer.id),
    }),
  );
  let serveAgain: ((layer: number) => Promise<void>) | null = null;
  const askedEarly = new Set<number>();
  const fd = Number(process.env.HEADSTART_FUSE_FD);
  if (!Number.isInteger(fd) || fd < 3)
    throw new HeadstartError("HS_USAGE", { what: "HEADSTART_FUSE_FD is not set: the supervisor starts this program" });
  const server = parts.use(
    await HoleServer.open({
      fd,
      stateDirectory: config.state,
      faultDeadlineMs: config.fetch.demand_timeout_seconds * 1000 + 5000,
      // a clone of a mount that overlayfs keeps is not in mountinfo: its layer is found by the first read
      onUnknownFile: (nodeid) => {
        const layer = layerOfNodeid(nodeid);
        if (layer === null) return;
        if (serveAgain === null) askedEarly.add(layer);
        else void serveAgain(layer);
      },
    }),
  );
  await server.start();
  const ladder = await probeLadder({
    server,
    directory: makePrivateDirectory(join(config.root, "probe")),
    backing: config.mount.backing,
  });
  for (const warning of ladder.warnings)
    log.warn({ event: "mount:warning", warning }, "a setting of this machine is dangerous");
  log.info(
    {
      event: "mount:ladder",
      overFuse: ladder.overFuse,
      native: ladder.native,
      directio: ladder.directio,
      kernel: ladder.kernel,
    },
    "how layers are mounted here",
  );
  const mounts = await LayerMounts.open({ directory: join(config.root, "l"), server, ladder });
  const chains = new Chains({ directory: join(config.root, "chains"), mounts, impliedLower });

  const containerd = parts.use(new ContainerdClient(config.containerd.address));
  const images = new ImageProvider({
    store,
    scheduler,
    repository: (reference) => registry.repository(reference),
    manifests: new ContainerdContent({ root: config.containerd.root, client: containerd }),
    names: containerd,
    policy: config.trust.policy,
    minLayerSize: config.lazy.min_layer_size,
    dataFiles: ladder.devices,
    eagerParallel: config.eager.parallel_layers,
    background: config.fetch.background,
  });
  serveAgain = async (id) => {
    try {
      const layer = await store.get(id);
      images.maker.attach(layer);
      mounts.serve(layer);
      images.maker.start(id);
    } catch (error) {
      log.error({ event: "mount:orphan", layer: id, error: describeError(error) }, "a mounted layer cannot be served");
    }
  };
  // containers may be waiting for holes of these right now
  await Promise.all([...new Set([...mounts.needed, ...askedEarly])].map(serveAgain));
  const opened = Promise.withResolvers<Snapshotter>();
  const snapshotter = parts.use(
    await openSnapshotter({
      root: config.root,
      provider: layerProvider({ images, mounts, chains, ladder }),
      containerdVersion: (signal) => containerd.version(signal),
      onRecovered: async () => {
        await mounts.reap();
        // pulls that the end of the last process cut off go on, for containers that come later
        const rows = (await opened.promise).status();
        const claimed = new Set(rows.flatMap(({ layer }) => (layer === null ? [] : [layer])));
        if (config.fetch.background) images.resume(claimed);
      },
    }),
  );
  opened.resolve(snapshotter);
  parts.use(await serveSnapshotter({ snapshotter, address: config.address }));

  observer.gauge("layers", "Layers in the store", () => store.list().length);
  observer.gauge("mounts", "Mounts of layers", () => mounts.status().length);
  observer.gauge("faults_pending", "Reads that wait for a hole now", () => server.statistics.faultsPending);
  const sources = {
    images: () => images.images(),
    layers: () =>
      store
        .list()
        .filter((row) => !isListing(row))
        .map(layerStatus),
    mounts: () => ({ ladder, mounts: mounts.status(), fuse: server.statistics }),
    starts: () => observer.starts,
    snapshots: () => snapshotter.status(),
    fetches: () => scheduler.statistics(),
    config: () => ({ values: config, origins: Object.fromEntries(loaded.origins) }),
    metrics: () => observer.metrics.metrics(),
  };
  parts.use(await serveStatus(join(config.state, "status.sock"), sources));
  if (config.metrics !== "") parts.use(await serveMetrics(config.metrics, sources));
  writeFileSync(join(config.state, "ready"), `${process.pid}\n`);
  log.info({ event: "daemon:ready", address: config.address, pid: process.pid }, "ready");
}

function openRegistry(config: DaemonConfig): Registry {
  const { credential_provider_config, credential_provider_bin_dir, docker_config, hosts_dir } = config.registry;
  // docker's own variable names the folder
  const folder = basename(docker_config) === "config.json" ? dirname(docker_config) : docker_config;
  const env = folder === "" ? process.env : { ...process.env, DOCKER_CONFIG: folder };
  return new Registry({
    hostsDirs: hosts_dir.split(":").filter((directory) => directory !== ""),
    credentials: credentialSources({
      env,
      ...(credential_provider_config !== "" && {
        kubelet: { configPath: credential_provider_config, binDir: credential_provider_bin_dir },
      }),
    }),
  });
}

/** A row as design says status shows it: flat, with what is filled. */
function layerStatus(row: ReturnType<LayerStore["list"]>[number]): Record<string, unknown> {
  return {
    id: row.id,
    digest: row.identity.digest,
    kind: row.kind,
    format: row.format,
    role: row.role,
    state: row.state.t,
    reason: row.state.t === "broken" ? row.state.reason : (row.trouble ?? row.source.reason ?? null),
    reference: row.source.reference ?? null,
    compressedSize: row.identity.size,
    size: row.imageSize,
    diskBytes: row.diskBytes,
    unitsFilled: row.fill?.unitsFilled ?? 0,
    unitsTotal: row.fill?.unitsTotal ?? 0,
    filledBytes: row.fill?.bytesFilled ?? (row.state.t === "sealed" ? row.imageSize : 0),
    dataBytes: row.fill?.bytesTotal ?? row.imageSize,
    devices: row.devices,
  };
}

const { values } = parseArgs({
  options: { config: { type: "string" }, overrides: { type: "string" }, "explicit-config": { type: "boolean" } },
});
/** The supervisor starts the next one only when this process has ended, so nothing may keep it. */
function fail(error: unknown): void {
  const stack = error instanceof Error && !(error instanceof HeadstartError) ? error.stack : undefined;
  const line = { level: "error", event: "daemon:failed", message: describeError(error), stack };
  process.stderr.write(`${JSON.stringify(line)}\n`);
  exitNow(1);
}

process.on("uncaughtException", fail);
const parts = new AsyncDisposableStack();
const ended = Promise.withResolvers<void>();
for (const signal of ["SIGTERM", "SIGINT"] as const) process.once(signal, () => ended.resolve());
try {
  const overrides = new Map(
    Object.entries(JSON.parse(values.overrides ?? "{}") as Record<string, string | number | boolean>),
  );
  const file =
    values.config === undefined ? null : { path: values.config, explicit: values["explicit-config"] === true };
  await serve(loadConfig(file, overrides), parts);
  await ended.promise;
  await parts.disposeAsync();
  exitNow(0);
} catch (error) {
  fail(error);
}
