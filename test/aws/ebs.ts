/** The EBS direct APIs of the tests, after specs/warm-volume.md 9: every rule, limit and error that a client can meet. */

import { createHash, createHmac, randomBytes } from "node:crypto";
import type { Behaviour, Rate } from "./behaviour.ts";
import { BLOCK, BLOCKS_PER_GIB, OWNER, type Snapshot, type World } from "./world.ts";

export interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string | Uint8Array;
}

export interface EbsRequest {
  readonly method: string;
  readonly path: string;
  readonly query: URLSearchParams;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: Buffer;
  readonly sha256: Buffer;
}

/** Of the whole server: what pages and rates have been. */
export interface EbsMemory {
  readonly putRate: Rate;
  readonly getRate: Rate;
  readonly pages: Map<string, { readonly snapshot: string; readonly from: number; readonly expires: number }>;
  listed: number;
}

class Refusal extends Error {
  readonly answer: Answer;
  constructor(status: number, type: string, message: string, reason?: string) {
    super(message);
    this.answer = refusal(status, type, message, reason);
  }
}

export function refusal(status: number, type: string, message: string, reason?: string): Answer {
  return {
    status,
    headers: { "content-type": "application/json", "x-amzn-errortype": type },
    body: JSON.stringify({ Message: message, ...(reason !== undefined && { Reason: reason }) }),
  };
}

const invalid = (reason: string, message: string) => new Refusal(400, "ValidationException", message, reason);
const json = (status: number, value: object, headers: Record<string, string> = {}): Answer => ({
  status,
  headers: { "content-type": "application/json", ...headers },
  body: JSON.stringify(value),
});

const ROUTES: readonly (readonly [string, RegExp, string])[] = [
  ["POST", /^\/snapshots$/, "StartSnapshot"],
  ["POST", /^\/snapshots\/completion\/([^/]+)$/, "CompleteSnapshot"],
  ["PUT", /^\/snapshots\/([^/]+)\/blocks\/([^/]+)$/, "PutSnapshotBlock"],
  ["GET", /^\/snapshots\/([^/]+)\/blocks\/([^/]+)$/, "GetSnapshotBlock"],
  ["GET", /^\/snapshots\/([^/]+)\/blocks$/, "ListSnapshotBlocks"],
  ["GET", /^\/snapshots\/([^/]+)\/changedblocks$/, "ListChangedBlocks"],
];

export function ebsOperation(
  method: string,
  path: string,
): { readonly name: string; readonly parts: string[] } | undefined {
  for (const [verb, pattern, name] of ROUTES) {
    const match = verb === method ? pattern.exec(path) : null;
    if (match !== null) return { name, parts: match.slice(1) };
  }
  return undefined;
}

export function answerEbs(world: World, behaviour: Behaviour, memory: EbsMemory, request: EbsRequest): Answer {
  const route = ebsOperation(request.method, request.path);
  if (route === undefined) return refusal(404, "UnknownOperationException", "no such operation");
  try {
    switch (route.name) {
      case "StartSnapshot":
        return start(world, behaviour, request);
      case "CompleteSnapshot":
        return complete(world, behaviour, route.parts[0]!, request);
      case "PutSnapshotBlock":
        return put(world, behaviour, memory, route.parts, request);
      case "GetSnapshotBlock":
        return get(world, behaviour, memory, route.parts, request);
      case "ListSnapshotBlocks":
        return list(world, behaviour, memory, route.parts[0]!, request);
      default:
        return listChanged(world, behaviour, memory, route.parts[0]!, request);
    }
  } catch (error) {
    if (error instanceof Refusal) return error.answer;
    throw error;
  }
}

interface StartParameters {
  readonly VolumeSize?: unknown;
  readonly ParentSnapshotId?: unknown;
  readonly Tags?: unknown;
  readonly Description?: unknown;
  readonly ClientToken?: unknown;
  readonly Encrypted?: unknown;
  readonly KmsKeyArn?: unknown;
  readonly Timeout?: unknown;
}

