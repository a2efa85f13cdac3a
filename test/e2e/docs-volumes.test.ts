/**
 * The pages about warm volumes are true: every command of their `sh` and `yaml` blocks runs, in the order of the page, and what it makes is what the page says. A block that is neither of these, and a
 * command that did not run, fail here.
 */

import assert from "node:assert/strict";
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { after, before, describe, test } from "node:test";
import { EC2NodeClass } from "@kubernetes-models/karpenter/karpenter.k8s.aws/v1/EC2NodeClass";
import { NodePool } from "@kubernetes-models/karpenter/karpenter.sh/v1/NodePool";
import { DaemonSet } from "kubernetes-models/apps/v1/DaemonSet";
import { parse } from "yaml";
import { MiB } from "../../src/base/limits.ts";
import { debianPackages } from "../../src/sandbox/packages.ts";
import { headstartLines } from "../tools/command-lines.ts";
import { type FencedBlock, fencedBlocks } from "../tools/fenced-blocks.ts";
import { DocsPlace, DocsRegistry } from "./docs-place.ts";

const docs = join(dirname(dirname(import.meta.dirname)), "docs");
const blocksOf = (page: string) => fencedBlocks(readFileSync(join(docs, page), "utf8"));

const KINDS = { EC2NodeClass, NodePool, DaemonSet };

/** Throws what Kubernetes' or Karpenter's own schema finds wrong. */
function assertKubernetes(text: string): { kind: keyof typeof KINDS; spec: Record<string, unknown> } {
  const document = parse(text) as { kind: keyof typeof KINDS; spec: Record<string, unknown> };
  const Model = KINDS[document.kind];
  assert.ok(Model !== undefined, `${document.kind} is not known here`);
  new Model(document as never).validate();
  return document;
}

function snapshotOf(nodeClass: Record<string, unknown>): string {
  const mappings = nodeClass.blockDeviceMappings as { deviceName: string; ebs: { snapshotID?: string } }[];
  return mappings.find(({ deviceName }) => deviceName === "/dev/xvdb")!.ebs.snapshotID!;
}

/** Runs a block as a reader would paste it; each `headstart`, `aws` and `kubectl` in it has to be called. */
async function runShell(place: DocsPlace, page: string, block: FencedBlock): Promise<void> {
  const calls = await place.run(`${page}:${block.line}`, block.text, {
    ...place.credentials,
    NODE_SYSTEM: block.heading === "AL2023" ? "al2023" : "bottlerocket",
  });
  const count = (program: string) => calls.filter((call) => call.startsWith(`${program} `)).length;
  assert.equal(count("headstart"), headstartLines(block.text).length, `${page}:${block.line}: every command ran`);
  for (const program of ["aws", "kubectl"]) {
    const written = block.text.match(new RegExp(`(?:^|\\$\\()${program} `, "gm"))?.length ?? 0;
    assert.equal(count(program), written, `${page}:${block.line}: ${program}`);
  }
}

interface Job {
  readonly kind: "github" | "gitlab";
  readonly job: Record<string, unknown>;
  readonly line: number;
}

/** A GitHub workflow or the body of a job, a GitLab pipeline; null: something else. */
function jobOf({ text, line }: FencedBlock): Job | null {
  const document = parse(text) as Record<string, unknown>;
  if (document.jobs !== undefined) {
    const [job] = Object.values(document.jobs as Record<string, Record<string, unknown>>);
    return { kind: "github", job: { permissions: document.permissions, ...job }, line };
  }
  if (document.steps !== undefined) return { kind: "github", job: document, line };
  const gitlab = Object.values(document).find((each) => Object.hasOwn((each ?? {}) as object, "script"));
  return gitlab === undefined ? null : { kind: "gitlab", job: gitlab as Record<string, unknown>, line };
}

/** Inputs of the actions that the pages use. */
const ACTIONS: Readonly<Record<string, readonly string[]>> = {
  "actions/checkout": [],
  "actions/cache": ["path", "key", "restore-keys"],
  "aws-actions/configure-aws-credentials": ["role-to-assume", "aws-region"],
};

interface Step {
  readonly uses?: string;
  readonly run?: string;
  readonly with?: Readonly<Record<string, string>>;
}

async function runGithub(place: DocsPlace, where: string, job: Record<string, unknown>): Promise<string[]> {
  assert.equal(
    (job.permissions as Record<string, string>)["id-token"],
    "write",
    `${where}: OIDC needs the right to ask for a token`,
  );
  let env: Readonly<Record<string, string>> = {};
  const calls: string[] = [];
  for (const step of job.steps as Step[]) {
    assert.equal([step.uses, step.run].filter((each) => each !== undefined).length, 1, where);
    if (step.uses === undefined) {
      calls.push(...(await place.run(where, step.run!, env)));
      continue;
    }
    const [, action = "", version] = /^([^@]+)@(v\d+)$/.exec(step.uses) ?? [];
    assert.ok(version !== undefined && ACTIONS[action] !== undefined, `${where}: ${step.uses}`);
    for (const input of Object.keys(step.with ?? {}))
      assert.ok(ACTIONS[action].includes(input), `${where}: ${action} has no input ${input}`);
    if (step.with?.["aws-region"] !== undefined) env = { ...place.credentials, AWS_REGION: step.with["aws-region"] };
  }
  return calls;
}

