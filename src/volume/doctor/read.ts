/**
 * From files to facts: a file is recognised by what it holds. YAML with several documents, JSON, TOML and MIME parts are opened; what is inside again (user data in a NodeClass, a
 * containerd configuration in a NodeConfig) is read too.
 */

import { parse as parseToml } from "smol-toml";
import { parseAllDocuments } from "yaml";
import { HeadstartError } from "../../base/errors.ts";
import { MANIFEST_SCHEMA } from "../manifest.ts";
import { Document } from "./document.ts";
import type { NodeFacts, NodeSystem, PodImage } from "./facts.ts";

/** False when it tells nothing. Throws HS_DOCTOR_INPUT when it says what cannot be. */
export function learnFrom(facts: NodeFacts, text: string, file: string): boolean {
  const before = known(facts);
  readText(facts, text, `${file}: `);
  return known(facts) !== before;
}

/** What one file tells. Throws HS_DOCTOR_INPUT when it is none of what is known, or says what cannot be. */
export function readFacts(facts: NodeFacts, text: string, file: string): void {
  if (!learnFrom(facts, text, file))
    throw new HeadstartError("HS_DOCTOR_INPUT", { what: `${file}: nothing in it says anything about nodes or pods` });
}

function known(facts: NodeFacts): string {
  return JSON.stringify(facts);
}

/** The volume manifest in `text`, if it is one: the statement that a build writes, or the manifest alone. */
export function volumeIn(text: string, file: string): Document | null {
  if (!text.trimStart().startsWith("{")) return null;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  const whole = new Document(value, `${file}: `);
  if (!whole.isObject) return null;
  const inside = whole.at("predicate");
  const manifest = inside.isObject ? inside.at("headstart_volume") : whole;
  return manifest.isObject && manifest.at("schema").text() === MANIFEST_SCHEMA ? manifest : null;
}

function readText(facts: NodeFacts, text: string, where: string): void {
  const start = text.trimStart();
  if (/^(mime-version|content-type):/i.test(start)) readMime(facts, start, where);
  else if (start.startsWith("#!")) facts.unread.push({ value: "a script: what it mounts and sets is not read", where });
  else if (looksLikeToml(start)) readToml(facts, start, where);
  else for (const document of yamlDocuments(text, where)) readDocument(facts, document);
}

