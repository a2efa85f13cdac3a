/**
 * What makes a warm volume useless, or slow, on the nodes that shall use it (specs/warm-volume.md 1, 4, 11, 13). Each check says "ok", what is wrong and what to do, or what it
 * would need to be told.
 */

import { GiB } from "../../base/limits.ts";
import { formatReference, parseReference } from "../../oci/reference.ts";
import { DEFAULT_RATE, hydrationSeconds, RATE_MAX } from "../hydration.ts";
import type { BlockDevice, Known, LiveMount, NodeFacts } from "./facts.ts";
import type { VolumeFacts } from "./volume-facts.ts";

export interface Finding {
  readonly check: CheckName;
  readonly level: "ok" | "warn" | "fail" | "unknown";
  readonly what: string;
  /** What to do; for "unknown": what to pass. */
  readonly advice: string | null;
  readonly where: string | null;
}

export type CheckName =
  | "system"
  | "snapshotter"
  | "active-snapshotter"
  | "instance store"
  | "disk"
  | "size"
  | "encryption"
  | "restore"
  | "throughput"
  | "store"
  | "pins"
  | "garbage collection"
  | "pull policy"
  | "references"
  | "sandbox image";

type Judge = (facts: NodeFacts, volume: VolumeFacts | null) => readonly Finding[];

/** In the order in which a node meets them. */
export function judge(facts: NodeFacts, volume: VolumeFacts | null): Finding[] {
  return JUDGES.flatMap((each) => each(facts, volume));
}

const ok = (check: CheckName, what: string, where: string | null = null): Finding => ({
  check,
  level: "ok",
  what,
  advice: null,
  where,
});
const found = (
  check: CheckName,
  level: "warn" | "fail",
  what: string,
  advice: string,
  where: string | null = null,
): Finding => ({
  check,
  level,
  what,
  advice,
  where,
});
const unknown = (check: CheckName, what: string, advice: string): Finding => ({
  check,
  level: "unknown",
  what,
  advice,
  where: null,
});

const PASS_VOLUME = "pass the volume's manifest with --volume PATH.json";
const PASS_NODE = "pass the NodeClass, launch template or user data of the nodes";

const system: Judge = (facts, volume) => {
  if (facts.system === null) return [unknown("system", "the nodes' operating system is not known", PASS_NODE)];
  const { value, where } = facts.system;
  const findings: Finding[] = [];
  if (volume !== null && volume.disk !== null && volume.target !== value) {
    const advice = `build it with --layout ${value === "other" ? "containerd, and put the directory on the nodes' disk" : value}`;
    findings.push(
      found("system", "fail", `the volume is made for ${volume.target}, the nodes are ${value}`, advice, where),
    );
  }
  const { platform } = facts;
  if (volume !== null && platform !== null && platform.value !== volume.platform.split("/").slice(0, 2).join("/")) {
    const advice = `build one with --platform ${platform.value}`;
    findings.push(
      found(
        "system",
        "fail",
        `the volume holds ${volume.platform}, the nodes are ${platform.value}`,
        advice,
        platform.where,
      ),
    );
  }
  return findings.length > 0 ? findings : [ok("system", `${value}`, where)];
};

const snapshotter: Judge = (facts, volume) => {
  const isBottlerocket = facts.system?.value === "bottlerocket";
  const set = facts.snapshotter;
  if (volume === null) return [unknown("snapshotter", "what the volume was made for is not known", PASS_VOLUME)];
  if (set === null && facts.system === null)
    return [unknown("snapshotter", "the nodes' snapshotter is not known", PASS_NODE)];
  const name = set?.value ?? "overlayfs";
  if (name === volume.snapshotter) return [ok("snapshotter", `${name}, as on the volume`, set?.where ?? null)];
  const what = `the nodes use ${name}, the volume is made for ${volume.snapshotter}`;
  const advice = `set the snapshotter to ${volume.snapshotter} on nodes that boot with this volume`;
  if (isBottlerocket)
    return [
      found("snapshotter", "fail", `${what}: Bottlerocket empties /var/lib/containerd at boot`, advice, set?.where),
    ];
  if (!volume.blobs)
    return [
      found(
        "snapshotter",
        "fail",
        `${what}, and its blobs were dropped: no container of its images can be created`,
        advice,
        set?.where,
      ),
    ];
  return [found("snapshotter", "warn", `${what}: the first container of each image unpacks it`, advice, set?.where)];
};

