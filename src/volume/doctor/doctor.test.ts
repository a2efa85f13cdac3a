import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { gunzipSync } from "node:zlib";
import fc from "fast-check";
import { isHeadstartError } from "../../base/errors.ts";
import { GiB } from "../../base/limits.ts";
import { MANIFEST_SCHEMA } from "../manifest.ts";
import { type CheckName, type Finding, judge } from "./checks.ts";
import { diagnose } from "./doctor.ts";
import { type LiveMount, NodeFacts } from "./facts.ts";
import { readFacts } from "./read.ts";
import { readVolumeFile } from "./volume-facts.ts";

const directory = mkdtempSync(join(tmpdir(), "headstart-doctor-"));
after(() => rmSync(directory, { recursive: true }));

const write = (name: string, text: string): string => {
  const file = join(directory, name);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, text);
  return file;
};

const APP = "registry.example/app:1";

function manifest(
  changes: {
    target?: string;
    pinned?: boolean;
    blobs?: boolean;
    refs?: string[];
    snapshotter?: string;
    usedGib?: number;
  } = {},
) {
  const {
    target = "bottlerocket",
    pinned = true,
    blobs = true,
    refs = [APP],
    snapshotter = "overlayfs",
    usedGib = 10,
  } = changes;
  const total = (20 * GiB) / 4096;
  const volume = {
    schema: MANIFEST_SCHEMA,
    target,
    platform: "linux/amd64",
    snapshotter,
    size: 20 * GiB,
    fs: { uuid: "1", blocks: total, free: total - (usedGib * GiB) / 4096 },
    images: [
      { refs, layers: ["a", "b"].map((id) => ({ digest: id, chainID: id, blobBytes: 3 * GiB, bytes: 5 * GiB })) },
    ],
    options: { blobs, pinned },
  };
  return JSON.stringify({ predicate: { headstart_volume: volume } });
}

interface NodeClass {
  readonly family?: string;
  readonly volumeSize?: string;
  readonly snapshot?: string | null;
  readonly rate?: number | null;
  readonly throughput?: number;
  readonly more?: string;
  readonly kms?: string;
}

/** All is well with this one and the manifest above. */
function nodeClass({
  family = "bottlerocket@v1.44.0",
  volumeSize = "40Gi",
  snapshot = "snap-0123",
  rate = 300,
  throughput = 500,
  more = "",
  kms,
}: NodeClass = {}) {
  return `apiVersion: karpenter.k8s.aws/v1
kind: EC2NodeClass
metadata: {name: default}
spec:
  amiSelectorTerms: [{alias: ${family}}]
  blockDeviceMappings:
    - deviceName: /dev/xvda
      ebs: {volumeSize: 4Gi, volumeType: gp3}
    - deviceName: /dev/xvdb
      ebs:
        volumeSize: ${volumeSize}
        volumeType: gp3
        throughput: ${throughput}
${snapshot === null ? "" : `        snapshotID: ${snapshot}\n`}${rate === null ? "" : `        volumeInitializationRate: ${rate}\n`}${kms === undefined ? "" : `        kmsKeyID: ${kms}\n`}${more}`;
}

const findings = (...texts: string[]): readonly Finding[] =>
  diagnose({ files: texts.map((text, index) => write(`file-${index}`, text)) }).findings;

const level = (found: readonly Finding[], check: CheckName) => {
  const levels = found.filter((finding) => finding.check === check).map((finding) => finding.level);
  return levels.includes("fail") ? "fail" : levels.includes("warn") ? "warn" : (levels[0] ?? null);
};

test("nodes and a volume that fit have nothing but ok", () => {
  const diagnosis = diagnose({
    files: [write("good.yaml", nodeClass()), write("pods.yaml", pod(APP))],
    volume: write("good.json", manifest()),
  });
  assert.deepEqual(
    diagnosis.findings.filter((finding) => finding.level !== "ok"),
    [],
  );
  assert.equal(diagnosis.ok, true);
  assert.ok(diagnosis.findings.length >= 10);
});

function pod(image: string, policy?: string): string {
  return `apiVersion: v1
kind: Pod
spec:
  containers: [{name: a, image: "${image}"${policy === undefined ? "" : `, imagePullPolicy: ${policy}`}}]
`;
}

const AL2023 = { target: "al2023", refs: [APP, "localhost/kubernetes/pause:latest"] };
const FOREIGN_PAUSE = { target: "al2023", refs: [APP, "registry.k8s.io/pause:3.10"] };

