/** The part of EC2's query API that snapshots need: form fields in, XML out. */

import type { Behaviour } from "./behaviour.ts";
import type { Answer } from "./ebs.ts";
import { OWNER, type Snapshot, type World } from "./world.ts";

const NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/";

class Refusal extends Error {
  readonly code: string;
  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

export function ec2Error(status: number, code: string, message: string): Answer {
  return xml(
    status,
    `<Response><Errors><Error><Code>${code}</Code><Message>${xmlText(message)}</Message></Error></Errors><RequestID>${crypto.randomUUID()}</RequestID></Response>`,
  );
}

function xml(status: number, text: string): Answer {
  return {
    status,
    headers: { "content-type": "text/xml;charset=UTF-8" },
    body: `<?xml version="1.0" encoding="UTF-8"?>\n${text}`,
  };
}

function xmlText(text: string): string {
  return text.replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);
}

/** "Filter.1.Name", "SnapshotId.2": the values of a numbered list. */
function numbered(fields: URLSearchParams, name: string): string[] {
  const found: string[] = [];
  for (let number = 1; fields.has(`${name}.${number}`); number++) found.push(fields.get(`${name}.${number}`)!);
  return found;
}

function filters(fields: URLSearchParams): Map<string, string[]> {
  const found = new Map<string, string[]>();
  for (let number = 1; fields.has(`Filter.${number}.Name`); number++) {
    found.set(fields.get(`Filter.${number}.Name`)!, numbered(fields, `Filter.${number}.Value`));
  }
  return found;
}

/** Leaves a list at a page's end with the position as the token. */
function paged<T>(all: readonly T[], fields: URLSearchParams, limit: number): { items: readonly T[]; token: string } {
  const from = Number(Buffer.from(fields.get("NextToken") ?? "", "base64url").toString() || 0);
  const size = Math.min(Number(fields.get("MaxResults") ?? 1000), limit);
  const items = all.slice(from, from + size);
  const more = from + size < all.length;
  return {
    items,
    token: more ? `<nextToken>${Buffer.from(String(from + size)).toString("base64url")}</nextToken>` : "",
  };
}

export function answerEc2(world: World, behaviour: Behaviour, fields: URLSearchParams): Answer {
  const action = fields.get("Action") ?? "";
  try {
    const body = ACTIONS[action]?.(world, behaviour, fields);
    if (body === undefined)
      return ec2Error(400, "InvalidAction", `The action ${action} is not valid for this web service.`);
    return xml(
      200,
      `<${action}Response xmlns="${NAMESPACE}"><requestId>${crypto.randomUUID()}</requestId>${body}</${action}Response>`,
    );
  } catch (error) {
    if (error instanceof Refusal) return ec2Error(400, error.code, error.message);
    throw error;
  }
}

const ACTIONS: Readonly<Record<string, (world: World, behaviour: Behaviour, fields: URLSearchParams) => string>> = {
  DescribeSnapshots: describeSnapshots,
  CreateTags: createTags,
  DeleteSnapshot: deleteSnapshot,
  EnableFastSnapshotRestores: enableFastRestores,
  DescribeFastSnapshotRestores: describeFastRestores,
  DescribeLaunchTemplates: describeLaunchTemplates,
  DescribeLaunchTemplateVersions: describeLaunchTemplateVersions,
  DescribeImages: describeImages,
};

function known(world: World, id: string): Snapshot {
  if (!/^snap-[0-9a-f]+$/.test(id))
    throw new Refusal("InvalidSnapshotID.Malformed", `Invalid id: "${id}" (expecting "snap-...")`);
  const snapshot = world.find(id);
  if (snapshot === undefined || snapshot.visibleAt > world.now()) {
    throw new Refusal("InvalidSnapshot.NotFound", `The snapshot '${id}' does not exist.`);
  }
  return snapshot;
}

function matches(snapshot: Snapshot, wanted: ReadonlyMap<string, readonly string[]>): boolean {
  for (const [name, values] of wanted) {
    const have =
      name === "status"
        ? [snapshot.state as string]
        : name === "tag-key"
          ? [...snapshot.tags.keys()]
          : name.startsWith("tag:")
            ? [snapshot.tags.get(name.slice(4))]
            : undefined;
    if (have === undefined) throw new Refusal("InvalidParameterValue", `The filter '${name}' is invalid`);
    const patterns = values.map(pattern);
    if (!have.some((value) => value !== undefined && patterns.some((each) => each.test(value)))) return false;
  }
  return true;
}

