/**
 * One push under way: the snapshot to go on with, or a new one; the blocks; the completion; and, when it fails, what has become of the snapshot. The plan says what, state.ts remembers what is there.
 */

import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { EbsApi, hasReason, type SnapshotStatus } from "./api.ts";
import { ascending, BLOCK_BYTES, ZERO_BLOCK } from "./blocks.ts";
import { HASHING_AT_ONCE } from "./description.ts";
import { EBS_PACE, Pace } from "./pace.ts";
import { eachAtOnce } from "./parallel.ts";
import { clientToken, type PushPlan } from "./plan.ts";
import type { PreparedPush, PushOptions } from "./push.ts";
import { writeRecord } from "./record.ts";
import { askSnapshot, listedStatus, waitCompleted } from "./snapshots.ts";
import { BlockBuffers, type DiskImage } from "./source.ts";
import { PushState, STATE_SCHEMA } from "./state.ts";

/** What EBS gives a snapshot without a put, in minutes: a day, for whoever resumes. */
const TIMEOUT_MINUTES = 1440;
/** A fresh snapshot may be unknown for so long (coldsnap waits 132 s). */
const FRESH_MS = 150_000;
const ATTEMPTS_MAX = 8;

interface Session {
  readonly snapshot: string;
  readonly status: SnapshotStatus;
  readonly state: PushState;
}

export class Upload {
  readonly pace: Pace;
  sent = 0;
  resumed = 0;
  readonly #options: PushOptions;
  readonly #image: DiskImage;
  readonly #plan: PushPlan;
  readonly #hashed: boolean;
  readonly #api: EbsApi;

  constructor(options: PushOptions, image: DiskImage, prepared: PreparedPush) {
    this.#options = options;
    this.#image = image;
    this.#plan = prepared.plan;
    this.#hashed = prepared.hashed;
    this.#api = new EbsApi(options.client);
    this.pace = new Pace({ ...EBS_PACE, ...options.pace }, options.clock);
  }