function start(world: World, behaviour: Behaviour, request: EbsRequest): Answer {
  let parameters: StartParameters;
  try {
    parameters = JSON.parse(request.body.toString("utf8")) as StartParameters;
  } catch {
    throw new Refusal(400, "SerializationException", "not JSON");
  }
  const { ClientToken: token, ...rest } = parameters;
  if (token !== undefined && (typeof token !== "string" || !/^\S{1,255}$/.test(token))) {
    throw invalid("INVALID_PARAMETER_VALUE", "ClientToken");
  }
  if (typeof token === "string") {
    const known = world.tokens.get(token);
    if (known !== undefined) {
      if (known.parameters !== JSON.stringify(rest)) {
        throw new Refusal(409, "ConflictException", "The client token was used with other parameters.");
      }
      const snapshot = world.find(known.id);
      // of one that was deleted the token is free again
      if (snapshot !== undefined) return json(201, started(snapshot));
    }
  }
  const snapshot = checkedStart(world, behaviour, parameters);
  world.snapshots.set(snapshot.id, snapshot);
  if (typeof token === "string") world.tokens.set(token, { parameters: JSON.stringify(rest), id: snapshot.id });
  return json(201, started(snapshot));
}

function checkedStart(world: World, behaviour: Behaviour, parameters: StartParameters): Snapshot {
  const {
    VolumeSize: size,
    ParentSnapshotId: parentId,
    Description: description = "",
    Timeout: timeout = 60,
  } = parameters;
  const { Encrypted: encrypted = false, KmsKeyArn: kmsKeyArn } = parameters;
  if (!Number.isInteger(size) || (size as number) < 1 || (size as number) > 65_536) {
    throw invalid("INVALID_VOLUME_SIZE", "VolumeSize must be 1 to 65536 GiB");
  }
  if (!Number.isInteger(timeout) || (timeout as number) < 10 || (timeout as number) > 4320) {
    throw invalid("INVALID_PARAMETER_VALUE", "Timeout must be 10 to 4320 minutes");
  }
  if (typeof description !== "string" || description.length > 255)
    throw invalid("INVALID_PARAMETER_VALUE", "Description");
  if (typeof encrypted !== "boolean") throw invalid("INVALID_PARAMETER_VALUE", "Encrypted");
  if (kmsKeyArn !== undefined) {
    if (!encrypted) throw invalid("INVALID_PARAMETER_VALUE", "KmsKeyArn needs Encrypted");
    if (!/^arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key\/[0-9a-f-]+$/.test(String(kmsKeyArn))) {
      throw invalid("INVALID_CUSTOMER_KEY", "The KMS key is not a key's ARN");
    }
  }
  let parent: Snapshot | undefined;
  if (parentId !== undefined) {
    if (encrypted) throw invalid("INVALID_PARAMETER_VALUE", "Encrypted and ParentSnapshotId exclude each other");
    parent = visible(world, String(parentId));
    if (parent.state !== "completed") throw invalid("INVALID_SNAPSHOT_ID", "The parent is not completed");
    if (parent.volumeSizeGiB > (size as number)) throw invalid("INVALID_VOLUME_SIZE", "The parent is larger");
    if (behaviour.encryptionByDefault && !parent.encrypted) {
      throw invalid("INVALID_PARAMETER_VALUE", "Encryption by default: an unencrypted parent is refused");
    }
  }
  const now = world.now();
  return {
    id: world.newId("snap").replace(/[^a-z0-9-]/g, ""),
    volumeSizeGiB: size as number,
    parent: parent?.id,
    description,
    encrypted: parent?.encrypted ?? (encrypted || behaviour.encryptionByDefault),
    kmsKeyArn: parent?.kmsKeyArn ?? (kmsKeyArn as string | undefined),
    timeoutMinutes: timeout as number,
    startedAt: now,
    tags: checkedTags(parameters.Tags),
    state: "pending",
    why: undefined,
    visibleAt: now + behaviour.visibilityDelayMs,
    activeAt: now,
    finishing: undefined,
    digests: new Map(),
    puts: new Map(),
    fastRestore: new Map(),
  };
}