/** One shell for the whole script, as GitLab's runner has it; credentials by web identity alone. */
function runGitlab(place: DocsPlace, where: string, job: Record<string, unknown>): Promise<string[]> {
  const [token] = Object.keys(job.id_tokens as object);
  const variables = Object.entries(job.variables as Record<string, string>).map(([name, value]) => [
    name,
    place.own(value),
  ]);
  return place.run(where, (job.script as string[]).join("\n"), {
    ...Object.fromEntries(variables),
    [token!]: place.aws.world.webIdentityToken,
  });
}

/** Runs a pipeline; one that caches again, with another version of the application: only what it caches stays in between. */
async function runPipeline(registry: DocsRegistry, page: string, { kind, job, line }: Job): Promise<void> {
  await using place = await DocsPlace.make(registry);
  const { world } = place.aws;
  const run = kind === "github" ? runGithub : runGitlab;
  const cached = JSON.stringify(job).includes('"last"');
  const snapshots: string[] = [];
  for (const version of cached ? [1, 2] : [1]) {
    const where = `${page}:${line} (${kind}, run ${version})`;
    writeFileSync(place.path("images.txt"), place.own(`HOST/APP:${version}\nHOST/SIDECAR:2\n`));
    const calls = await run(place, where, job);
    const scripts = kind === "github" ? (job.steps as Step[]).map((step) => step.run ?? "") : (job.script as string[]);
    const written = headstartLines(scripts.join("\n")).length;
    assert.ok(written >= 2, where);
    assert.equal(calls.filter((call) => call.startsWith("headstart ")).length, written, where);
    assert.equal(calls.filter((call) => call.startsWith("aws ")).length, cached ? version - 1 : 0, where);
    snapshots.push(world.parameters.get("/warm/app")!.value);
    if (cached) renameSync(place.path("last"), `${place.directory}-last`);
    rmSync(place.directory, { recursive: true });
    mkdirSync(place.directory);
    if (cached) renameSync(`${place.directory}-last`, place.path("last"));
  }
  const made = snapshots.map((id) => world.find(id)!);
  assert.ok(made.every(({ state, tags }) => state === "completed" && tags.get("Name") === "app"));
  const [first, second] = made;
  if (second === undefined) return;
  assert.equal(second.parent, first!.id);
  assert.ok(second.digests.size < first!.digests.size, `${second.digests.size} blocks after ${first!.digests.size}`);
}

/** Runs the `sh` blocks and writes the files that the `yaml` blocks name; what comes in between is the test's. */
async function runBlocks(
  place: DocsPlace,
  page: string,
  blocks: readonly FencedBlock[],
  prepare: (block: FencedBlock) => Promise<void> | void = () => {},
): Promise<void> {
  assert.ok(blocks.length > 0, page);
  for (const block of blocks) {
    await prepare(block);
    if (block.language === "sh") await runShell(place, page, block);
    else {
      assert.equal(block.language, "yaml", `${page}:${block.line}: a block that nothing here looks at`);
      const file = /^# ([\w.-]+\.yaml)\n/.exec(block.text)?.[1];
      if (file === undefined) assert.ok(jobOf(block) !== null, `${page}:${block.line}: neither a pipeline nor a file`);
      else {
        assertKubernetes(block.text);
        writeFileSync(place.path(file), block.text);
      }
    }
  }
}

