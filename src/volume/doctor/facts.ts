/** What is known of the nodes that shall use a volume, each fact with the place that says so. Readers (read.ts) collect, checks.ts judges. */

export interface Known<T> {
  readonly value: T;
  /** File and path in it. */
  readonly where: string;
}

export type NodeSystem = "bottlerocket" | "al2023" | "other";

/** A disk that nodes get. */
export interface BlockDevice {
  readonly name: string;
  readonly snapshotId: string | null;
  readonly sizeGib: number | null;
  readonly type: string | null;
  readonly iops: number | null;
  /** MiB/s. */
  readonly throughput: number | null;
  /** MiB/s. */
  readonly initializationRate: number | null;
  readonly encrypted: boolean | null;
  readonly kmsKey: string | null;
}

export interface PodImage {
  /** As the pod names it. */
  readonly image: string;
  /** Null: by the tag (Always for :latest and none, else IfNotPresent). */
  readonly pullPolicy: string | null;
}

export interface LiveMount {
  readonly source: string;
  readonly mountPoint: string;
  readonly type: string;
  /** Of the file system; null: udev does not say. */
  readonly uuid: string | null;
  /** Of the file system, without what its own tables take. */
  readonly bytes: number;
  /** Null: the source is no block device. */
  readonly deviceBytes: number | null;
}

/** What a running node has. */
export interface LiveFacts {
  /** containerd's root as its databases tell, or why they cannot be read. */
  readonly store:
    | { readonly images: readonly { readonly name: string; readonly pinned: boolean }[] }
    | { readonly trouble: string };
  /** Where containerd's root lies: the file system's device and mount point. */
  readonly mount: LiveMount | null;
  /** Bottlerocket: which snapshotter the store was filled for, and which is set. */
  readonly activeSnapshotter: string | null;
  readonly selectedSnapshotter: string | null;
  /** Fraction of the file system that is used. */
  readonly used: number | null;
}

/** The first that says something is believed; another that says something else is not looked at, as with files that override each other. */
export class NodeFacts {
  /** How often anything was said, known before or not. */
  told = 0;
  system: Known<NodeSystem> | null = null;
  snapshotter: Known<string> | null = null;
  /** Instance store takes the place of the volume. */
  instanceStore: Known<string> | null = null;
  /** Percent. */
  gcHigh: Known<number> | null = null;
  /** A duration as kubelet takes it, "0s": never. */
  maximumGcAge: Known<string> | null = null;
  sandboxImage: Known<string> | null = null;
  containerd: Known<string> | null = null;
  /** linux/amd64, … */
  platform: Known<string> | null = null;
  readonly devices: Known<BlockDevice>[] = [];
  readonly pods: Known<PodImage>[] = [];
  live: Known<LiveFacts> | null = null;
  /** Parts that nothing here reads, and why. */
  readonly unread: Known<string>[] = [];

  learn<K extends Learned>(name: K, value: Value<K> | undefined | null, where: string): void {
    if (value === undefined || value === null || value === "") return;
    this.told++;
    if (this[name] !== null) return;
    // K names one field: the value is of its type
    (this as Record<Learned, Known<unknown> | null>)[name] = { value, where };
  }
}

type Learned =
  | "system"
  | "snapshotter"
  | "instanceStore"
  | "gcHigh"
  | "maximumGcAge"
  | "sandboxImage"
  | "containerd"
  | "platform";
type Value<K extends Learned> = NonNullable<NodeFacts[K]>["value"];