function checkedTags(tags: unknown): Map<string, string> {
  const found = new Map<string, string>();
  if (tags === undefined) return found;
  if (!Array.isArray(tags) || tags.length > 50) throw invalid("INVALID_TAG", "at most 50 tags");
  for (const tag of tags as { Key?: unknown; Value?: unknown }[]) {
    const { Key: key, Value: value = "" } = tag;
    if (typeof key !== "string" || key.length < 1 || key.length > 127 || key.startsWith("aws:"))
      throw invalid("INVALID_TAG", "Key");
    if (typeof value !== "string" || value.length > 255) throw invalid("INVALID_TAG", "Value");
    if (found.has(key)) throw invalid("INVALID_TAG", "twice the same Key");
    found.set(key, value);
  }
  return found;
}

function started(snapshot: Snapshot): object {
  return {
    SnapshotId: snapshot.id,
    OwnerId: OWNER,
    Status: snapshot.state,
    StartTime: snapshot.startedAt / 1000,
    VolumeSize: snapshot.volumeSizeGiB,
    BlockSize: BLOCK,
    Tags: [...snapshot.tags].map(([Key, Value]) => ({ Key, Value })),
    Description: snapshot.description,
    ...(snapshot.parent !== undefined && { ParentSnapshotId: snapshot.parent }),
    ...(snapshot.kmsKeyArn !== undefined && { KmsKeyArn: snapshot.kmsKeyArn }),
    ...(snapshot.encrypted && { SseType: "sse-kms" }),
  };
}

function visible(world: World, id: string): Snapshot {
  if (!/^snap-[0-9a-f]+$/.test(id)) throw invalid("INVALID_SNAPSHOT_ID", `The snapshot ID '${id}' is not valid`);
  const snapshot = world.find(id);
  if (snapshot === undefined || snapshot.visibleAt > world.now()) {
    throw new Refusal(404, "ResourceNotFoundException", `The snapshot '${id}' does not exist.`, "SNAPSHOT_NOT_FOUND");
  }
  return snapshot;
}

function one(request: EbsRequest, name: string): string | undefined {
  const value = request.headers[name];
  return Array.isArray(value) ? value[0] : value;
}

function blockIndex(text: string, snapshot: Snapshot): number {
  const index = Number(text);
  if (!/^\d{1,9}$/.test(text) || index >= snapshot.volumeSizeGiB * BLOCKS_PER_GIB) {
    throw invalid("INVALID_PARAMETER_VALUE", `BlockIndex ${text} is not within the volume`);
  }
  return index;
}

function put(world: World, behaviour: Behaviour, memory: EbsMemory, parts: string[], request: EbsRequest): Answer {
  const snapshot = visible(world, parts[0]!);
  if (!memory.putRate.take(behaviour.putsPerSecond)) return throttled();
  if (snapshot.state !== "pending" || snapshot.finishing !== undefined) {
    throw invalid("INVALID_SNAPSHOT_ID", `The snapshot '${snapshot.id}' is not pending`);
  }
  const index = blockIndex(parts[1]!, snapshot);
  if (one(request, "x-amz-data-length") !== String(BLOCK) || request.body.byteLength !== BLOCK) {
    throw invalid("INVALID_PARAMETER_VALUE", `DataLength must be ${BLOCK}`);
  }
  if (one(request, "x-amz-checksum-algorithm") !== "SHA256")
    throw invalid("INVALID_PARAMETER_VALUE", "ChecksumAlgorithm");
  const progress = one(request, "x-amz-progress");
  if (progress !== undefined && !/^(?:\d{1,2}|100)$/.test(progress))
    throw invalid("INVALID_PARAMETER_VALUE", "Progress");
  const checksum = request.sha256.toString("base64");
  if (one(request, "x-amz-checksum") !== checksum)
    throw invalid("INVALID_BLOCK", "The checksum does not match the data");
  const known = snapshot.digests.get(index);
  if (known !== undefined && !known.equals(request.sha256)) {
    world.conflicts.push({ snapshot: snapshot.id, index });
    throw invalid("CONFLICTING_BLOCK_UPDATE", `Block ${index} was put with other data`);
  }
  world.store(snapshot, index, request.body, request.sha256);
  snapshot.activeAt = world.now();
  return json(201, {}, { "x-amz-checksum": checksum, "x-amz-checksum-algorithm": "SHA256" });
}

