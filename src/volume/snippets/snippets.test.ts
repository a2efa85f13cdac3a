import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { EC2NodeClass } from "@kubernetes-models/karpenter/karpenter.k8s.aws/v1/EC2NodeClass";
import { DaemonSet } from "kubernetes-models/apps/v1/DaemonSet";
import { parse } from "yaml";
import { GiB, MiB } from "../../base/limits.ts";
import { diagnose } from "../doctor/doctor.ts";
import type { VolumeFacts } from "../doctor/volume-facts.ts";
import { readScript } from "./daemonset.ts";
import type { SnippetInput } from "./disks.ts";
import { SNIPPETS, snippet } from "./snippets.ts";

const directory = mkdtempSync(join(tmpdir(), "headstart-snippets-"));
after(() => rmSync(directory, { recursive: true }));

const volume = (target: string): VolumeFacts => ({
  where: "v.json",
  target,
  platform: "linux/amd64",
  snapshotter: "overlayfs",
  blobs: true,
  pinned: true,
  references: ["registry.example/app:1", ...(target === "al2023" ? ["localhost/kubernetes/pause:latest"] : [])],
  layers: [],
  largestImageBytes: GiB,
  disk: {
    bytes: 20 * GiB,
    uuid: "6ba7b810-9dad-41d1-80b4-00c04fd430c8",
    usedBytes: 19 * GiB,
    fsOffset: target === "al2023" ? 0 : MiB,
    blocks: new Map(),
    hotRange: [10 * MiB, 3 * MiB],
    dataRanges: [
      [MiB, 20 * MiB],
      [100 * MiB, MiB],
    ],
  },
});

const input = (target = "bottlerocket", more: Partial<SnippetInput> = {}): SnippetInput => ({
  snapshot: "snap-0123456789abcdef0",
  name: "warm",
  volume: volume(target),
  kmsKey: null,
  ...more,
});

for (const target of ["bottlerocket", "al2023"]) {
  test(`${target}: Karpenter's own schema takes the NodeClass`, () => {
    for (const kmsKey of [null, "arn:aws:kms:eu-west-1:1:key/k"]) {
      const document = parse(snippet("karpenter", input(target, { kmsKey })));
      const nodeClass = new EC2NodeClass(document);
      nodeClass.validate();
      const [root, data] = document.spec.blockDeviceMappings;
      assert.deepEqual([root.deviceName, data.deviceName], ["/dev/xvda", "/dev/xvdb"]);
      assert.equal(data.ebs.snapshotID, "snap-0123456789abcdef0");
      assert.equal(data.ebs.volumeSize, "28Gi", "19 GiB are less than 70 % of it");
      data.ebs.volumeSize = "lots";
      assert.throws(() => new EC2NodeClass(document).validate(), /volumeSize/, "the schema is looked at");
    }
  });

  test(`${target}: the doctor finds nothing to fail in what is printed`, () => {
    for (const kind of ["karpenter", "launch-template"] as const) {
      const file = join(directory, `${target}-${kind}`);
      writeFileSync(file, snippet(kind, input(target)));
      const v = volume(target);
      const manifest = {
        ...{
          schema: "headstart.volume/1",
          target,
          platform: v.platform,
          snapshotter: "overlayfs",
          size: v.disk!.bytes,
        },
        fs: { offset: v.disk!.fsOffset, uuid: v.disk!.uuid, blocks: (20 * GiB) / 4096, free: GiB / 4096 },
        images: [{ refs: v.references, layers: [] }],
        options: { blobs: true, pinned: true },
      };
      const described = join(directory, `${target}.json`);
      writeFileSync(described, JSON.stringify(manifest));
      const { findings } = diagnose({ files: [file], volume: described });
      const bad = findings.filter(({ level }) => level === "fail" || level === "warn");
      assert.deepEqual(bad, [], kind);
    }
  });
}

test("every snippet names the snapshot or the volume, and none has a hole for it", () => {
  for (const kind of SNIPPETS) {
    const text = snippet(kind, input());
    assert.match(text, kind === "daemonset" ? /BOTTLEROCKET-DATA/ : /snap-0123456789abcdef0/, kind);
    assert.doesNotMatch(text, /undefined|: null|NaN/, kind);
  }
});