/** An asterisk is any text, a question mark any character, a backslash takes both for what they are. */
function pattern(filter: string): RegExp {
  const source = filter.replace(
    /\\(.)|([*?])|([$()+.[\]^{|}\\])/gsu,
    (_, kept?: string, wild?: string, sign?: string) => {
      if (wild !== undefined) return wild === "*" ? ".*" : ".";
      return `\\x${(kept ?? sign!).charCodeAt(0).toString(16).padStart(2, "0")}`;
    },
  );
  return new RegExp(`^${source}$`, "s");
}

function describeSnapshots(world: World, behaviour: Behaviour, fields: URLSearchParams): string {
  const ids = numbered(fields, "SnapshotId");
  for (const owner of numbered(fields, "Owner")) {
    if (owner !== "self" && owner !== OWNER) throw new Refusal("InvalidUserID.Malformed", owner);
  }
  const all =
    ids.length > 0 ? ids.map((id) => known(world, id)) : [...world.snapshots.keys()].map((id) => world.find(id)!);
  const wanted = filters(fields);
  const found = all.filter((snapshot) => snapshot.visibleAt <= world.now() && matches(snapshot, wanted));
  const { items, token } = paged(found, fields, behaviour.pageLimit);
  return `<snapshotSet>${items.map(snapshotItem).join("")}</snapshotSet>${token}`;
}

function snapshotItem(snapshot: Snapshot): string {
  const tags = [...snapshot.tags].map(
    ([key, value]) => `<item><key>${xmlText(key)}</key><value>${xmlText(value)}</value></item>`,
  );
  const progress = snapshot.state === "completed" ? "100%" : `${snapshot.finishing === undefined ? 0 : 99}%`;
  const time = new Date(snapshot.startedAt).toISOString();
  return `<item><snapshotId>${snapshot.id}</snapshotId><volumeId>vol-ffffffff</volumeId><status>${snapshot.state}</status>${
    snapshot.why === undefined ? "" : `<statusMessage>${xmlText(snapshot.why)}</statusMessage>`
  }<startTime>${time}</startTime><progress>${progress}</progress><ownerId>${OWNER}</ownerId><volumeSize>${snapshot.volumeSizeGiB}</volumeSize><description>${xmlText(
    snapshot.description,
  )}</description><encrypted>${snapshot.encrypted}</encrypted><tagSet>${tags.join("")}</tagSet></item>`;
}

function createTags(world: World, _behaviour: Behaviour, fields: URLSearchParams): string {
  const targets = numbered(fields, "ResourceId").map((id) => known(world, id));
  for (let number = 1; fields.has(`Tag.${number}.Key`); number++) {
    const key = fields.get(`Tag.${number}.Key`)!;
    if (key === "" || key.length > 127 || key.startsWith("aws:"))
      throw new Refusal("InvalidParameterValue", `Tag key ${key}`);
    for (const snapshot of targets) snapshot.tags.set(key, fields.get(`Tag.${number}.Value`) ?? "");
  }
  return "<return>true</return>";
}

function deleteSnapshot(world: World, _behaviour: Behaviour, fields: URLSearchParams): string {
  const snapshot = known(world, fields.get("SnapshotId") ?? "");
  for (const [image, snapshots] of world.images) {
    if (snapshots.includes(snapshot.id)) {
      throw new Refusal("InvalidSnapshot.InUse", `The snapshot ${snapshot.id} is currently in use by ${image}`);
    }
  }
  const child = [...world.snapshots.values()].find((each) => each.parent === snapshot.id);
  // EBS keeps the blocks that a child needs; here they are in the parent's file, so it goes on unseen
  if (child === undefined) world.snapshots.delete(snapshot.id);
  else snapshot.visibleAt = Number.POSITIVE_INFINITY;
  return "<return>true</return>";
}