const activeSnapshotter: Judge = (facts) => {
  const { live } = facts;
  if (live === null || facts.system?.value !== "bottlerocket") return [];
  const { activeSnapshotter: active, selectedSnapshotter: selected } = live.value;
  if (selected === null || selected === active)
    return [ok("active-snapshotter", active === null ? "no snapshotter is set" : `${active}, as set`, live.where)];
  const what = `the store was filled for ${active ?? "nothing known"}, ${selected} is set`;
  const advice =
    "the next boot empties /var/lib/containerd: unset settings.container-runtime.snapshotter, or build the volume for it";
  return [found("active-snapshotter", "fail", what, advice, live.where)];
};

const instanceStore: Judge = (facts) => {
  const set = facts.instanceStore;
  if (set === null) {
    if (facts.system === null) return [];
    return [ok("instance store", "not used for containerd's directory")];
  }
  const advice =
    "leave instance store out (instanceStorePolicy, localStorage.strategy, ephemeral-storage bind) on these nodes";
  return [
    found(
      "instance store",
      "fail",
      `${set.value}: containerd's directory lies on instance store, the volume is not used`,
      advice,
      set.where,
    ),
  ];
};

/** The device that the nodes' system keeps images on. */
function dataDevice(facts: NodeFacts): Known<BlockDevice> | null {
  const withSnapshot = facts.devices.filter(({ value }) => value.snapshotId !== null);
  if (facts.system?.value === "bottlerocket")
    return facts.devices.find(({ value }) => value.name === "/dev/xvdb") ?? null;
  return withSnapshot.find(({ value }) => value.name !== "/dev/xvda") ?? withSnapshot[0] ?? null;
}

/** Below this part of its device a file system was not grown: its own tables take a few percent. */
const GROWN = 0.9;

function liveDisk(mount: LiveMount, where: string, volume: VolumeFacts | null): Finding {
  const what = `containerd's directory is on ${mount.source} (${mount.type}), mounted at ${mount.mountPoint}`;
  const advice = "mount the volume at containerd's root before containerd starts";
  if (mount.type !== "ext4") return found("disk", "fail", `${what}: no volume that was built here`, advice, where);
  const wanted = volume?.disk?.uuid;
  if (mount.uuid !== null && wanted !== undefined && mount.uuid !== wanted)
    return found("disk", "fail", `${what}: the file system ${mount.uuid}, not the volume's ${wanted}`, advice, where);
  const { bytes, deviceBytes } = mount;
  if (deviceBytes !== null && bytes < deviceBytes * GROWN) {
    const gib = (each: number) => (each / GiB).toFixed(1);
    const short = `${what}: ${gib(bytes)} of the device's ${gib(deviceBytes)} GiB, it was not grown`;
    return found("disk", "warn", short, `resize2fs ${mount.source}`, where);
  }
  return ok("disk", what, where);
}

const disk: Judge = (facts, volume) => {
  if (facts.live !== null) {
    const { value, where } = facts.live;
    if (value.mount !== null) return [liveDisk(value.mount, where, volume)];
    return [unknown("disk", "which disk holds containerd's directory is not known", "run it on the node itself")];
  }
  if (facts.devices.length === 0) {
    const what = "no disk is named";
    return facts.system === null
      ? [unknown("disk", what, PASS_NODE)]
      : [
          found(
            "disk",
            "fail",
            `${what}: nodes get the image's own, without the volume`,
            "add a blockDeviceMapping with the snapshot",
          ),
        ];
  }
  const device = dataDevice(facts);
  if (device === null || device.value.snapshotId === null) {
    const data = facts.system?.value === "bottlerocket" ? "/dev/xvdb" : "a second device";
    return [
      found(
        "disk",
        "fail",
        `no disk is made of a snapshot`,
        `give ${data} the volume's snapshotID`,
        device?.where ?? facts.devices[0]!.where,
      ),
    ];
  }
  const findings: Finding[] = [];
  const { name, snapshotId } = device.value;
  const root = facts.devices.find(({ value }) => value.name === "/dev/xvda");
  if (facts.system?.value === "bottlerocket" && root === undefined) {
    const what = "only /dev/xvdb is named";
    findings.push(
      found("disk", "warn", what, "name /dev/xvda too: a list of mappings replaces the default one", device.where),
    );
  }
  if (root?.value.snapshotId) {
    const what = "/dev/xvda, the system's own disk, is made of a snapshot";
    findings.push(found("disk", "fail", what, "the volume belongs on the data disk", root.where));
  }
  return findings.length > 0 ? findings : [ok("disk", `${name} is made of ${snapshotId}`, device.where)];
};