/** Each line: what is wrong, and the check that has to say so. */
const TRAPS: readonly (readonly [string, CheckName, "warn" | "fail", () => string[]])[] = [
  ["a volume for another system", "system", "fail", () => [nodeClass({ family: "al2023@latest" }), manifest()]],
  [
    "nodes of another architecture",
    "system",
    "fail",
    () => [
      nodeClass(),
      manifest(),
      "kind: Node\nstatus: {nodeInfo: {osImage: Bottlerocket OS 1.44, operatingSystem: linux, architecture: arm64}}",
    ],
  ],
  [
    "another snapshotter on Bottlerocket",
    "snapshotter",
    "fail",
    () => [
      nodeClass({ more: '  userData: |\n    [settings.container-runtime]\n    snapshotter = "soci"\n' }),
      manifest(),
    ],
  ],
  [
    "another snapshotter without blobs",
    "snapshotter",
    "fail",
    () => [
      nodeConfig('[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "soci"'),
      manifest({ ...AL2023, blobs: false }),
    ],
  ],
  [
    "another snapshotter with blobs",
    "snapshotter",
    "warn",
    () => [
      nodeConfig('version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "soci"'),
      manifest(AL2023),
    ],
  ],
  [
    "Karpenter's RAID0",
    "instance store",
    "fail",
    () => [nodeClass({ more: "  instanceStorePolicy: RAID0\n" }), manifest()],
  ],
  [
    "RAID0 of a NodeConfig",
    "instance store",
    "fail",
    () => [nodeConfig("", "  instance: {localStorage: {strategy: RAID0}}\n"), manifest(AL2023)],
  ],
  [
    "instance store bound by Bottlerocket",
    "instance store",
    "fail",
    () => [
      '[settings.bootstrap-commands.k]\ncommands = [["apiclient", "ephemeral-storage", "init"], ["apiclient", "ephemeral-storage", "bind", "--dirs", "/var/lib/containerd"]]\nmode = "always"',
      manifest(),
    ],
  ],
  ["no snapshot on the data disk", "disk", "fail", () => [nodeClass({ snapshot: null }), manifest()]],
  ["a disk smaller than the snapshot", "size", "fail", () => [nodeClass({ volumeSize: "10Gi" }), manifest()]],
  ["a disk that is nearly full", "size", "fail", () => [nodeClass({ volumeSize: "20Gi" }), manifest({ usedGib: 17 })]],
  ["a disk above 70 %", "size", "warn", () => [nodeClass({ volumeSize: "20Gi" }), manifest({ usedGib: 15 })]],
  ["a key of one's own", "encryption", "warn", () => [nodeClass({ kms: "arn:aws:kms:x" }), manifest()]],
  ["nothing that loads the volume", "restore", "warn", () => [nodeClass({ rate: null }), manifest()]],
  ["gp3 slower than it is loaded", "throughput", "warn", () => [nodeClass({ throughput: 125 }), manifest()]],
  ["images that are not pinned", "pins", "warn", () => [nodeClass(), manifest({ pinned: false })]],
  [
    "a containerd that knows no pins",
    "pins",
    "warn",
    () => [nodeClass(), manifest(), "kind: Node\nstatus: {nodeInfo: {containerRuntimeVersion: 'containerd://1.6.20'}}"],
  ],
  [
    "collection below what is used",
    "garbage collection",
    "fail",
    () => [
      nodeClass({ volumeSize: "20Gi", more: "  kubelet: {imageGCHighThresholdPercent: 60}\n" }),
      manifest({ usedGib: 13 }),
    ],
  ],
  [
    "an age limit and no pins",
    "garbage collection",
    "fail",
    () => [
      nodeClass(),
      "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nimageMaximumGCAge: 12h\n",
      manifest({ pinned: false }),
    ],
  ],
  ["pods that pull always", "pull policy", "warn", () => [nodeClass(), manifest(), pod(APP, "Always")]],
  ["pods of the tag latest", "pull policy", "warn", () => [nodeClass(), manifest(), pod("registry.example/app")]],
  [
    "pods of other images",
    "references",
    "warn",
    () => [
      nodeClass(),
      manifest(),
      `kind: Deployment\nspec: {template: {spec: {containers: [{image: "nginx:1"}]}}}\n---\nkind: CronJob\nspec: {jobTemplate: {spec: {template: {spec: {containers: [{image: "${APP}"}]}}}}}\n`,
    ],
  ],
  [
    "a pause image on Bottlerocket",
    "sandbox image",
    "warn",
    () => [nodeClass(), manifest({ refs: [APP, "registry.k8s.io/pause:3.9"] })],
  ],
  ["no sandbox image on AL2023", "sandbox image", "fail", () => [nodeConfig(""), manifest({ target: "al2023" })]],
  [
    "a pause image by its registry's name on AL2023",
    "sandbox image",
    "warn",
    () => [nodeConfig(""), manifest(FOREIGN_PAUSE)],
  ],
  [
    "the sandbox image of EKS's AL2023, by another name",
    "sandbox image",
    "fail",
    () => [
      nodeConfig('[plugins."io.containerd.cri.v1.images".pinned_images]\nsandbox = "localhost/kubernetes/pause"'),
      manifest(FOREIGN_PAUSE),
    ],
  ],
  [
    "another sandbox image on AL2023",
    "sandbox image",
    "fail",
    () => [
      nodeConfig('[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "registry.example/pause:9"'),
      manifest(AL2023),
    ],
  ],
];