function throttled(): Answer {
  return refusal(400, "RequestThrottledException", "Rate exceeded", "ACCOUNT_THROTTLED");
}

/** The base64 of the SHA-256 over all digests, in the blocks' order: their raw bytes, as coldsnap has it. */
export function linear(digests: ReadonlyMap<number, Buffer>): string {
  const hash = createHash("sha256");
  for (const index of [...digests.keys()].sort((a, b) => a - b)) hash.update(digests.get(index)!);
  return hash.digest("base64");
}

function complete(world: World, behaviour: Behaviour, id: string, request: EbsRequest): Answer {
  const snapshot = visible(world, id);
  if (snapshot.state !== "pending" || snapshot.finishing !== undefined) {
    throw invalid("INVALID_SNAPSHOT_ID", `The snapshot '${id}' is not pending`);
  }
  const count = one(request, "x-amz-changedblockscount");
  if (count === undefined || !/^\d{1,9}$/.test(count)) throw invalid("INVALID_PARAMETER_VALUE", "ChangedBlocksCount");
  const checksum = one(request, "x-amz-checksum");
  if (checksum !== undefined) {
    if (one(request, "x-amz-checksum-algorithm") !== "SHA256")
      throw invalid("INVALID_PARAMETER_VALUE", "ChecksumAlgorithm");
    if (one(request, "x-amz-checksum-aggregation-method") !== "LINEAR") {
      throw invalid("INVALID_PARAMETER_VALUE", "ChecksumAggregationMethod");
    }
  }
  const at = world.now() + behaviour.completionMs;
  const wrong =
    Number(count) !== snapshot.digests.size
      ? `ChangedBlocksCount is ${count}, ${snapshot.digests.size} were put`
      : checksum !== undefined && checksum !== linear(snapshot.digests)
        ? "the aggregate checksum differs"
        : undefined;
  snapshot.finishing = wrong === undefined ? { at, to: "completed" } : { at, to: "error", why: wrong };
  return json(202, { Status: "pending" });
}

function readable(world: World, id: string): Snapshot {
  const snapshot = visible(world, id);
  if (snapshot.state !== "completed") throw invalid("INVALID_SNAPSHOT_ID", `The snapshot '${id}' is not completed`);
  return snapshot;
}

const TOKEN_KEY = randomBytes(32);

/** Snapshot, index and time of expiry, sealed. */
function blockToken(snapshot: string, index: number, expires: number): string {
  const text = `${index}/${expires}`;
  const seal = createHmac("sha256", TOKEN_KEY).update(`${snapshot}/${text}`).digest("base64");
  return Buffer.from(`${text}/${seal}`).toString("base64");
}

function get(world: World, behaviour: Behaviour, memory: EbsMemory, parts: string[], request: EbsRequest): Answer {
  const snapshot = readable(world, parts[0]!);
  if (!memory.getRate.take(behaviour.getsPerSecond)) return throttled();
  const index = blockIndex(parts[1]!, snapshot);
  const token = request.query.get("blockToken") ?? "";
  const [named, expires] = Buffer.from(token, "base64").toString("utf8").split("/");
  if (
    Number(named) !== index ||
    blockToken(snapshot.id, index, Number(expires)) !== token ||
    Number(expires) < world.now()
  ) {
    throw invalid("INVALID_BLOCK_TOKEN", "The block token is not valid or has expired");
  }
  const body = world.load(snapshot.id, index);
  return {
    status: 200,
    headers: {
      "content-type": "application/octet-stream",
      "x-amz-data-length": String(BLOCK),
      "x-amz-checksum": createHash("sha256").update(body).digest("base64"),
      "x-amz-checksum-algorithm": "SHA256",
    },
    body,
  };
}

interface Page {
  readonly indexes: readonly number[];
  readonly next: string | undefined;
}