describe("the pages about warm volumes", { concurrency: 4 }, () => {
  let registry: DocsRegistry;
  before(async () => {
    await debianPackages(["awscli"]);
    registry = await DocsRegistry.start();
  });
  after(() => registry[Symbol.asyncDispose]());

  const nodes = blocksOf("volumes-nodes.md");
  const sections = ["Karpenter and Bottlerocket", "Managed node groups", "By a pipeline"] as const;
  const blocksIn = (section: (typeof sections)[number]) => nodes.filter((block) => block.section === section);

  test("docs/volumes-nodes.md has no block but those that the tests below run", () => {
    assert.deepEqual([...new Set(nodes.map(({ section }) => section))], sections);
    assert.ok(blocksIn("By a pipeline").every(({ language }) => language === "yaml"));
  });

  test("docs/volumes-nodes.md: Karpenter's walkthrough, from images to the next release's nodes", async () => {
    await using place = await DocsPlace.make(registry);
    const { world } = place.aws;
    await runBlocks(place, "volumes-nodes.md", blocksIn("Karpenter and Bottlerocket"), async ({ text }) => {
      if (!text.includes("--live")) return;
      // a node whose data disk is the volume
      const rootfs = place.path("rootfs");
      mkdirSync(join(rootfs, "etc"), { recursive: true });
      writeFileSync(join(rootfs, "etc/os-release"), "ID=bottlerocket\n");
      await place.mountDisk(place.path("1.img"), MiB, join(rootfs, "local"));
      await place.bind(join(rootfs, "local/var"), join(rootfs, "var"));
    });
    const documents = place.applied().map(assertKubernetes);
    assert.deepEqual(
      documents.map(({ kind }) => kind),
      ["EC2NodeClass", "NodePool", "DaemonSet", "EC2NodeClass", "DaemonSet"],
    );
    const [first, second] = [documents[0]!, documents[3]!].map(({ spec }) => world.find(snapshotOf(spec))!);
    assert.equal(second!.parent, first!.id);
    assert.ok(second!.digests.size < first!.digests.size, `${second!.digests.size} after ${first!.digests.size}`);
    assert.equal(world.parameters.get("/warm/app")!.value, second!.id);
    assert.equal(world.firstDifference(second!.id, place.path("2.img")), undefined);
    assert.equal(world.snapshots.size, 2, "a release is pushed once, whatever is printed of it");
  });

  test("docs/volumes-nodes.md: the walkthrough of managed node groups", async () => {
    await using place = await DocsPlace.make(registry);
    const { world } = place.aws;
    // the other walkthrough's
    const images = place.own("HOST/APP:1\nHOST/SIDECAR:2\n");
    writeFileSync(place.path("images.txt"), images);
    await place.run("1.img", "headstart volume build --include images.txt --layout bottlerocket --output 1.img");
    // what a reader copies from a node
    const config = `version = 3\n[plugins."io.containerd.cri.v1.images".pinned_images]\nsandbox = "localhost/kubernetes/pause"\n`;
    writeFileSync(place.path("config.toml"), config);
    await runBlocks(place, "volumes-nodes.md", blocksIn("Managed node groups"), async ({ text }) => {
      if (!text.includes("--live")) return;
      const rootfs = place.path("rootfs-al2023");
      mkdirSync(join(rootfs, "etc"), { recursive: true });
      writeFileSync(join(rootfs, "etc/os-release"), 'ID="amzn"\nVERSION_ID="2023"\n');
      await place.mountDisk(place.path("al.img"), 0, join(rootfs, "var/lib/containerd"));
    });
    const al2023 = world.parameters.get("/warm/app-al2023")!.value;
    const bottlerocket = [...world.snapshots.keys()].find((id) => id !== al2023);
    assert.equal(world.snapshots.size, 2, "each disk was pushed once, whatever was printed of it");
    assert.deepEqual(
      place.applied().map((text) => assertKubernetes(text).kind),
      ["DaemonSet"],
    );

    const [template, labels, update, other] = place.nodeGroups.requests;
    const sent = new URLSearchParams(template!.body);
    assert.equal(sent.get("LaunchTemplateData.BlockDeviceMapping.2.Ebs.SnapshotId"), al2023);
    const userData = Buffer.from(sent.get("LaunchTemplateData.UserData")!, "base64").toString();
    assert.match(userData, /UUID=\S+ \/var\/lib\/containerd/);
    assert.deepEqual(JSON.parse(labels!.body).labels, { addOrUpdateLabels: { "headstart.dev/volume": "app-al2023" } });
    assert.deepEqual(JSON.parse(update!.body).launchTemplate, { name: "app", version: "7" });
    const second = new URLSearchParams(other!.body).get("LaunchTemplateData.BlockDeviceMapping.2.Ebs.SnapshotId");
    assert.equal(second, bottlerocket);
  });

  test("docs/volumes.md and docs/volumes-ebs.md, from top to bottom", async () => {
    await using place = await DocsPlace.make(registry);
    await runBlocks(place, "volumes.md", blocksOf("volumes.md"));
    rmSync(place.directory, { recursive: true });
    mkdirSync(place.directory);
    await runBlocks(place, "volumes-ebs.md", blocksOf("volumes-ebs.md"));
    const { world } = place.aws;
    assert.deepEqual(
      [...world.snapshots.values()].map(({ state, parent }) => [state, parent !== undefined]),
      [
        ["completed", false],
        ["completed", true],
      ],
      "a version is one snapshot",
    );
    const first = [...world.snapshots.keys()][0]!;
    assert.equal(world.firstDifference(first, place.path("back.img")), undefined);
    assert.equal(snapshotOf(assertKubernetes(readFileSync(place.path("nodeclass.yaml"), "utf8")).spec), first);
  });

  for (const page of ["volumes-nodes.md", "volumes-ebs.md"]) {
    const jobs = blocksOf(page).flatMap((block) => (block.language === "yaml" ? (jobOf(block) ?? []) : []));
    for (const job of jobs) {
      test(`docs/${page}: the ${job.kind} pipeline`, () => runPipeline(registry, page, job));
    }
    test(`docs/${page} has a pipeline of each kind`, () => {
      assert.deepEqual(jobs.map(({ kind }) => kind).sort(), ["github", "gitlab"]);
    });
  }
});