/** kubelet's default. */
const GC_HIGH_DEFAULT = 85;

/** Of the file system, when the node has grown it; null: not known. */
function fillPercent(facts: NodeFacts, volume: VolumeFacts | null): number | null {
  if (facts.live?.value.used != null) return facts.live.value.used * 100;
  const sizeGib = dataDevice(facts)?.value.sizeGib;
  if (volume?.disk == null || sizeGib == null) return null;
  return (volume.disk.usedBytes / (sizeGib * GiB)) * 100;
}

const size: Judge = (facts, volume) => {
  const device = dataDevice(facts);
  if (facts.live === null && device === null) return [];
  const sizeGib = device?.value.sizeGib ?? null;
  if (volume?.disk != null && sizeGib !== null && sizeGib * GiB < volume.disk.bytes) {
    const what = `the disk has ${sizeGib} GiB, the snapshot ${volume.disk.bytes / GiB} GiB: instances do not start`;
    return [
      found(
        "size",
        "fail",
        what,
        `set the volume size to at least ${Math.ceil(volume.disk.bytes / GiB)} GiB`,
        device!.where,
      ),
    ];
  }
  const percent = fillPercent(facts, volume);
  if (percent === null) {
    return [
      unknown(
        "size",
        "how full the disk will be is not known",
        volume === null ? PASS_VOLUME : "give the device a volume size",
      ),
    ];
  }
  const text = `${percent.toFixed(0)} % of it is used`;
  const where = device?.where ?? facts.live?.where ?? null;
  if (percent <= 70) return [ok("size", text, where)];
  const high = facts.gcHigh?.value ?? GC_HIGH_DEFAULT;
  const advice =
    volume?.disk == null
      ? "give the nodes a larger disk"
      : `a size of ${sizeFor(volume.disk)} GiB leaves it below 70 %`;
  const level = percent >= Math.min(80, high) ? "fail" : "warn";
  return [found("size", level, `${text} before a container writes anything`, advice, where)];
};

/** GiB of which `usedBytes` are less than 70 %, and at least `bytes`. */
export function sizeFor({ bytes, usedBytes }: { readonly bytes: number; readonly usedBytes: number }): number {
  return Math.max(Math.ceil(bytes / GiB), Math.ceil(usedBytes / 0.7 / GiB));
}

const encryption: Judge = (facts) => {
  const device = dataDevice(facts);
  const key = device?.value.kmsKey;
  if (!device || !key) return [];
  const what = `the disk is encrypted with a key of your own (${key})`;
  const advice =
    "the nodes' role and the autoscaling service need kms:CreateGrant, kms:Decrypt, kms:GenerateDataKeyWithoutPlaintext and kms:ReEncrypt* on it, and on the snapshot's own key";
  return [found("encryption", "warn", what, advice, device.where)];
};

const restore: Judge = (facts, volume) => {
  const device = dataDevice(facts);
  if (device === null || device.value.snapshotId === null) return [];
  const bytes = volume?.disk?.usedBytes ?? null;
  const rate = device.value.initializationRate;
  if (bytes === null)
    return [unknown("restore", "how much the nodes load from the snapshot is not known", PASS_VOLUME)];
  const seconds = (each: number | null, of = bytes) => `${Math.ceil(hydrationSeconds(of, each))} s`;
  if (rate !== null)
    return [ok("restore", `loaded ${seconds(rate)} after a node's disk is made, at ${rate} MiB/s`, device.where)];
  const hot = volume?.disk?.hotRange?.[1] ?? null;
  const first =
    hot === null ? "" : `, its hot part (read first by the DaemonSet of docs/volumes-ebs.md) in ${seconds(null, hot)}`;
  const what = `nothing loads the disk ahead of its readers: about ${seconds(null)} at the ${DEFAULT_RATE} MiB/s that users report${first}`;
  const advice = `set volumeInitializationRate (${RATE_MAX} MiB/s: ${seconds(RATE_MAX)}), or use fast snapshot restore`;
  return [found("restore", "warn", what, advice, device.where)];
};

/** What a gp3 volume has when nothing is said. */
const GP3 = { iops: 3000, throughput: 125 };

