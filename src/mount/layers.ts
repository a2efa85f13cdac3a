/**
 * One mount for each layer, whoever uses it. A layer with holes is mounted from its virtual file in the FUSE mount, a sealed one from its local file:
 *
 *   <directory>/<id>f         EROFS over <state>/fuse/<id>.erofs       reads of holes come to us
 *   <directory>/<id>          EROFS over the layer file itself         the kernel alone
 *   <directory>/c<12 hex>     EROFS over a chain's small lower (chain.ts)
 *
 * An image whose data lie in other files (its devices, docs/internals/devices.md) is mounted from its own local file in both cases; "over FUSE" then means that devices with holes are virtual
 * files. Devices are never mounted by themselves.
 *
 * Both of a layer may be there at once: containers that began before it was sealed keep the first, new ones get the second. Names are short and under one directory,
 * which shares its parent with the snapshots: so 128 layers fit into mount(2)'s page (specs/containerd.md 5.3). The FUSE mount is elsewhere: an id-mapping of
 * everything below the common parent would fail on it.
 *
 * Uses are counted by owner (a snapshot), in memory: mounts outlive this process, so after a restart the owners are told again, then `reap` unmounts the rest.
 * Invariant: a path that `mount` returned stays mounted until its owner is released, whatever happens meanwhile.
 */

import { chmodSync, mkdirSync, readdirSync } from "node:fs";
import { rmdir } from "node:fs/promises";
import { join } from "node:path";
import type { Bitmap } from "../base/bitmap.ts";
import { describeError, HeadstartError, isHeadstartError } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import { makePrivateDirectory } from "../base/files.ts";
import { Limit } from "../base/limit.ts";
import { MiB } from "../base/limits.ts";
import type { Range } from "../base/ranges.ts";
import type { FileTree } from "../erofs/file-tree.ts";
import type { HoleServer } from "../fuse/hole-server.ts";
import { setReadAheadKiB } from "../linux/bdi.ts";
import { loopBackingFile } from "../linux/loop-info.ts";
import { UnmountFlag, unmountAsync } from "../linux/mount.ts";
import { findMount, type MountInfo, readMountInfo } from "../linux/mountinfo.ts";
import { mountErofs } from "./erofs-mount.ts";
import type { Ladder } from "./ladder.ts";

/** What mounts need of a layer; layer/'s LayerImage is one. */
export interface MountableLayer {
  readonly id: number;
  /** The layer file. */
  readonly path: string;
  readonly isComplete: boolean;
  readonly size: number;
  readonly fd: number;
  readonly fillMap: Bitmap;
  ensure(range: Range, options: { signal?: AbortSignal }): Promise<void>;
  tree(): Promise<FileTree>;
  /** Files that hold its data, in the order of its device table; `isComplete`: all that this layer needs of it is there. Left out or empty: its own file does. */
  readonly devices?: readonly { readonly layer: MountableLayer; readonly isComplete: boolean }[];
}

export type MountKind = "fuse" | "native" | "chain";

export interface LayerMountStatus {
  /** Null for a chain's small lower. */
  readonly layer: number | null;
  readonly kind: MountKind;
  readonly path: string;
  readonly owners: readonly string[];
}

export interface LayerMountsOptions {
  /** `<root>/l`. */
  readonly directory: string;
  readonly server: HoleServer;
  readonly ladder: Ladder;
}

interface Mounted {
  readonly layer: number | null;
  readonly kind: MountKind;
  readonly path: string;
  readonly owners: Set<string>;
  /** Ids of its devices; unknown (empty) after a restart, until somebody mounts or serves the layer again. */
  devices: readonly number[];
}

/** Lower node ids: 1 is the root, 2 the probe. */
const FIRST_LAYER_NODEID = 16;
/** Buffered mode reads ahead through the FUSE file; directio does not use it (specs/erofs-fuse.md 11.2). */
const BUFFERED_READ_AHEAD_KIB = 4096;
/** Each may wait on a pool thread for a read of the layer that is still under way. */
const unmounting = new Limit(2);
/** Metadata that are pushed before a mount: 100 k inodes have about 9 MiB. */
const STORE_BYTES_MAX = 16 * MiB;

