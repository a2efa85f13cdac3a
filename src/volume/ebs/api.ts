/**
 * The EBS direct APIs' verbs (specs/warm-volume.md 9). Every answer is checked: ids, sizes, order, checksums. A snapshot that was begun just now may not be seen for two minutes; whoever knows it
 * to be fresh says so.
 */

import { createHash } from "node:crypto";
import { HeadstartError } from "../../base/errors.ts";
import { MiB } from "../../base/limits.ts";
import { asObject, field, type JsonObject } from "../../oci/json.ts";
import type { AwsCall, AwsClient, Pacer } from "../aws/client.ts";
import type { HttpAnswer } from "../aws/http.ts";
import { BLOCK_BYTES, BLOCKS_PER_GIB, VOLUME_GIB_MAX } from "./blocks.ts";

export type SnapshotStatus = "pending" | "completed" | "error";

export interface StartRequest {
  readonly volumeSizeGiB: number;
  readonly parent: string | undefined;
  readonly tags: Readonly<Record<string, string>>;
  readonly description: string;
  readonly clientToken: string;
  readonly encrypted: boolean;
  readonly kmsKey: string | undefined;
  /** Minutes without a put until EBS gives the snapshot up. */
  readonly timeoutMinutes: number;
}

export interface Started {
  readonly id: string;
  readonly status: SnapshotStatus;
}

export interface ListedBlock {
  readonly index: number;
  readonly token: string;
}

export interface BlockPage {
  readonly volumeSizeGiB: number;
  readonly blocks: readonly ListedBlock[];
}

export const SNAPSHOT_ID = /^snap-[0-9a-f]{1,59}$/;
const TOKEN = /^[A-Za-z0-9+/=]{1,256}$/;
const ANSWER_BYTES = MiB;
/** 10,000 entries of an index and a token. */
const LIST_BYTES = 8 * MiB;
/** A service that gives nothing but empty pages must not be asked forever. */
const EMPTY_PAGES_MAX = 1000;
const RELISTS_MAX = 100;

export class EbsApi {
  readonly client: AwsClient;

  constructor(client: AwsClient) {
    this.client = client;
  }