  async run(): Promise<{ snapshot: string; status: SnapshotStatus }> {
    const options = this.#options;
    const session = await this.#begin();
    const { snapshot } = session;
    using state = session.state;
    let { status } = session;
    try {
      if (status === "pending") {
        this.resumed = state.done.size;
        await this.#send(snapshot, state);
        await this.#complete(snapshot, state);
      }
      if (options.wait && status !== "completed") {
        const onWait = () => options.onProgress?.({ phase: "wait", done: 0, total: undefined });
        const { clock, signal, waitStepMs } = options;
        const wait = { clock, signal, onWait, ...(waitStepMs !== undefined && { stepMs: waitStepMs }) };
        await waitCompleted(this.#api, snapshot, wait);
        status = "completed";
      }
    } catch (error) {
      throw await this.#explain(error, snapshot, state);
    }
    writeRecord(options.path, {
      ...this.#plan,
      blocks: this.#plan.held,
      snapshot,
      status,
      parent: this.#plan.parent?.id ?? null,
      region: options.client.region,
    });
    state.remove();
    return { snapshot, status };
  }

  /** Reads all that may be data and compares it with the plan. Throws HS_VOLUME_CHANGED. */
  async verify(): Promise<void> {
    if (!this.#hashed) await this.#send(undefined, undefined);
  }

  /** Finds the snapshot to go on with, or begins one. */
  async #begin(): Promise<Session> {
    const { path, note, client } = this.#options;
    const plan = this.#plan.digest;
    const old = PushState.read(path);
    const same = old !== undefined && old.header.plan === plan && old.header.region === client.region;
    if (this.#options.resume) {
      if (old === undefined) note?.("no push of this volume was interrupted here: it begins from the start");
      else if (!same) {
        throw new HeadstartError("HS_EBS_STATE", {
          what: `${old.path} is of another volume, region or other options (snapshot ${old.header.snapshot} in ${old.header.region})`,
        });
      }
    } else if (old !== undefined && !same) {
      note?.(
        `${old.header.snapshot} in ${old.header.region}, of an earlier push, may be pending still: aws ec2 delete-snapshot --snapshot-id ${old.header.snapshot}`,
      );
    }
    const known = same ? old : undefined;
    if (this.#options.resume && known !== undefined && !known.words.has("lost")) {
      const { snapshot } = known.header;
      const status = await this.#status(snapshot);
      if (status === "error") note?.(`${snapshot} has ended in error: another one is begun`);
      else if (status !== undefined) return { snapshot, status, state: known };
      return await this.#start(known.header.attempt + (status === "error" ? 1 : 0), known);
    }
    return await this.#start((known?.header.attempt ?? 0) + (known?.words.has("lost") ? 1 : 0), known);
  }

  /** The snapshot of the first attempt from `attempt` on that is not in error. */
  async #start(attempt: number, old: PushState | undefined): Promise<Session> {
    const { volumeSizeGiB, parent, tags, description, encrypted, kmsKey } = this.#plan;
    const request = {
      volumeSizeGiB,
      parent: parent?.id,
      tags,
      description,
      encrypted,
      kmsKey,
      timeoutMinutes: TIMEOUT_MINUTES,
    };
    for (let number = attempt; number < attempt + ATTEMPTS_MAX; number++) {
      const { id, status } = await this.#api.start(
        { ...request, clientToken: clientToken(this.#plan, number) },
        this.#options.signal,
      );
      if (status === "error") continue;
      if (this.#options.resume && old?.header.snapshot === id) return { snapshot: id, status, state: old };
      const header = {
        schema: STATE_SCHEMA,
        snapshot: id,
        plan: this.#plan.digest,
        region: this.#api.client.region,
        attempt: number,
      } as const;
      return { snapshot: id, status, state: PushState.create(this.#options.path, header) };
    }
    throw new HeadstartError("HS_EBS_SNAPSHOT", {
      what: `${ATTEMPTS_MAX} snapshots of this volume have ended in error`,
    });
  }

  /** Undefined when it is not seen. Where EC2 cannot be asked: "completed" or else "pending". */
  async #status(snapshot: string): Promise<SnapshotStatus | undefined> {
    const { signal } = this.#options;
    const info = await askSnapshot(this.#api.client, snapshot, signal);
    return info === null ? await listedStatus(this.#api, snapshot, signal) : info?.status;
  }

  /** Puts what has changed and is not there yet; without a snapshot it only compares the file with the plan. */
  async #send(snapshot: string | undefined, state: PushState | undefined): Promise<void> {
    const { blocks, changed } = this.#plan;
    const { clock, onProgress, signal } = this.#options;
    const buffers = new BlockBuffers();
    const freshUntil = clock.monotonic() + FRESH_MS;
    const fresh = () => clock.monotonic() < freshUntil;
    const total = snapshot === undefined ? undefined : changed.size;
    let seen: Promise<void> | undefined;
    const put = (index: number, bytes: Uint8Array, digest: string, each: AbortSignal) =>
      this.#api.put(snapshot!, index, bytes, digest, { pacer: this.pace, fresh, signal: each });
    await eachAtOnce(
      this.#toRead(state?.done ?? new Set(), snapshot !== undefined),
      // a few are read while others are sent
      () => this.pace.window + HASHING_AT_ONCE,
      (index, each) =>
        buffers.using(async (buffer) => {
          const block = await this.#image.read(index, buffer);
          if (block.sha256 !== (blocks.get(index) ?? ZERO_BLOCK)) {
            throw new HeadstartError("HS_VOLUME_CHANGED", {
              what: `${this.#image.path}: block ${index} (byte ${index * BLOCK_BYTES}) is not what ${this.#hashed ? "it was a moment ago" : `${this.#image.path}.json describes`}`,
            });
          }
          if (snapshot === undefined || state === undefined || !changed.has(index)) return;
          // the first put shows that the snapshot can be seen; until then the others would only be turned away
          if (seen !== undefined) await seen;
          const sending = put(index, block.bytes, block.sha256, each);
          seen ??= sending;
          await sending;
          state.mark(index);
          this.sent++;
          onProgress?.({ phase: "send", done: state.done.size, total });
        }),
      { signal },
    );
  }

  /** Ascending: what must be put and, unless the digests were made from this very file, what must be compared. */
  *#toRead(done: ReadonlySet<number>, sending: boolean): Generator<number> {
    const changed = sending ? ascending(this.#plan.changed) : [];
    // a block that the description has and the file does not must come up, too
    const described = this.#hashed ? [] : ascending(this.#plan.blocks);
    const data = this.#hashed ? [] : this.#image.dataBlocks();
    for (const index of merge([changed, described, data])) if (!done.has(index)) yield index;
  }

  async #complete(snapshot: string, state: PushState): Promise<void> {
    state.say("completing");
    const { changed, checksum } = this.#plan;
    try {
      await this.#api.complete(snapshot, { count: changed.size, checksum }, this.#options.signal);
    } catch (error) {
      // "not pending": an earlier request has come through, though its answer did not
      if (!hasReason(error, "INVALID_SNAPSHOT_ID")) throw error;
      const status = await this.#status(snapshot);
      if (status === undefined || status === "error") throw error;
    }
  }

  /** Says what has become of the snapshot, and what to do. */
  async #explain(error: unknown, snapshot: string, state: PushState): Promise<unknown> {
    if (isHeadstartError(error, "HS_EBS_SNAPSHOT")) {
      state.say("lost");
      return error;
    }
    if (isHeadstartError(error, "HS_VOLUME_CHANGED")) {
      this.#options.note?.(`${snapshot} stays pending; delete it: aws ec2 delete-snapshot --snapshot-id ${snapshot}`);
      return error;
    }
    if (hasReason(error, "SNAPSHOT_NOT_FOUND")) {
      state.say("lost");
      return new HeadstartError("HS_EBS_SNAPSHOT", {
        what: `snapshot ${snapshot} does not exist (any more)`,
        cause: error,
      });
    }
    if (hasReason(error, "INVALID_SNAPSHOT_ID")) {
      const status = await this.#status(snapshot).catch(() => undefined);
      if (status !== "completed") state.say("lost");
      const why = status === "completed" ? "completed, by another push of the same volume" : (status ?? "not pending");
      return new HeadstartError("HS_EBS_SNAPSHOT", { what: `snapshot ${snapshot} is ${why}`, cause: error });
    }
    const what = state.words.has("completing")
      ? `snapshot ${snapshot} has all its blocks, and EBS may be completing it`
      : `snapshot ${snapshot} has ${state.done.size} of ${this.#plan.changed.size} blocks and stays pending for a day`;
    return new HeadstartError("HS_EBS_UNFINISHED", { what, cause: error });
  }
}

/** Of ascending sequences, each number once, ascending. */
function* merge(sequences: readonly Iterable<number>[]): Generator<number> {
  const iterators = sequences.map((sequence) => sequence[Symbol.iterator]());
  const heads = iterators.map((iterator) => iterator.next());
  for (;;) {
    let least = Number.POSITIVE_INFINITY;
    for (const head of heads) if (!head.done && head.value < least) least = head.value;
    if (least === Number.POSITIVE_INFINITY) return;
    yield least;
    for (const [at, head] of heads.entries()) if (!head.done && head.value === least) heads[at] = iterators[at]!.next();
  }
}
