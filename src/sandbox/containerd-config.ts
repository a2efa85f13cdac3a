/**
 * The configuration of a private containerd: everything it would put into a place of the system is turned to a folder of ours or switched off.
 * Version 2 of the format for containerd 1.x, version 3 for 2.x (specs/containerd.md 3). Written here as data, printed as TOML by `stringify`.
 */

import { join } from "node:path";
import { stringify } from "smol-toml";
import type { ContainerdVersion } from "./tools.ts";

export interface ProxySnapshotter {
  readonly name: string;
  /** Absolute path of its socket, which need not exist yet. */
  readonly address: string;
  /** Its root, for containerd's statistics (exports, specs/containerd.md 3.1). */
  readonly root?: string;
  readonly capabilities?: readonly string[];
}

export interface ContainerdSettings {
  readonly version: ContainerdVersion;
  /** Everything of this containerd lies below: short, since socket paths end at 107 bytes. */
  readonly directory: string;
  /** What CRI and `ctr` use unless told otherwise: "overlayfs", or the proxy's name. */
  readonly snapshotter: string;
  readonly proxy?: ProxySnapshotter;
  readonly sandboxImage: string;
  readonly runc: string;
  readonly logLevel?: "debug" | "info" | "warn";
}

/** The places below the directory that others need. */
export function containerdPlaces(directory: string) {
  return {
    config: join(directory, "config.toml"),
    root: join(directory, "root"),
    state: join(directory, "state"),
    socket: join(directory, "c.sock"),
    hosts: join(directory, "certs.d"),
    runcRoot: join(directory, "runc"),
    fifos: join(directory, "fifo"),
    log: join(directory, "containerd.log"),
  };
}

/** Snapshotters that probe devices or tools of the system, and parts that listen or write elsewhere. An unknown name is no error. */
const DISABLED = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.native",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.differ.v1.erofs",
  "io.containerd.nri.v1.nri",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
];

type Table = Record<string, unknown>;

export function containerdConfig(settings: ContainerdSettings): string {
  const { directory, proxy } = settings;
  const places = containerdPlaces(directory);
  const second = settings.version.startsWith("2.");
  return stringify({
    version: second ? 3 : 2,
    root: places.root,
    state: places.state,
    disabled_plugins: DISABLED,
    grpc: { address: places.socket },
    debug: { level: settings.logLevel ?? "info" },
    ...(proxy === undefined ? {} : { proxy_plugins: { [proxy.name]: proxyPlugin(proxy) } }),
    plugins: {
      "io.containerd.internal.v1.opt": { path: join(directory, "opt") },
      "io.containerd.image-verifier.v1.bindir": { bin_dir: join(directory, "verifiers") },
      ...(second ? criOfVersion2(settings) : criOfVersion1(settings)),
    },
  });
}

function proxyPlugin(proxy: ProxySnapshotter): Table {
  return {
    type: "snapshot",
    address: proxy.address,
    ...(proxy.capabilities === undefined ? {} : { capabilities: proxy.capabilities }),
    // a string, not a boolean; the transfer service of 2.1+ reads it
    exports: { enable_remote_snapshot_annotations: "true", ...(proxy.root === undefined ? {} : { root: proxy.root }) },
  };
}

function images(settings: ContainerdSettings): Table {
  // the default is true in every version: then no cri.* labels arrive and nothing could be pulled lazily
  return { snapshotter: settings.snapshotter, disable_snapshot_annotations: false, discard_unpacked_layers: false };
}

function runtimes(settings: ContainerdSettings): Table {
  const options = {
    BinaryName: settings.runc,
    Root: containerdPlaces(settings.directory).runcRoot,
    SystemdCgroup: false,
  };
  return { default_runtime_name: "runc", runtimes: { runc: { runtime_type: "io.containerd.runc.v2", options } } };
}

/** No pod gets a network of its own here: empty folders keep containerd from the system's CNI. */
function cni(directory: string): Table {
  return { bin_dir: join(directory, "cni"), conf_dir: join(directory, "cni") };
}

const STREAMING = { disable_tcp_service: true, stream_server_address: "127.0.0.1", stream_server_port: "0" };
const LIMITS = { restrict_oom_score_adj: true, max_container_log_line_size: 16_384, disable_apparmor: true };

function criOfVersion1(settings: ContainerdSettings): Table {
  return {
    "io.containerd.grpc.v1.cri": {
      ...STREAMING,
      ...LIMITS,
      sandbox_image: settings.sandboxImage,
      containerd: { ...images(settings), ...runtimes(settings) },
      registry: { config_path: containerdPlaces(settings.directory).hosts },
      cni: cni(settings.directory),
    },
  };
}

function criOfVersion2(settings: ContainerdSettings): Table {
  const hosts = containerdPlaces(settings.directory).hosts;
  const unpack = [{ platform: "linux", snapshotter: "overlayfs", differ: "walking" }];
  // a given list replaces the default one, so overlayfs is said again (specs/containerd.md 3.3)
  if (settings.proxy !== undefined) unpack.unshift({ ...unpack[0]!, snapshotter: settings.proxy.name });
  return {
    "io.containerd.grpc.v1.cri": STREAMING,
    "io.containerd.cri.v1.images": {
      ...images(settings),
      pinned_images: { sandbox: settings.sandboxImage },
      registry: { config_path: hosts },
    },
    "io.containerd.cri.v1.runtime": {
      ...LIMITS,
      enable_cdi: false,
      containerd: runtimes(settings),
      cni: cni(settings.directory),
    },
    "io.containerd.transfer.v1.local": { config_path: hosts, unpack_config: unpack },
  };
}

/** A hosts.toml that sends everything to one place, e.g. "http://127.0.0.1:5000". */
export function hostsToml(url: string): string {
  return stringify({ server: url });
}