export class LayerMounts {
  readonly directory: string;
  readonly #server: HoleServer;
  readonly #ladder: Ladder;
  /** By path. */
  readonly #mounted = new Map<string, Mounted>();
  readonly #served = new Set<number>();
  /** One change of a path at a time. */
  readonly #changes = new Map<string, Promise<unknown>>();

  private constructor(options: LayerMountsOptions) {
    this.directory = options.directory;
    this.#server = options.server;
    this.#ladder = options.ladder;
  }

  /** Adopts what an earlier process mounted; dead mounts, whose FUSE connection is gone, are detached. Never throws because of a single mount. */
  static async open(options: LayerMountsOptions): Promise<LayerMounts> {
    makePrivateDirectory(options.directory);
    chmodSync(options.directory, 0o700);
    const mounts = new LayerMounts(options);
    await mounts.#reconcile();
    if (options.ladder.overFuse === "file" && !options.ladder.directio) {
      const fuse = findMount(readMountInfo(), options.server.mountPath);
      // the size is fixed when EROFS is mounted over it
      if (fuse !== undefined) setReadAheadKiB(`${fuse.major}:${fuse.minor}`, BUFFERED_READ_AHEAD_KIB);
    }
    return mounts;
  }

  /** Layers (and images, not their devices) that are mounted over FUSE: containers may wait for their holes now, so `serve` each at start. */
  get needed(): number[] {
    return [...this.#mounted.values()].flatMap((each) => (each.kind === "fuse" ? [each.layer!] : []));
  }

  status(): LayerMountStatus[] {
    return [...this.#mounted.values()].map(({ layer, kind, path, owners }) => ({
      layer,
      kind,
      path,
      owners: [...owners],
    }));
  }

  isUsed(layer: number): boolean {
    return [...this.#mounted.values()].some(
      (each) => each.owners.size > 0 && (each.layer === layer || each.devices.includes(layer)),
    );
  }

  isMounted(layer: number): boolean {
    return [...this.#mounted.values()].some((each) => each.layer === layer);
  }

  /** Makes the layer's file, or its devices, files of the FUSE mount. Their descriptors must stay open until `forget`. Idempotent. */
  serve(layer: MountableLayer): void {
    if (layer.devices !== undefined && layer.devices.length > 0) {
      for (const device of layer.devices) this.serve(device.layer);
      this.#noteDevices(layer);
      return;
    }
    if (this.#served.has(layer.id)) return;
    this.#server.addFile({
      nodeid: FIRST_LAYER_NODEID + layer.id,
      name: `${layer.id}.erofs`,
      size: layer.size,
      fd: layer.fd,
      fillMap: layer.fillMap,
      ensure: (range, { signal }) => layer.ensure(range, signal === undefined ? {} : { signal }),
    });
    this.#served.add(layer.id);
  }

  /**
   * The directory of the layer's files, mounted if it is not, used by `owner` until `release`. The same for the same owner each time.
   * Throws HS_MOUNT, HS_KERNEL_UNSUPPORTED.
   */
  async mount(
    owner: string,
    layer: MountableLayer,
    options: { signal?: AbortSignal | undefined } = {},
  ): Promise<string> {
    options.signal?.throwIfAborted();
    const overFuse = this.#mounted.get(this.#layerPath(layer.id, "fuse"));
    const kind = overFuse?.owners.has(owner) || !layer.isComplete ? "fuse" : "native";
    const path = this.#layerPath(layer.id, kind);
    return await this.#change(path, async () => {
      if (kind === "fuse") this.serve(layer);
      if (!this.#mounted.has(path)) {
        const devices = layer.devices ?? [];
        const isVirtual = kind === "fuse" && devices.length === 0;
        if (isVirtual) await this.#store(layer);
        const file = isVirtual ? this.#virtualPath(layer.id) : layer.path;
        const paths = devices.map((device) =>
          kind === "fuse" && !device.isComplete ? this.#virtualPath(device.layer.id) : device.layer.path,
        );
        await this.#mount({ layer: layer.id, kind, path, owners: new Set(), devices: [] }, file, paths);
      }
      this.#noteDevices(layer);
      this.#mounted.get(path)!.owners.add(owner);
      return path;
    });
  }

  /** The same for the image of a chain: a complete local file. `name` is 12 hex digits. */
  async mountChain(owner: string, name: string, file: string): Promise<string> {
    const path = join(this.directory, `c${name}`);
    return await this.#change(path, async () => {
      if (!this.#mounted.has(path))
        await this.#mount({ layer: null, kind: "chain", path, owners: new Set(), devices: [] }, file);
      this.#mounted.get(path)!.owners.add(owner);
      return path;
    });
  }

  /** The owner is gone: what nobody uses any more is unmounted. */
  async release(owner: string): Promise<void> {
    const unused: Mounted[] = [];
    for (const each of this.#mounted.values()) {
      if (each.owners.delete(owner) && each.owners.size === 0) unused.push(each);
    }
    for (const each of unused) await this.#unmountUnused(each);
  }

  /**
   * Unmounts every mount without an owner: after a restart, once all owners have been told again. Containers that still run on such a mount (their layer was completed
   * since) have clones of it, which nobody sees here after the next restart: the hole server's `onUnknownFile` must open such a layer then.
   */
  async reap(): Promise<void> {
    for (const each of [...this.#mounted.values()]) await this.#unmountUnused(each);
  }

  /** The layer (or device) goes away: its mounts, then its virtual file. Afterwards its descriptor may be closed. Throws HS_LAYER_STATE while it, or an image over it, has owners. */
  async forget(layer: number): Promise<void> {
    if (this.isUsed(layer))
      throw new HeadstartError("HS_LAYER_STATE", { what: `layer ${layer} is mounted and in use` });
    for (const each of [...this.#mounted.values()]) if (each.layer === layer) await this.#unmountUnused(each);
    if (!this.#served.delete(layer)) return;
    await this.#server.removeFile(FIRST_LAYER_NODEID + layer);
  }

  #noteDevices(layer: MountableLayer): void {
    const devices = layer.devices?.map((device) => device.layer.id) ?? [];
    for (const each of this.#mounted.values()) if (each.layer === layer.id) each.devices = devices;
  }

  #virtualPath(layer: number): string {
    return this.#server.path({ name: `${layer}.erofs` });
  }

  #layerPath(layer: number, kind: "fuse" | "native"): string {
    return join(this.directory, kind === "fuse" ? `${layer}f` : String(layer));
  }

  /** Serialises the changes of one path. */
  async #change<T>(path: string, work: () => Promise<T>): Promise<T> {
    const before = this.#changes.get(path) ?? Promise.resolve();
    const result = before.then(work, work);
    this.#changes.set(path, result);
    try {
      return await result;
    } finally {
      if (this.#changes.get(path) === result) this.#changes.delete(path);
    }
  }

  async #mount(wanted: Mounted, file: string, devices: readonly string[] = []): Promise<void> {
    const { layer, kind, path } = wanted;
    const backing = kind === "fuse" ? this.#ladder.overFuse : this.#ladder.native;
    if (backing === null) {
      const why = this.#ladder.steps.map((step) => `${step.step}: ${step.outcome}, ${step.detail}`).join("; ");
      throw new HeadstartError("HS_KERNEL_UNSUPPORTED", { what: `${file} cannot be mounted (${why})` });
    }
    const started = performance.now();
    mkdirSync(path, { recursive: true, mode: 0o700 });
    const directio = kind === "fuse" && this.#ladder.directio;
    await mountErofs({ file, target: path, backing, directio, devices });
    this.#mounted.set(path, wanted);
    publish("mount:mounted", { layer, kind, backing, path, ms: performance.now() - started });
  }

  /** Pushes the metadata, which lie at the beginning, so that a walk of the tree asks us nothing. Only a matter of speed. */
  async #store(layer: MountableLayer): Promise<void> {
    const blocks = layer.fillMap.nextClear(0, Math.min(layer.fillMap.length, STORE_BYTES_MAX / 4096));
    try {
      await this.#server.store(FIRST_LAYER_NODEID + layer.id, { start: 0, end: Math.min(blocks * 4096, layer.size) });
    } catch (error) {
      publish("mount:store-failed", { layer: layer.id, error });
    }
  }

  #unmountUnused(mounted: Mounted): Promise<void> {
    return this.#change(mounted.path, async () => {
      // a new owner may have come while this waited
      if (mounted.owners.size > 0 || this.#mounted.get(mounted.path) !== mounted) return;
      this.#mounted.delete(mounted.path);
      await unmounting.run(() => this.#unmount(mounted.path));
      publish("mount:unmounted", { layer: mounted.layer, kind: mounted.kind, path: mounted.path });
    });
  }

  /** Detached if it is busy: an overlay that was mounted over it has a clone of its own in any case. */
  async #unmount(path: string): Promise<void> {
    try {
      await unmountAsync(path, UnmountFlag.noFollow);
    } catch (error) {
      if (!isHeadstartError(error, "HS_SYSCALL")) throw error;
      if (error.details.errnoName === "EBUSY") await unmountAsync(path, UnmountFlag.noFollow | UnmountFlag.detach);
      else if (error.details.errnoName !== "EINVAL") throw error;
    }
    // something else may lie on the mount point, and an empty directory does no harm
    await rmdir(path).catch(() => undefined);
  }

  async #reconcile(): Promise<void> {
    const all = readMountInfo();
    for (const name of readdirSync(this.directory)) {
      const match = /^(?:([1-9]\d{0,15})(f?)|c[0-9a-f]{12})$/.exec(name);
      if (match === null) continue;
      const path = join(this.directory, name);
      const stacked = all.filter((mount) => mount.mountPoint === path);
      const layer = match[1] === undefined ? null : Number(match[1]);
      const kind: MountKind = layer === null ? "chain" : match[2] === "f" ? "fuse" : "native";
      try {
        const top = stacked.at(-1);
        if (top !== undefined && stacked.length === 1 && this.#isOurs(top, kind, layer)) {
          this.#mounted.set(path, { layer, kind, path, owners: new Set(), devices: [] });
          publish("mount:adopted", { layer, kind, path });
          continue;
        }
        for (const mount of stacked) {
          publish("mount:dead", { layer, kind, path, source: mount.source });
          await unmountAsync(path, UnmountFlag.noFollow | UnmountFlag.detach);
        }
        await rmdir(path).catch(() => undefined);
      } catch (error) {
        publish("mount:reconcile-failed", { path, error: describeError(error) });
      }
    }
  }

  /** An EROFS mount of the right file, over the FUSE connection that we serve. */
  #isOurs(mount: MountInfo, kind: MountKind, layer: number | null): boolean {
    if (mount.type !== "erofs") return false;
    const file = loopBackingFile(mount.source) ?? mount.source;
    if (kind === "native") return file.endsWith(`/${layer}/image`);
    if (kind === "chain") return file.endsWith(`/${mount.mountPoint.slice(-12)}`);
    // of an image the mount names its own file, a local one
    return this.#server.adopted && (file === this.#virtualPath(layer!) || file.endsWith(`/${layer}/image`));
  }
}

/** Whose virtual file a node id is, for a fault on a layer that nobody has opened yet; null: no layer's. */
export function layerOfNodeid(nodeid: number): number | null {
  return nodeid > FIRST_LAYER_NODEID ? nodeid - FIRST_LAYER_NODEID : null;
}
