/** Ready-made configuration of nodes that boot with a pushed volume, for the tools that make nodes. Text with comments, or JSON where the tool takes nothing else. */

import { stringify } from "yaml";
import { warmDaemonSet } from "./daemonset.ts";
import { mountScript, type NodeDisks, nodeDisks, type SnippetInput, userData } from "./disks.ts";

export const SNIPPETS = ["karpenter", "eksctl", "launch-template", "terraform", "daemonset"] as const;
export type SnippetKind = (typeof SNIPPETS)[number];

export function snippet(kind: SnippetKind, input: SnippetInput): string {
  if (kind === "daemonset") return warmDaemonSet(input);
  return WRITERS[kind](input, nodeDisks(input));
}

type Writer = (input: SnippetInput, disks: NodeDisks) => string;

const comments = (lines: readonly string[]) => lines.map((line) => `# ${line}\n`).join("");

/** karpenter.k8s.aws/v1. The volume is named in a NodeClass of its own: a changed snapshotID is drift, which replaces the nodes. */
const karpenter: Writer = (input, { system, root, data, notes }) => {
  const document = {
    apiVersion: "karpenter.k8s.aws/v1",
    kind: "EC2NodeClass",
    metadata: { name: input.name },
    spec: {
      amiSelectorTerms: [{ alias: `${system}@latest` }],
      role: "KarpenterNodeRole-CLUSTER",
      subnetSelectorTerms: [{ tags: { "karpenter.sh/discovery": "CLUSTER" } }],
      securityGroupSelectorTerms: [{ tags: { "karpenter.sh/discovery": "CLUSTER" } }],
      blockDeviceMappings: [
        { deviceName: root.name, ebs: { volumeSize: `${root.sizeGib}Gi`, volumeType: data.type, encrypted: true } },
        {
          deviceName: data.name,
          ebs: {
            snapshotID: data.snapshot,
            volumeSize: `${data.sizeGib}Gi`,
            volumeType: data.type,
            iops: data.iops,
            throughput: data.throughput,
            volumeInitializationRate: data.rate,
            ...(input.kmsKey === null ? {} : { encrypted: true, kmsKeyID: input.kmsKey }),
          },
        },
      ],
      ...(system === "al2023" ? { userData: userData(input.volume) } : {}),
    },
  };
  const own = ["Replace CLUSTER; leave instanceStorePolicy out: RAID0 would hide the volume.", ...notes];
  return `${comments(own)}${stringify(document, { lineWidth: 0 })}`;
};

/** eksctl.io/v1alpha5; it has no initialization rate. */
const eksctl: Writer = (input, { system, root, data, notes }) => {
  const document = {
    apiVersion: "eksctl.io/v1alpha5",
    kind: "ClusterConfig",
    metadata: { name: "CLUSTER", region: "REGION" },
    managedNodeGroups: [
      {
        name: input.name,
        amiFamily: system === "bottlerocket" ? "Bottlerocket" : "AmazonLinux2023",
        instanceType: "m7i.xlarge",
        desiredCapacity: 1,
        labels: { "headstart.dev/volume": input.name },
        // unnamed it would be 80 GiB, and with an AMI of one's own Bottlerocket's data disk
        volumeName: root.name,
        volumeSize: root.sizeGib,
        volumeType: data.type,
        additionalVolumes: [
          {
            volumeName: data.name,
            snapshotID: data.snapshot,
            volumeSize: data.sizeGib,
            volumeType: data.type,
            volumeIOPS: data.iops,
            volumeThroughput: data.throughput,
            ...(input.kmsKey === null ? {} : { volumeEncrypted: true, volumeKmsKeyID: input.kmsKey }),
          },
        ],
        ...(system === "al2023" ? { preBootstrapCommands: [mountScript(input.volume)] } : {}),
      },
    ],
  };
  const own = [
    "Replace CLUSTER and REGION. eksctl sets no initialization rate: use --snippet daemonset, or a launch template.",
    ...notes,
  ];
  return `${comments(own)}${stringify(document, { lineWidth: 0 })}`;
};

/** For `aws ec2 create-launch-template-version --launch-template-data file://FILE`: JSON has no comments. */
const launchTemplate: Writer = (input, { system, root, data }) => {
  const document = {
    BlockDeviceMappings: [
      { DeviceName: root.name, Ebs: { VolumeSize: root.sizeGib, VolumeType: data.type, DeleteOnTermination: true } },
      {
        DeviceName: data.name,
        Ebs: {
          SnapshotId: data.snapshot,
          VolumeSize: data.sizeGib,
          VolumeType: data.type,
          Iops: data.iops,
          Throughput: data.throughput,
          VolumeInitializationRate: data.rate,
          DeleteOnTermination: true,
          ...(input.kmsKey === null ? {} : { Encrypted: true, KmsKeyId: input.kmsKey }),
        },
      },
    ],
    ...(system === "al2023" ? { UserData: Buffer.from(userData(input.volume)).toString("base64") } : {}),
  };
  return `${JSON.stringify(document, null, 2)}\n`;
};

/** The AWS provider takes volume_initialization_rate from 6.0 on. */
const terraform: Writer = (input, { system, root, data, notes }) => {
  const name = input.name.replace(/[^A-Za-z0-9_]/g, "_").replace(/^(?=\d)/, "_");
  const key =
    input.kmsKey === null
      ? ""
      : `\n      encrypted                  = true\n      kms_key_id                 = ${quoted(input.kmsKey)}`;
  const data64 =
    system === "al2023" ? `\n  user_data = ${quoted(Buffer.from(userData(input.volume)).toString("base64"))}\n` : "";
  return `${comments(["AWS provider 6.0 or later (volume_initialization_rate).", ...notes])}resource "aws_launch_template" "${name}" {
  name_prefix = ${quoted(`${input.name}-`)}
${data64}
  block_device_mappings {
    device_name = ${quoted(root.name)}
    ebs {
      volume_size           = ${root.sizeGib}
      volume_type           = ${quoted(data.type)}
      delete_on_termination = true
    }
  }

  block_device_mappings {
    device_name = ${quoted(data.name)}
    ebs {
      snapshot_id                = ${quoted(data.snapshot)}
      volume_size                = ${data.sizeGib}
      volume_type                = ${quoted(data.type)}
      iops                       = ${data.iops}
      throughput                 = ${data.throughput}
      volume_initialization_rate = ${data.rate}
      delete_on_termination      = true${key}
    }
  }
}
`;
};

/** An HCL string without templates. */
function quoted(text: string): string {
  return JSON.stringify(text).replace(/[$%](?=\{)/g, (sign) => sign + sign);
}

const WRITERS: Readonly<Record<Exclude<SnippetKind, "daemonset">, Writer>> = {
  karpenter,
  eksctl,
  "launch-template": launchTemplate,
  terraform,
};