function nodeConfig(containerd: string, more = ""): string {
  const config = containerd === "" ? "" : `  containerd:\n    config: |\n${containerd.replace(/^/gm, "      ")}\n`;
  return `MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="//"

--//
Content-Type: application/node.eks.aws

apiVersion: node.eks.aws/v1alpha1
kind: NodeConfig
spec:
  cluster: {name: c}
${config}${more}
--//
Content-Type: text/x-shellscript; charset="us-ascii"

#!/bin/bash
mount /dev/nvme1n1 /var/lib/containerd
--//--
`;
}

for (const [what, check, want, texts] of TRAPS) {
  test(`found: ${what}`, () => {
    const found = findings(...texts());
    assert.equal(level(found, check), want, JSON.stringify(found.filter((finding) => finding.check === check)));
    const finding = found.find((each) => each.check === check && each.level === want)!;
    assert.ok((finding.advice ?? "").length > 10);
  });
}

test("a launch template's disks and encoded user data are read", () => {
  const userData = Buffer.from('[settings.kubernetes]\nimage-gc-high-threshold-percent = "60"\n').toString("base64");
  const data = {
    BlockDeviceMappings: [
      { DeviceName: "/dev/xvda", Ebs: { VolumeSize: 4 } },
      { DeviceName: "/dev/xvdb", Ebs: { SnapshotId: "snap-1", VolumeSize: 20, VolumeType: "gp2" } },
    ],
    UserData: userData,
  };
  for (const document of [
    { LaunchTemplateVersions: [{ LaunchTemplateData: data }] },
    { LaunchTemplateData: data },
    data,
  ]) {
    const found = findings(JSON.stringify(document), manifest({ usedGib: 13 }));
    assert.equal(level(found, "disk"), "ok");
    assert.equal(level(found, "throughput"), "warn");
    assert.equal(level(found, "garbage collection"), "fail");
    assert.equal(level(found, "system"), "ok");
  }
});

test("a script among the user data is said to be unread", () => {
  const { unread } = diagnose({ files: [write("mime", nodeConfig(""))] });
  assert.equal(unread.length, 1);
  assert.match(unread[0]!.where, /part 2/);
});

test("without the volume's manifest what depends on it is unknown, not fine", () => {
  const found = findings(nodeClass());
  for (const check of ["snapshotter", "pins", "size", "restore"] as const)
    assert.equal(level(found, check), "unknown", check);
});

test("a node's own files tell what is on it: the golden store of a real containerd", () => {
  const root = join(directory, "node");
  const golden = new URL("../../../test/golden/volume/containerd-1.6.20/", import.meta.url).pathname;
  const store = join(root, "var/lib/containerd");
  for (const [from, to] of [
    ["meta.db.gz", "io.containerd.metadata.v1.bolt/meta.db"],
    ["metadata.db.gz", "io.containerd.snapshotter.v1.overlayfs/metadata.db"],
  ] as const) {
    mkdirSync(dirname(join(store, to)), { recursive: true });
    writeFileSync(join(store, to), gunzipSync(readFileSync(join(golden, from))));
  }
  write("node/etc/os-release", 'NAME=Bottlerocket\nID=bottlerocket\nVERSION_ID="1.44.0"\n');
  write(
    "node/etc/containerd/config.toml",
    'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "overlayfs"\n',
  );
  write("node/etc/kubernetes/kubelet/config.json", '{"kind":"KubeletConfiguration","maxPods":58}');
  write("node/etc/containerd/selected-snapshotter", "ACTIVE_SNAPSHOTTER=soci\n");
  write("node/var/cache/containerd/active-snapshotter", "ACTIVE_SNAPSHOTTER=overlayfs\n");
  const look = (refs: string[]) =>
    diagnose({ files: [], live: root, volume: write("v.json", manifest({ refs })) }).findings;
  const found = look(["docker.io/library/tiny:1"]);
  assert.equal(level(found, "store"), "ok");
  assert.equal(level(found, "snapshotter"), "ok");
  assert.equal(level(found, "active-snapshotter"), "fail");
  assert.equal(level(look(["docker.io/library/tiny:2"]), "store"), "fail");
  write("node/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db", "damaged");
  assert.equal(level(look([]), "store"), "fail");
});