function enableFastRestores(world: World, _behaviour: Behaviour, fields: URLSearchParams): string {
  const zones = numbered(fields, "AvailabilityZone");
  const good: string[] = [];
  const bad: string[] = [];
  for (const id of numbered(fields, "SourceSnapshotId")) {
    const snapshot = known(world, id);
    const refused = zones.filter((zone) => !zone.startsWith(world.region));
    for (const zone of zones) {
      if (refused.includes(zone)) continue;
      snapshot.fastRestore.set(zone, world.now());
      good.push(
        `<item><snapshotId>${id}</snapshotId><availabilityZone>${zone}</availabilityZone><state>enabling</state></item>`,
      );
    }
    if (refused.length > 0) {
      const errors = refused.map(
        (zone) =>
          `<item><availabilityZone>${xmlText(zone)}</availabilityZone><error><code>InvalidParameterValue</code><message>no such zone</message></error></item>`,
      );
      bad.push(
        `<item><snapshotId>${id}</snapshotId><fastSnapshotRestoreStateErrorSet>${errors.join("")}</fastSnapshotRestoreStateErrorSet></item>`,
      );
    }
  }
  return `<successful>${good.join("")}</successful><unsuccessful>${bad.join("")}</unsuccessful>`;
}

/** A minute of "enabling", then an hour for a TiB. */
function fastRestoreState(world: World, snapshot: Snapshot, since: number): string {
  const minutes = (world.now() - since) / 60_000;
  if (minutes < 1) return "enabling";
  return minutes < 1 + (60 * snapshot.volumeSizeGiB) / 1024 ? "optimizing" : "enabled";
}

function describeFastRestores(world: World, behaviour: Behaviour, fields: URLSearchParams): string {
  const wanted = filters(fields).get("snapshot-id");
  const all = [...world.snapshots.values()]
    .filter((snapshot) => wanted === undefined || wanted.includes(snapshot.id))
    .flatMap((snapshot) =>
      [...snapshot.fastRestore].map(
        ([zone, since]) =>
          `<item><snapshotId>${snapshot.id}</snapshotId><availabilityZone>${zone}</availabilityZone><state>${fastRestoreState(world, snapshot, since)}</state></item>`,
      ),
    );
  const { items, token } = paged(all, fields, behaviour.pageLimit);
  return `<fastSnapshotRestoreSet>${items.join("")}</fastSnapshotRestoreSet>${token}`;
}

function describeLaunchTemplates(world: World, behaviour: Behaviour, fields: URLSearchParams): string {
  const { items, token } = paged(world.launchTemplates, fields, Math.min(200, behaviour.pageLimit));
  const templates = items.map(
    ({ id, name, versions }) =>
      `<item><launchTemplateId>${id}</launchTemplateId><launchTemplateName>${xmlText(name)}</launchTemplateName><defaultVersionNumber>1</defaultVersionNumber><latestVersionNumber>${versions.length}</latestVersionNumber></item>`,
  );
  return `<launchTemplates>${templates.join("")}</launchTemplates>${token}`;
}

function describeLaunchTemplateVersions(world: World, behaviour: Behaviour, fields: URLSearchParams): string {
  const id = fields.get("LaunchTemplateId");
  const template = world.launchTemplates.find((each) => each.id === id);
  if (template === undefined)
    throw new Refusal("InvalidLaunchTemplateId.NotFound", `The specified launch template, ${id}, does not exist.`);
  const { items, token } = paged(template.versions, fields, Math.min(200, behaviour.pageLimit));
  const versions = items.map(({ number, snapshots }) => {
    const devices = snapshots.map(
      (snapshot, index) =>
        `<item><deviceName>/dev/xvd${String.fromCharCode(97 + index)}</deviceName><ebs><snapshotId>${snapshot}</snapshotId></ebs></item>`,
    );
    return `<item><launchTemplateId>${id}</launchTemplateId><versionNumber>${number}</versionNumber><launchTemplateData><blockDeviceMappingSet>${devices.join(
      "",
    )}</blockDeviceMappingSet></launchTemplateData></item>`;
  });
  return `<launchTemplateVersionSet>${versions.join("")}</launchTemplateVersionSet>${token}`;
}

function describeImages(world: World, behaviour: Behaviour, fields: URLSearchParams): string {
  const { items, token } = paged([...world.images], fields, behaviour.pageLimit);
  const images = items.map(([id, snapshots]) => {
    const devices = snapshots.map(
      (snapshot) => `<item><deviceName>/dev/xvdb</deviceName><ebs><snapshotId>${snapshot}</snapshotId></ebs></item>`,
    );
    return `<item><imageId>${id}</imageId><blockDeviceMapping>${devices.join("")}</blockDeviceMapping></item>`;
  });
  return `<imagesSet>${images.join("")}</imagesSet>${token}`;
}