/** A section or a dotted key before anything else: YAML has neither. */
function looksLikeToml(text: string): boolean {
  const line = text.split("\n").find((each) => each.trim() !== "" && !each.trim().startsWith("#"));
  return line !== undefined && (/^\s*\[[\w."' -]+\]\s*(#.*)?$/.test(line) || /^\s*[\w."'-]+\s*=/.test(line));
}

/** JSON is YAML. */
function yamlDocuments(text: string, where: string): Document[] {
  const parsed = parseAllDocuments(text, { uniqueKeys: false });
  return (Array.isArray(parsed) ? parsed : []).flatMap((each, index) => {
    if (each.errors.length > 0) {
      const [line] = each.errors[0]!.message.split("\n");
      throw new HeadstartError("HS_DOCTOR_INPUT", { what: `${where}no YAML, JSON or TOML: ${line}` });
    }
    let value: unknown;
    try {
      // anchors that multiply themselves are no configuration
      value = each.toJS({ maxAliasCount: 100 });
    } catch (cause) {
      throw new HeadstartError("HS_DOCTOR_INPUT", { what: `${where}too many aliases`, cause });
    }
    return value === null ? [] : [new Document(value, parsed.length === 1 ? where : `${where}document ${index + 1}: `)];
  });
}

/** `multipart/mixed` with one part after the other, as EC2 user data has it. */
function readMime(facts: NodeFacts, text: string, where: string): void {
  const boundary = /boundary="?([^"\s;]+)"?/i.exec(text.slice(0, 4096))?.[1];
  if (boundary === undefined) throw new HeadstartError("HS_DOCTOR_INPUT", { what: `${where}MIME without a boundary` });
  const parts = text.replaceAll("\r\n", "\n").split(`--${boundary}`).slice(1, -1);
  for (const [index, part] of parts.entries()) {
    const end = part.indexOf("\n\n");
    const head = end < 0 ? part : part.slice(0, end);
    const body = end < 0 ? "" : part.slice(end + 2);
    const plain = /content-transfer-encoding:\s*base64/i.test(head)
      ? Buffer.from(body, "base64").toString("utf8")
      : body;
    if (plain.trim() !== "") readText(facts, plain, `${where}part ${index + 1}: `);
  }
}

function readToml(facts: NodeFacts, text: string, where: string): void {
  let value: unknown;
  try {
    value = parseToml(text);
  } catch (cause) {
    throw new HeadstartError("HS_DOCTOR_INPUT", { what: `${where}no TOML: ${String(cause).split("\n")[0]}`, cause });
  }
  const document = new Document(value, where);
  if (document.at("plugins").isThere || document.at("version").isThere) readContainerd(facts, document);
  if (document.at("settings").isThere) readBottlerocket(facts, document.at("settings"));
}

type Reader = (facts: NodeFacts, document: Document) => void;

const readItems: Reader = (facts, document) => {
  for (const item of document.at("items").list()) readDocument(facts, item);
};

const KINDS: Readonly<Record<string, Reader>> = {
  EC2NodeClass: (facts, document) => readNodeClass(facts, document.at("spec")),
  KubeletConfiguration: (facts, document) => readKubelet(facts, document),
  NodeConfig: (facts, document) => readNodeConfig(facts, document.at("spec")),
  Node: (facts, document) => readNode(facts, document.at("status", "nodeInfo")),
  Pod: (facts, document) => readPod(facts, document.at("spec")),
  CronJob: (facts, document) => readPod(facts, document.at("spec", "jobTemplate", "spec", "template", "spec")),
  List: readItems,
  NodeList: readItems,
  PodList: readItems,
};

function readDocument(facts: NodeFacts, document: Document): void {
  if (!document.isObject) return;
  const kind = document.at("kind").isThere ? document.at("kind").text()! : "";
  const reader = Object.hasOwn(KINDS, kind) ? KINDS[kind] : undefined;
  const template = document.at("spec").isObject ? document.at("spec", "template") : undefined;
  if (reader !== undefined) reader(facts, document);
  // Deployments, DaemonSets, StatefulSets, Jobs and what others make of pods
  else if (template?.isObject === true) readPod(facts, template.at("spec"));
  else if (kind === "") readLaunchTemplates(facts, document);
}

/** karpenter.k8s.aws/v1. */
function readNodeClass(facts: NodeFacts, spec: Document): void {
  const family = spec.at("amiFamily").text() ?? aliasFamily(spec);
  facts.learn("system", systemOf(family), spec.where);
  const policy = spec.at("instanceStorePolicy").text();
  if (policy !== undefined) facts.learn("instanceStore", policy, spec.at("instanceStorePolicy").where);
  for (const mapping of spec.at("blockDeviceMappings").list()) {
    const ebs = mapping.at("ebs");
    facts.devices.push({
      where: mapping.where,
      value: {
        name: mapping.at("deviceName").text() ?? "",
        snapshotId: ebs.at("snapshotID").text() ?? null,
        sizeGib: quantityGib(ebs.at("volumeSize")),
        type: ebs.at("volumeType").text() ?? null,
        iops: ebs.at("iops").number() ?? null,
        throughput: ebs.at("throughput").number() ?? null,
        initializationRate: ebs.at("volumeInitializationRate").number() ?? null,
        encrypted: ebs.at("encrypted").flag() ?? null,
        kmsKey: ebs.at("kmsKeyID").text() ?? null,
      },
    });
  }
  readKubelet(facts, spec.at("kubelet"));
  const userData = spec.at("userData");
  if (userData.isThere) readText(facts, userData.text()!, `${userData.where}: `);
}

function aliasFamily(spec: Document): string | undefined {
  for (const term of spec.at("amiSelectorTerms").list()) {
    const alias = term.at("alias").text();
    if (alias !== undefined) return alias.split("@")[0];
  }
  return undefined;
}

function systemOf(family: string | undefined): NodeSystem | undefined {
  if (family === undefined || family.toLowerCase() === "custom") return undefined;
  const name = family.toLowerCase();
  return name.startsWith("bottlerocket") ? "bottlerocket" : name.startsWith("al2023") ? "al2023" : "other";
}

/** As the EC2 API has them, in JSON or YAML: what describe-launch-template-versions prints, one version, or its data alone. */
function readLaunchTemplates(facts: NodeFacts, document: Document): void {
  for (const version of document.at("LaunchTemplateVersions").list()) readLaunchTemplates(facts, version);
  const data = document.at("LaunchTemplateData");
  readLaunchTemplate(facts, data.isThere ? data : document);
}

function readLaunchTemplate(facts: NodeFacts, data: Document): void {
  for (const mapping of data.at("BlockDeviceMappings").list()) {
    const ebs = mapping.at("Ebs");
    facts.devices.push({
      where: mapping.where,
      value: {
        name: mapping.at("DeviceName").text() ?? "",
        snapshotId: ebs.at("SnapshotId").text() ?? null,
        sizeGib: ebs.at("VolumeSize").number() ?? null,
        type: ebs.at("VolumeType").text() ?? null,
        iops: ebs.at("Iops").number() ?? null,
        throughput: ebs.at("Throughput").number() ?? null,
        initializationRate: ebs.at("VolumeInitializationRate").number() ?? null,
        encrypted: ebs.at("Encrypted").flag() ?? null,
        kmsKey: ebs.at("KmsKeyId").text() ?? null,
      },
    });
  }
  const userData = data.at("UserData");
  const encoded = userData.text();
  if (encoded !== undefined && encoded !== "")
    readText(facts, Buffer.from(encoded, "base64").toString("utf8"), `${userData.where}: `);
}

/** Kubernetes' quantity, in whole GiB. */
function quantityGib(field: Document): number | null {
  if (!field.isThere) return null;
  const text = field.text()!;
  const match = /^(\d+(?:\.\d+)?)(Gi|G|Ti|T|Mi|M)$/.exec(text);
  if (match === null) throw new HeadstartError("HS_DOCTOR_INPUT", { what: `${field.where} ${text} is no size` });
  const unit = { Gi: 2 ** 30, G: 1e9, Ti: 2 ** 40, T: 1e12, Mi: 2 ** 20, M: 1e6 }[match[2] as "Gi"];
  return Math.ceil((Number(match[1]) * unit) / 2 ** 30);
}

/** Bottlerocket's user data: settings in TOML. */
function readBottlerocket(facts: NodeFacts, settings: Document): void {
  facts.learn("system", "bottlerocket", settings.where);
  const snapshotter = settings.at("container-runtime", "snapshotter");
  facts.learn("snapshotter", snapshotter.text(), snapshotter.where);
  const high = settings.at("kubernetes", "image-gc-high-threshold-percent");
  facts.learn("gcHigh", high.number(), high.where);
  const commands = settings.at("bootstrap-commands");
  for (const name of commands.names()) {
    for (const command of commands.at(name, "commands").list()) {
      const words = command.list().map((word) => word.text() ?? "");
      if (
        words.includes("ephemeral-storage") &&
        words.includes("bind") &&
        words.some((word) => /containerd/.test(word))
      )
        facts.learn("instanceStore", "bound to containerd's directory", command.where);
    }
  }
}

/** node.eks.aws/v1alpha1: AL2023's user data. */
function readNodeConfig(facts: NodeFacts, spec: Document): void {
  facts.learn("system", "al2023", spec.where);
  readKubelet(facts, spec.at("kubelet", "config"));
  const strategy = spec.at("instance", "localStorage", "strategy");
  facts.learn("instanceStore", strategy.text(), strategy.where);
  const config = spec.at("containerd", "config");
  if (config.isThere) readText(facts, config.text()!, `${config.where}: `);
}

/** kubelet.config.k8s.io/v1beta1, and what Karpenter passes on of it. */
function readKubelet(facts: NodeFacts, config: Document): void {
  const high = config.at("imageGCHighThresholdPercent");
  facts.learn("gcHigh", high.number(), high.where);
  const age = config.at("imageMaximumGCAge");
  facts.learn("maximumGcAge", age.text(), age.where);
}

/** containerd's config.toml, versions 2 and 3. */
function readContainerd(facts: NodeFacts, config: Document): void {
  const cri = config.at("plugins", "io.containerd.grpc.v1.cri");
  const images = config.at("plugins", "io.containerd.cri.v1.images");
  const candidates = [cri.at("containerd", "snapshotter"), images.at("snapshotter")];
  for (const each of candidates) facts.learn("snapshotter", each.text(), each.where);
  for (const each of [cri.at("sandbox_image"), images.at("pinned_images", "sandbox")])
    facts.learn("sandboxImage", each.text(), each.where);
}

/** A Node of the Kubernetes API. */
function readNode(facts: NodeFacts, info: Document): void {
  const image = info.at("osImage");
  const name = image.text() ?? "";
  const system = /^bottlerocket/i.test(name) ? "bottlerocket" : /^amazon linux 2023/i.test(name) ? "al2023" : "other";
  if (name !== "") facts.learn("system", system, image.where);
  const runtime = info.at("containerRuntimeVersion");
  facts.learn("containerd", /^containerd:\/\/v?(.+)$/.exec(runtime.text() ?? "")?.[1], runtime.where);
  const [os, architecture] = [info.at("operatingSystem").text(), info.at("architecture").text()];
  if (os !== undefined && architecture !== undefined) facts.learn("platform", `${os}/${architecture}`, info.where);
}

function readPod(facts: NodeFacts, spec: Document): void {
  for (const name of ["initContainers", "containers"]) {
    for (const container of spec.at(name).list()) {
      const image = container.at("image").text();
      if (image === undefined) continue;
      const value: PodImage = { image, pullPolicy: container.at("imagePullPolicy").text() ?? null };
      facts.pods.push({ value, where: container.where });
    }
  }
}