test("on a node the disk has to be the volume's, and grown", () => {
  const volume = readVolumeFile(write("live.json", manifest()));
  const { uuid } = volume.disk!;
  const whole: LiveMount = {
    ...{ source: "/dev/nvme1n1p1", mountPoint: "/local", type: "ext4" },
    ...{ uuid, bytes: 49 * GiB, deviceBytes: 50 * GiB },
  };
  const look = (change: Partial<LiveMount>, known = true) => {
    const facts = new NodeFacts();
    const nothing = { activeSnapshotter: null, selectedSnapshotter: null, used: 0.3 };
    facts.live = { value: { store: { images: [] }, mount: { ...whole, ...change }, ...nothing }, where: "node" };
    return level(judge(facts, known ? volume : null), "disk");
  };
  assert.equal(look({}), "ok");
  assert.equal(look({ uuid: null, deviceBytes: null }), "ok");
  assert.equal(look({ uuid: "another" }), "fail");
  assert.equal(look({ uuid: "another" }, false), "ok");
  assert.equal(look({ type: "xfs" }), "fail");
  assert.equal(look({ bytes: 8 * GiB }), "warn");
});

test("of two files that say the same, or disagree, the first is believed and the second is no error", () => {
  const kubelet = (high: number) => JSON.stringify({ kind: "KubeletConfiguration", imageGCHighThresholdPercent: high });
  const facts = new NodeFacts();
  for (const [index, high] of [70, 70, 90].entries()) readFacts(facts, kubelet(high), `file-${index}`);
  assert.equal(facts.gcHigh?.value, 70);
  assert.match(facts.gcHigh.where, /file-0/);
});

test("files that say nothing, or nonsense, are errors that name them", () => {
  const cases: readonly (readonly [string, RegExp])[] = [
    ["hello: world\n", /nothing in it says/],
    ["", /nothing in it says/],
    ["kind: EC2NodeClass\nspec: 5\n", /spec is no object/],
    ["kind: EC2NodeClass\nspec: {blockDeviceMappings: [{ebs: {volumeSize: lots}}]}\n", /volumeSize lots is no size/],
    ["kind: Pod\nspec: {containers: {}}\n", /containers is no list/],
    ["a: [b\n", /no YAML/],
    ["[settings\nx", /./],
  ];
  for (const [text, message] of cases) {
    assert.throws(
      () => findings(text),
      (error) => {
        assert.ok(isHeadstartError(error, "HS_DOCTOR_INPUT"), String(error));
        assert.match(error.message, message);
        assert.match(error.message, /file-0/);
        return true;
      },
    );
  }
  assert.throws(
    () => diagnose({ files: [join(directory, "none")] }),
    (error) => isHeadstartError(error, "HS_NOT_FOUND"),
  );
});

test("whatever a file holds, it is read or refused", () => {
  const word = fc.constantFrom(
    "kind",
    "spec",
    "EC2NodeClass",
    "Pod",
    "items",
    "LaunchTemplateData",
    "UserData",
    "containers",
    "userData",
    "settings",
  );
  const value = fc.letrec((tie) => ({
    node: fc.oneof(
      { maxDepth: 4 },
      fc.string(),
      word,
      fc.integer(),
      fc.constant(null),
      fc.array(tie("node"), { maxLength: 3 }),
      fc.dictionary(word, tie("node"), { maxKeys: 4 }),
    ),
  })).node;
  fc.assert(
    fc.property(
      fc.oneof(
        value.map((each) => JSON.stringify(each)),
        fc.string(),
        fc.string({ unit: "binary" }),
      ),
      (text) => {
        try {
          readFacts(new NodeFacts(), text, "file");
        } catch (error) {
          assert.ok(isHeadstartError(error, "HS_DOCTOR_INPUT"), String(error));
        }
      },
    ),
    { numRuns: 2000 },
  );
});
