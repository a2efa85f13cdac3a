/**
 * Which older snapshots of the same name go when a new one is there: all but the newest few, and never one that is younger than a week, that a launch template version, an AMI or a given NodeClass
 * names, or that is not ours. What could not be asked about is kept: without the right to read launch templates or images nothing is deleted.
 */

import { readFileSync } from "node:fs";
import { HeadstartError } from "../../base/errors.ts";
import type { AwsClient } from "../aws/client.ts";
import { list, queryPages } from "../aws/query.ts";
import { descendants, items, textOf } from "../aws/xml.ts";
import { TAG } from "./plan.ts";
import { deleteSnapshot, findSnapshots, type SnapshotInfo } from "./snapshots.ts";

const WEEK_MS = 7 * 24 * 3_600_000;
const NODE_CLASS_BYTES = 16 * 1024 * 1024;

export interface RetentionOptions {
  readonly client: AwsClient;
  /** The Name tag. */
  readonly name: string;
  /** Of the completed ones, `current` among them. */
  readonly keep: number;
  /** What was pushed just now; undefined before that (a dry run): one is to come. */
  readonly current: string | undefined;
  /** What stays because a file names it (namedSnapshots). */
  readonly named: ReadonlyMap<string, string>;
  /** Milliseconds since 1970. */
  readonly now: number;
  readonly dryRun: boolean;
  readonly signal?: AbortSignal | undefined;
}

export interface Retention {
  readonly deleted: readonly string[];
  readonly kept: readonly { readonly snapshot: string; readonly why: string }[];
}

/** Throws what AWS calls throw: nothing is deleted then. */
export async function retain(options: RetentionOptions): Promise<Retention> {
  const { client, name, named, signal, dryRun } = options;
  const ours = (await findSnapshots(client, { [TAG.name]: name }, signal)).filter(({ tags }) => tags.has(TAG.volume));
  const first = decide(ours, named, options);
  if (first.deleted.length === 0) return first;
  const used = new Map([
    ...named,
    ...(await templateSnapshots(client, signal)),
    ...(await imageSnapshots(client, signal)),
  ]);
  const decided = decide(ours, used, options);
  const deleted: string[] = [];
  const kept = [...decided.kept];
  for (const snapshot of decided.deleted) {
    const end = dryRun ? "deleted" : await deleteSnapshot(client, snapshot, signal);
    if (end === "in-use") kept.push({ snapshot, why: "in use by an AMI" });
    else deleted.push(snapshot);
  }
  return { deleted, kept };
}

/** Pure. `used` says by whom a snapshot is named. */
export function decide(
  snapshots: readonly SnapshotInfo[],
  used: ReadonlyMap<string, string>,
  { keep, current, now }: Pick<RetentionOptions, "keep" | "current" | "now">,
): Retention {
  const newestFirst = snapshots.toSorted((a, b) => b.startedAt - a.startedAt || (a.id < b.id ? 1 : -1));
  const deleted: string[] = [];
  const kept: { snapshot: string; why: string }[] = [];
  // the new one counts, whatever the clocks say
  let completed = 1;
  for (const { id, status, startedAt } of newestFirst) {
    if (id === current) {
      kept.push({ snapshot: id, why: "the new one" });
      continue;
    }
    const why =
      status === "pending"
        ? "pending"
        : status === "completed" && ++completed <= keep
          ? `one of the newest ${keep}`
          : now - startedAt < WEEK_MS
            ? "younger than 7 days"
            : used.get(id);
    if (why === undefined) deleted.push(id);
    else kept.push({ snapshot: id, why });
  }
  return { deleted, kept };
}

/** Every snapshot id that stands anywhere in a file: a NodeClass, or anything else in text. Throws HS_NOT_FOUND, HS_LIMIT. */
export function namedSnapshots(files: readonly string[]): Map<string, string> {
  const found = new Map<string, string>();
  for (const file of files) {
    let text: string;
    try {
      text = readFileSync(file, "utf8");
    } catch (cause) {
      throw new HeadstartError("HS_NOT_FOUND", { what: `--node-class ${file}`, cause });
    }
    if (text.length > NODE_CLASS_BYTES)
      throw new HeadstartError("HS_LIMIT", { what: `--node-class ${file} is too large` });
    for (const [id] of text.matchAll(/\bsnap-[0-9a-f]+\b/g)) found.set(id, `named in ${file}`);
  }
  return found;
}

/** Of every version of every launch template. */
async function templateSnapshots(client: AwsClient, signal: AbortSignal | undefined): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for await (const page of queryPages(client, "DescribeLaunchTemplates", {}, { signal })) {
    for (const template of items(page, "launchTemplates")) {
      const id = textOf(template, "launchTemplateId");
      const name = textOf(template, "launchTemplateName") ?? id;
      const versions = queryPages(client, "DescribeLaunchTemplateVersions", { LaunchTemplateId: id }, { signal });
      for await (const each of versions) {
        for (const version of items(each, "launchTemplateVersionSet")) {
          const why = `launch template ${name} version ${textOf(version, "versionNumber")}`;
          for (const { text } of descendants(version, "snapshotId")) found.set(text, why);
        }
      }
    }
  }
  return found;
}

async function imageSnapshots(client: AwsClient, signal: AbortSignal | undefined): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for await (const page of queryPages(client, "DescribeImages", list("Owner", ["self"]), { signal })) {
    for (const image of items(page, "imagesSet")) {
      for (const { text } of descendants(image, "snapshotId")) found.set(text, `AMI ${textOf(image, "imageId")}`);
    }
  }
  return found;
}