const throughput: Judge = (facts) => {
  const device = dataDevice(facts);
  if (device === null) return [];
  const { type, throughput: set, initializationRate: rate } = device.value;
  if (type !== null && type !== "gp3") {
    if (["io1", "io2"].includes(type)) return [ok("throughput", type, device.where)];
    return [found("throughput", "warn", `the disk is ${type}`, "gp3 is faster for the same price", device.where)];
  }
  const value = set ?? GP3.throughput;
  const text = `gp3 with ${value} MiB/s`;
  if (rate !== null && value < rate)
    return [
      found(
        "throughput",
        "warn",
        `${text}, less than it is loaded with`,
        `set throughput to ${rate} or more`,
        device.where,
      ),
    ];
  if (value >= 250) return [ok("throughput", text, device.where)];
  return [found("throughput", "warn", text, "images are read in bursts: 250 to 1000 MiB/s cost little", device.where)];
};

const store: Judge = (facts, volume) => {
  const { live } = facts;
  if (live === null) return [];
  const { store: held } = live.value;
  if ("trouble" in held)
    return [
      found(
        "store",
        "fail",
        `containerd's databases cannot be read: ${held.trouble}`,
        "see `headstart volume verify`",
        live.where,
      ),
    ];
  if (volume === null) return [ok("store", `${held.images.length} names of images`, live.where)];
  const names = new Set(held.images.map(({ name }) => name));
  const missing = volume.references.filter((reference) => !names.has(reference));
  if (missing.length === 0)
    return [ok("store", `all ${volume.references.length} names of the volume are there`, live.where)];
  const what = `${missing.length} of the volume's ${volume.references.length} names are gone: ${some(missing)}`;
  return [
    found("store", "fail", what, "kubelet removed them, or this is not the volume: see the findings above", live.where),
  ];
};

/** CRI honours the label from these on. */
const PINS_SINCE: readonly (readonly [number, number, number])[] = [
  [1, 6, 22],
  [1, 7, 3],
];

const pins: Judge = (facts, volume) => {
  if (volume === null) return [unknown("pins", "whether the images are pinned is not known", PASS_VOLUME)];
  const advice = "build it without --no-pin";
  if (!volume.pinned)
    return [
      found("pins", "warn", "the images are not pinned: kubelet removes unused ones first", advice, volume.where),
    ];
  if (facts.containerd === null)
    return [ok("pins", "the images are pinned (containerd 1.6.22, 1.7.3 and later keep them)")];
  const { value, where } = facts.containerd;
  if (honoursPins(value)) return [ok("pins", `the images are pinned, containerd ${value} keeps them`, where)];
  return [
    found("pins", "warn", `containerd ${value} does not know pinned images`, "use 1.6.22, 1.7.3 or later", where),
  ];
};

function honoursPins(version: string): boolean {
  const [major = 0, minor = 0, patch = 0] = version.split(/[.+~-]/).map(Number);
  const since = PINS_SINCE.find(([a, b]) => a === major && b === minor);
  return since === undefined ? major > 1 || (major === 1 && minor > 7) : patch >= since[2];
}

const garbageCollection: Judge = (facts, volume) => {
  const findings: Finding[] = [];
  const percent = fillPercent(facts, volume);
  const high = facts.gcHigh?.value ?? GC_HIGH_DEFAULT;
  const where = facts.gcHigh?.where ?? null;
  if (percent !== null && percent >= high) {
    const what = `kubelet removes images above ${high} %, and ${percent.toFixed(0)} % is used from the start`;
    findings.push(
      found("garbage collection", "fail", what, "a larger disk, or a higher imageGCHighThresholdPercent", where),
    );
  } else if (percent !== null && percent >= high - 10) {
    const what = `${percent.toFixed(0)} % is used from the start, kubelet removes images above ${high} %`;
    findings.push(
      found("garbage collection", "warn", what, "a larger disk, or a higher imageGCHighThresholdPercent", where),
    );
  }
  const age = facts.maximumGcAge;
  if (age !== null && !/^0+(\.0+)?([a-z]+)?$/.test(age.value)) {
    const gib = volume === null ? null : (volume.largestImageBytes / GiB).toFixed(1);
    const what = `imageMaximumGCAge ${age.value}: images that nobody used for so long are removed${gib === null ? "" : `, and pulled again (the largest: ${gib} GiB)`}`;
    const advice = volume?.pinned
      ? "pinned images stay; unpinned ones of other builds do not"
      : "pin the images, or set it to 0s";
    findings.push(found("garbage collection", volume?.pinned ? "warn" : "fail", what, advice, age.where));
  }
  if (findings.length > 0) return findings;
  if (percent === null) return [unknown("garbage collection", "how full the disk will be is not known", PASS_VOLUME)];
  return [ok("garbage collection", `starts above ${high} %, ${percent.toFixed(0)} % is used`, where)];
};

