/** What a push will do, as data: which blocks of which bytes go into a snapshot of which size, tags and parent. The same plan has the same digest, and by it the same snapshot. Pure. */

import { type Digest, sha256 } from "../../base/digest.ts";
import { HeadstartError } from "../../base/errors.ts";
import { type BlockMap, changedBlocks, contentDigest, linearChecksum } from "./blocks.ts";

export const TAG = {
  /** contentDigest of what the snapshot holds. */
  volume: "headstart.dev/volume",
  /** Bytes of the file, which need not be whole GiB. */
  size: "headstart.dev/size",
  images: "headstart.dev/images",
  /** SHA-256 of PATH.json, the provenance. */
  manifest: "headstart.dev/manifest",
  name: "Name",
} as const;

const TAGS_MAX = 50;
const TAG_KEY_MAX = 127;
const TAG_VALUE_MAX = 255;

export interface PushInput {
  /** Of the file. */
  readonly blocks: BlockMap;
  /** Of the snapshot: the file's, and what it keeps of its parent where nothing lies. */
  readonly held: BlockMap;
  readonly sizeBytes: number;
  readonly volumeSizeGiB: number;
  readonly parent: { readonly id: string; readonly blocks: BlockMap } | undefined;
  readonly tags: Readonly<Record<string, string>>;
  readonly description: string;
  readonly encrypted: boolean;
  readonly kmsKey: string | undefined;
}

export interface PushPlan extends PushInput {
  /** Of the snapshot. */
  readonly content: Digest;
  /** Block index -> SHA-256 of what is put there. */
  readonly changed: BlockMap;
  readonly checksum: string;
  readonly digest: Digest;
}

export function planPush(input: PushInput): PushPlan {
  const changed = changedBlocks(input.held, input.parent?.blocks ?? new Map());
  const content = contentDigest(input.held);
  const checksum = linearChecksum(changed);
  const { volumeSizeGiB, tags, description, encrypted, kmsKey } = input;
  const canonical = JSON.stringify([
    "headstart.push/1",
    content,
    // the same content is put as other blocks when the parent held others
    [input.parent?.id ?? null, changed.size, checksum],
    volumeSizeGiB,
    Object.entries(tags).sort(([a], [b]) => (a < b ? -1 : 1)),
    description,
    encrypted,
    kmsKey ?? null,
  ]);
  return { ...input, content, changed, checksum, digest: sha256(Buffer.from(canonical)) };
}

/** A further attempt, after a snapshot that was lost, is another snapshot. */
export function clientToken(plan: PushPlan, attempt: number): string {
  return `headstart-${plan.digest.slice("sha256:".length)}-${attempt}`;
}

/** The user's tags and ours. Throws HS_USAGE. */
export function pushTags(
  own: Readonly<Record<string, string>>,
  facts: {
    readonly name: string;
    readonly content: Digest;
    readonly sizeBytes: number;
    readonly images: readonly string[];
    readonly manifest: Digest | undefined;
  },
): Record<string, string> {
  for (const [key, value] of Object.entries(own)) {
    const wrong =
      key === "" || key.length > TAG_KEY_MAX
        ? `a key has 1 to ${TAG_KEY_MAX} characters`
        : value.length > TAG_VALUE_MAX
          ? `a value has at most ${TAG_VALUE_MAX} characters`
          : /^(?:aws:|headstart\.dev\/)/i.test(key)
            ? "this prefix is not yours"
            : undefined;
    if (wrong !== undefined) throw new HeadstartError("HS_USAGE", { what: `--tag ${key.slice(0, 150)}: ${wrong}` });
  }
  const tags = {
    [TAG.name]: facts.name.slice(0, TAG_VALUE_MAX),
    ...own,
    [TAG.volume]: facts.content,
    [TAG.size]: String(facts.sizeBytes),
    ...(facts.images.length > 0 && { [TAG.images]: joinWithin(facts.images, TAG_VALUE_MAX) }),
    ...(facts.manifest !== undefined && { [TAG.manifest]: facts.manifest }),
  };
  if (Object.keys(tags).length > TAGS_MAX)
    throw new HeadstartError("HS_USAGE", { what: `--tag: a snapshot has at most ${TAGS_MAX} tags, ours among them` });
  return tags;
}

/** As many whole words as fit, and how many more there are. */
function joinWithin(words: readonly string[], max: number): string {
  for (let count = words.length; count > 0; count--) {
    const text = [...words.slice(0, count), ...(count < words.length ? [`+${words.length - count}`] : [])].join(" ");
    if (text.length <= max) return text;
  }
  return `+${words.length}`;
}