test("eksctl is told both disks by name, and gives its nodes the label that the DaemonSet looks for", () => {
  for (const [target, rootGib] of [
    ["bottlerocket", 4],
    ["al2023", 20],
  ] as const) {
    const [group] = parse(snippet("eksctl", input(target))).managedNodeGroups;
    assert.deepEqual([group.volumeName, group.volumeSize], ["/dev/xvda", rootGib]);
    assert.equal(group.additionalVolumes[0].volumeName, "/dev/xvdb");
    const { nodeSelector } = parse(snippet("daemonset", input(target))).spec.template.spec;
    assert.deepEqual(group.labels, nodeSelector);
  }
});

test("terraform's strings are plain whatever a key is called", () => {
  const text = snippet("terraform", input("al2023", { kmsKey: 'a"b$'.concat("{c}%{d}"), name: "9-lives" }));
  assert.match(text, /kms_key_id += "a\\"b\$\$\{c\}%%\{d\}"/);
  assert.match(text, /resource "aws_launch_template" "_9_lives"/);
  assert.equal(text.split("{").length, text.split("}").length);
});

test("AL2023's user data mounts the volume by UUID before containerd starts, and is a script that sh accepts", () => {
  const template = JSON.parse(snippet("launch-template", input("al2023")));
  const mime = Buffer.from(template.UserData, "base64").toString("utf8");
  const script = /\n\n(#![\s\S]*?)\n--/.exec(mime)![1]!;
  execFileSync("bash", ["-n"], { input: script });
  assert.match(script, /UUID=6ba7b810-9dad-41d1-80b4-00c04fd430c8 \/var\/lib\/containerd ext4/);
});

test("the DaemonSet is one by Kubernetes' schema and reads the hot range first, relative to its partition", () => {
  const document = parse(snippet("daemonset", input()));
  new DaemonSet(document).validate();
  const [container] = document.spec.template.spec.containers;
  const script: string = container.command[2];
  const ranges = [...script.matchAll(/^read_range (\d+) (\d+)$/gm)].map((match) => [
    Number(match[1]),
    Number(match[2]),
  ]);
  assert.deepEqual(ranges, [
    [36, 12],
    [0, 80],
    [396, 4],
  ]);
});

test("the script reads each range whole, once, many reads at a time", async () => {
  const bin = join(directory, "bin");
  mkdirSync(bin);
  const log = join(directory, "reads");
  writeFileSync(join(bin, "dd"), `#!/bin/sh\necho "$*" >> ${log}\nexec /bin/dd "$@"\n`);
  chmodSync(join(bin, "dd"), 0o755);
  const disk = join(directory, "disk");
  writeFileSync(disk, "");
  truncateSync(disk, 64 * MiB);
  const script = readScript(disk, [
    [5 * MiB + 1, 20 * MiB],
    [63 * MiB, MiB],
    [0, 1],
  ]);
  const child = spawn("/bin/sh", ["-c", script], {
    env: { PATH: `${bin}:/usr/bin:/bin` },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let out = "";
  await new Promise<void>((resolve, reject) => {
    child.stdout.on("data", (chunk) => {
      out += chunk;
      if (out.includes("done")) resolve();
    });
    child.on("exit", () => reject(new Error(`ended: ${out}`)));
  });
  child.kill("SIGKILL");
  const block = MiB / 4;
  const reads = readFileSync(log, "utf8").trim().split("\n");
  const covered = new Map<number, number>();
  for (const line of reads) {
    const [, skip, count] = /skip=(\d+) count=(\d+)/.exec(line)!;
    for (let at = Number(skip); at < Number(skip) + Number(count); at++) covered.set(at, (covered.get(at) ?? 0) + 1);
  }
  const wanted = [...Array(81).keys()].map((at) => (5 * MiB) / block + at).concat([252, 253, 254, 255], [0]);
  assert.deepEqual(
    [...covered.keys()].sort((a, b) => a - b),
    wanted.sort((a, b) => a - b),
  );
  assert.ok([...covered.values()].every((times) => times === 1));
  assert.ok(reads.length > 20);
  assert.match(out, /read 20736 KiB from 5120 KiB on/);
});