  async start(request: StartRequest, signal?: AbortSignal): Promise<Started> {
    const body = {
      VolumeSize: request.volumeSizeGiB,
      ...(request.parent !== undefined && { ParentSnapshotId: request.parent }),
      Tags: Object.entries(request.tags).map(([Key, Value]) => ({ Key, Value })),
      Description: request.description,
      ClientToken: request.clientToken,
      ...(request.encrypted && { Encrypted: true }),
      ...(request.kmsKey !== undefined && { KmsKeyArn: request.kmsKey }),
      Timeout: request.timeoutMinutes,
    };
    const operation = "StartSnapshot";
    const headers = { "content-type": "application/json" };
    const answer = await this.#call({
      operation,
      method: "POST",
      path: "/snapshots",
      headers,
      signal,
      body: Buffer.from(JSON.stringify(body)),
    });
    const document = json(answer, operation);
    const id = field(document, "SnapshotId");
    const size = field(document, "BlockSize");
    if (typeof id !== "string" || !SNAPSHOT_ID.test(id)) throw protocol(`${operation}: no snapshot id`);
    if (size !== undefined && size !== BLOCK_BYTES) throw protocol(`${operation}: blocks of ${String(size)} bytes`);
    return { id, status: parseStatus(field(document, "Status")) };
  }

  /** `sha256` is of `bytes`, which are a whole block. `fresh` waits for a snapshot that is not seen yet, while it returns true. */
  async put(
    snapshot: string,
    index: number,
    bytes: Uint8Array,
    sha256: string,
    options: { readonly pacer?: Pacer; readonly fresh?: () => boolean; readonly signal?: AbortSignal | undefined } = {},
  ): Promise<void> {
    const checksum = Buffer.from(sha256, "hex").toString("base64");
    const { pacer, fresh, signal } = options;
    const answer = await this.#call({
      operation: "PutSnapshotBlock",
      method: "PUT",
      path: `/snapshots/${snapshot}/blocks/${index}`,
      headers: {
        "content-type": "application/octet-stream",
        "x-amz-data-length": String(bytes.byteLength),
        "x-amz-checksum": checksum,
        "x-amz-checksum-algorithm": "SHA256",
      },
      body: bytes,
      bodySha256: sha256,
      signal,
      ...(pacer !== undefined && { pacer }),
      ...(fresh !== undefined && {
        // waits grow to 10 s, 5 s on average, and two minutes are wanted
        ...(fresh() && { attempts: 30 }),
        again: ({ reason }: { readonly reason: string | undefined }) => reason === "SNAPSHOT_NOT_FOUND" && fresh(),
      }),
    });
    const told = answer.header("x-amz-checksum");
    if (answer.status !== 201 || (told !== undefined && told !== checksum)) {
      throw protocol(`PutSnapshotBlock ${index} of ${snapshot}: HTTP ${answer.status}, checksum ${told}`);
    }
  }

  async complete(
    snapshot: string,
    changed: { readonly count: number; readonly checksum: string },
    signal?: AbortSignal,
  ): Promise<void> {
    await this.#call({
      operation: "CompleteSnapshot",
      method: "POST",
      path: `/snapshots/completion/${snapshot}`,
      headers: {
        "x-amz-changedblockscount": String(changed.count),
        "x-amz-checksum": changed.checksum,
        "x-amz-checksum-algorithm": "SHA256",
        "x-amz-checksum-aggregation-method": "LINEAR",
      },
      signal,
    });
  }

  /** Page by page, ascending. A page token that has died is replaced by asking from the next index on. */
  async *list(
    snapshot: string,
    options: { readonly from?: number; readonly signal?: AbortSignal | undefined } = {},
  ): AsyncGenerator<BlockPage> {
    let next = options.from ?? 0;
    let token: string | undefined;
    let empty = 0;
    let relists = 0;
    for (;;) {
      let page: BlockPage & { readonly token: string | undefined };
      try {
        page = await this.#page(snapshot, next, token, options.signal);
      } catch (error) {
        if (!hasReason(error, "INVALID_PAGE_TOKEN") || token === undefined || ++relists > RELISTS_MAX) throw error;
        token = undefined;
        continue;
      }
      empty = page.blocks.length === 0 ? empty + 1 : 0;
      if (empty > EMPTY_PAGES_MAX) throw protocol(`ListSnapshotBlocks of ${snapshot}: only empty pages`);
      next = (page.blocks.at(-1)?.index ?? next - 1) + 1;
      yield page;
      if (page.token === undefined) return;
      token = page.token;
    }
  }

  async #page(snapshot: string, from: number, token: string | undefined, signal: AbortSignal | undefined) {
    const operation = "ListSnapshotBlocks";
    const query = {
      maxResults: "10000",
      ...(token === undefined ? { startingBlockIndex: String(from) } : { pageToken: token }),
    };
    const path = `/snapshots/${snapshot}/blocks`;
    const document = json(
      await this.#call({ operation, method: "GET", path, query, limit: LIST_BYTES, signal }),
      operation,
    );
    const volumeSizeGiB = field(document, "VolumeSize");
    const entries = field(document, "Blocks") ?? [];
    const nextToken = field(document, "NextToken");
    if (field(document, "BlockSize") !== BLOCK_BYTES)
      throw protocol(`${operation}: blocks are not ${BLOCK_BYTES} bytes`);
    if (!Number.isInteger(volumeSizeGiB) || Number(volumeSizeGiB) < 1 || Number(volumeSizeGiB) > VOLUME_GIB_MAX) {
      throw protocol(`${operation}: VolumeSize ${String(volumeSizeGiB)}`);
    }
    if (!Array.isArray(entries)) throw protocol(`${operation}: Blocks`);
    if (nextToken !== undefined && (typeof nextToken !== "string" || nextToken === ""))
      throw protocol(`${operation}: NextToken`);
    let last = from - 1;
    const blocks = entries.map((entry): ListedBlock => {
      const { BlockIndex: index, BlockToken: blockToken } = asObject(entry, operation);
      if (
        !Number.isInteger(index) ||
        Number(index) <= last ||
        Number(index) >= Number(volumeSizeGiB) * BLOCKS_PER_GIB
      ) {
        throw protocol(`${operation}: block ${String(index)} after ${last}`);
      }
      if (typeof blockToken !== "string" || !TOKEN.test(blockToken))
        throw protocol(`${operation}: the token of block ${String(index)}`);
      last = Number(index);
      return { index: last, token: blockToken };
    });
    return { volumeSizeGiB: Number(volumeSizeGiB), blocks, token: nextToken };
  }

  /** A block's bytes, put into `buffer` and checked against the checksum that comes with them. Throws HS_EBS_BLOCK when they are wrong again and again. */
  async get(
    snapshot: string,
    block: ListedBlock,
    buffer: Uint8Array,
    options: { readonly pacer?: Pacer; readonly signal?: AbortSignal | undefined } = {},
  ) {
    const { pacer, signal } = options;
    for (let attempt = 1; ; attempt++) {
      const answer = await this.#call({
        operation: "GetSnapshotBlock",
        method: "GET",
        path: `/snapshots/${snapshot}/blocks/${block.index}`,
        query: { blockToken: block.token },
        limit: BLOCK_BYTES,
        into: buffer,
        signal,
        ...(pacer !== undefined && { pacer }),
      });
      const sha256 = createHash("sha256").update(answer.body).digest();
      const wrong =
        answer.body.byteLength !== BLOCK_BYTES
          ? `${answer.body.byteLength} bytes`
          : answer.header("x-amz-checksum-algorithm") !== "SHA256"
            ? "no SHA-256 came with it"
            : answer.header("x-amz-checksum") !== sha256.toString("base64")
              ? "its checksum names other bytes"
              : undefined;
      if (wrong === undefined) return { bytes: answer.body, sha256: sha256.toString("hex") };
      if (attempt === WRONG_BLOCKS_MAX) {
        throw new HeadstartError("HS_EBS_BLOCK", { what: `block ${block.index} of ${snapshot}: ${wrong}` });
      }
    }
  }

  /** A block by a token that may have died meanwhile: then it is asked for anew. */
  async getFresh(
    snapshot: string,
    block: ListedBlock,
    buffer: Uint8Array,
    options: { readonly pacer?: Pacer; readonly signal?: AbortSignal | undefined } = {},
  ) {
    let current = block;
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.get(snapshot, current, buffer, options);
      } catch (error) {
        if (!hasReason(error, "INVALID_BLOCK_TOKEN") || attempt === TOKENS_MAX) throw error;
        const renewed = await this.#find(snapshot, block.index, options.signal);
        if (renewed === undefined) throw error;
        current = renewed;
      }
    }
  }

  async #find(snapshot: string, index: number, signal: AbortSignal | undefined): Promise<ListedBlock | undefined> {
    for await (const { blocks } of this.list(snapshot, { from: index, signal })) {
      const [first] = blocks;
      if (first !== undefined) return first.index === index ? first : undefined;
    }
    return undefined;
  }

  #call(call: Omit<AwsCall, "service">): Promise<HttpAnswer> {
    return this.client.call({ service: "ebs", limit: ANSWER_BYTES, ...call });
  }
}

const WRONG_BLOCKS_MAX = 5;
/** Tokens that are asked for, for one block. */
const TOKENS_MAX = 4;

/** An error that EBS gave this reason for. */
export function hasReason(error: unknown, ...reasons: readonly string[]): boolean {
  return error instanceof HeadstartError && reasons.includes(String(error.details.reason));
}

export function parseStatus(value: unknown): SnapshotStatus {
  if (value === "pending" || value === "completed" || value === "error") return value;
  throw protocol(`a snapshot's status is ${JSON.stringify(value)?.slice(0, 40)}`);
}

function json(answer: HttpAnswer, what: string): JsonObject {
  try {
    return asObject(JSON.parse(Buffer.from(answer.body).toString("utf8")), what);
  } catch (cause) {
    throw new HeadstartError("HS_AWS_PROTOCOL", { what: `${what}: the answer is no JSON object`, cause });
  }
}

function protocol(what: string): HeadstartError {
  return new HeadstartError("HS_AWS_PROTOCOL", { what });
}