const pullPolicy: Judge = (facts) => {
  if (facts.pods.length === 0) return [];
  const always = facts.pods.filter(({ value }) => (value.pullPolicy ?? defaultPolicy(value.image)) === "Always");
  if (always.length === 0) return [ok("pull policy", "no pod asks the registry for what is present")];
  const images = [...new Set(always.map(({ value }) => value.image))];
  const what = `${images.length} images are pulled always (said, or by the tag latest): each start asks the registry: ${some(images)}`;
  return [
    found("pull policy", "warn", what, "name a tag or digest, and set imagePullPolicy: IfNotPresent", always[0]!.where),
  ];
};

function defaultPolicy(image: string): string {
  const name = image.slice(image.lastIndexOf("/") + 1);
  return !name.includes("@") && (!name.includes(":") || name.endsWith(":latest")) ? "Always" : "IfNotPresent";
}

const references: Judge = (facts, volume) => {
  if (facts.pods.length === 0) return [];
  if (volume === null) return [unknown("references", "which images the volume has is not known", PASS_VOLUME)];
  const has = new Set(volume.references);
  const images = [...new Set(facts.pods.map(({ value }) => value.image))];
  const missing = images.filter((image) => !has.has(whole(image)));
  if (missing.length === 0) return [ok("references", `the volume has all ${images.length} images that pods name`)];
  const what = `${missing.length} of ${images.length} images that pods name are not on the volume: ${some(missing)}`;
  const where = facts.pods.find(({ value }) => missing.includes(value.image))!.where;
  return [found("references", "warn", what, "add them to the build, or add the name with --name", where)];
};

function whole(image: string): string {
  try {
    return formatReference(parseReference(image));
  } catch {
    return image;
  }
}

/** What EKS's images of AL2023 call it since awslabs/amazon-eks-ami 2000: a name that only the image itself has. */
const EKS_SANDBOX = "localhost/kubernetes/pause:latest";

const sandboxImage: Judge = (facts, volume) => {
  if (volume === null || facts.system === null) return [];
  const pauses = volume.references.filter((reference) => /(^|\/)pause[:@]/.test(reference));
  if (facts.system.value === "bottlerocket") {
    if (pauses.length === 0) return [ok("sandbox image", "left to Bottlerocket, which brings its own")];
    const what = `the volume has ${pauses[0]}: Bottlerocket brings its own, and an old one here is kept`;
    return [found("sandbox image", "warn", what, "leave it out of the build", volume.where)];
  }
  const set = facts.sandboxImage;
  if (set !== null && volume.references.includes(whole(set.value))) return [ok("sandbox image", set.value, set.where)];
  const nameIt = `give a pause image that name: --name NUMBER=${EKS_SANDBOX}`;
  if (set === null && pauses.length > 0) {
    if (facts.system.value !== "al2023" || pauses.includes(EKS_SANDBOX))
      return [ok("sandbox image", `the volume has ${pauses.find((each) => each === EKS_SANDBOX) ?? pauses[0]}`)];
    const what = `the volume has ${pauses[0]}, but EKS's AL2023 since November 2024 wants ${EKS_SANDBOX}, which no registry has: no pod starts`;
    const advice = `${nameIt}; or pass /etc/containerd/config.toml of a node that wants another one`;
    return [found("sandbox image", "warn", what, advice, volume.where)];
  }
  const name = set?.value ?? "the sandbox image";
  const isLocal = set !== null && whole(set.value) === EKS_SANDBOX;
  const what = `${name} is not on the volume, and the mount hides the node's own copy: no pod starts${isLocal ? "" : " without the registry"}`;
  const advice = isLocal ? nameIt : "add the image that containerd's sandbox_image names to the build";
  return [found("sandbox image", "fail", what, advice, set?.where ?? volume.where)];
};

function some(names: readonly string[]): string {
  return names.length <= 3 ? names.join(", ") : `${names.slice(0, 3).join(", ")} and ${names.length - 3} more`;
}

const JUDGES: readonly Judge[] = [
  system,
  snapshotter,
  activeSnapshotter,
  instanceStore,
  disk,
  size,
  encryption,
  restore,
  throughput,
  store,
  pins,
  garbageCollection,
  pullPolicy,
  references,
  sandboxImage,
];