/** Cuts one page out of `all`: short ones, empty ones, and only a missing NextToken ends the list. */
function page(
  world: World,
  behaviour: Behaviour,
  memory: EbsMemory,
  id: string,
  all: readonly number[],
  request: EbsRequest,
): Page {
  const wanted = Number(request.query.get("maxResults") ?? 10_000);
  if (!Number.isInteger(wanted) || wanted < 1 || wanted > 10_000)
    throw invalid("INVALID_PARAMETER_VALUE", "maxResults");
  const size = Math.min(Math.max(100, wanted), behaviour.pageLimit);
  let from = Number(request.query.get("startingBlockIndex") ?? 0);
  if (!Number.isInteger(from) || from < 0) throw invalid("INVALID_PARAMETER_VALUE", "startingBlockIndex");
  const token = request.query.get("pageToken");
  if (token !== null) {
    const known = memory.pages.get(token);
    if (known === undefined || known.snapshot !== id || known.expires < world.now()) {
      throw invalid("INVALID_PAGE_TOKEN", "The page token is not valid or has expired");
    }
    from = known.from;
  }
  const rest = all.filter((index) => index >= from);
  const empty = behaviour.emptyPageEvery > 0 && ++memory.listed % behaviour.emptyPageEvery === 0;
  const indexes = empty ? [] : rest.slice(0, size);
  if (!empty && rest.length <= indexes.length) return { indexes, next: undefined };
  const next = randomBytes(24).toString("base64");
  const last = indexes.at(-1);
  memory.pages.set(next, {
    snapshot: id,
    from: last === undefined ? from : last + 1,
    expires: world.now() + behaviour.pageTokenLifeMs,
  });
  return { indexes, next };
}

function listAnswer(world: World, behaviour: Behaviour, snapshot: Snapshot, found: Page, entries: object): Answer {
  return json(200, {
    ...entries,
    ExpiryTime: (world.now() + behaviour.blockTokenLifeMs) / 1000,
    VolumeSize: snapshot.volumeSizeGiB,
    BlockSize: BLOCK,
    ...(found.next !== undefined && { NextToken: found.next }),
  });
}

function list(world: World, behaviour: Behaviour, memory: EbsMemory, id: string, request: EbsRequest): Answer {
  const snapshot = readable(world, id);
  const found = page(world, behaviour, memory, id, world.indexes(id), request);
  const stale = behaviour.staleLists > 0;
  if (stale) behaviour.staleLists--;
  const expires = world.now() + (stale ? -1 : behaviour.blockTokenLifeMs);
  const Blocks = found.indexes.map((index) => ({ BlockIndex: index, BlockToken: blockToken(id, index, expires) }));
  return listAnswer(world, behaviour, snapshot, found, { Blocks });
}

function listChanged(world: World, behaviour: Behaviour, memory: EbsMemory, id: string, request: EbsRequest): Answer {
  const second = readable(world, id);
  const firstId = request.query.get("firstSnapshotId");
  const first = firstId === null ? undefined : readable(world, firstId);
  if (first !== undefined) {
    const roots = [first, second].map((snapshot) => world.lineage(snapshot.id).at(-1)!.id);
    if (roots[0] !== roots[1]) throw invalid("UNRELATED_SNAPSHOTS", "The snapshots are not of one lineage");
  }
  const firstIndexes = new Set(first === undefined ? [] : world.indexes(first.id));
  const secondIndexes = new Set(world.indexes(id));
  const changed = [...firstIndexes.union(secondIndexes)]
    .filter((index) => first === undefined || world.holder(first.id, index)?.id !== world.holder(id, index)?.id)
    .sort((a, b) => a - b);
  const found = page(world, behaviour, memory, id, changed, request);
  const expires = world.now() + behaviour.blockTokenLifeMs;
  const ChangedBlocks = found.indexes.map((index) => ({
    BlockIndex: index,
    ...(first !== undefined && firstIndexes.has(index) && { FirstBlockToken: blockToken(first.id, index, expires) }),
    ...(secondIndexes.has(index) && { SecondBlockToken: blockToken(id, index, expires) }),
  }));
  return listAnswer(world, behaviour, second, found, { ChangedBlocks });
}
