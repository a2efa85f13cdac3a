/**
 * What the AWS of the tests holds: snapshots with their blocks, tags, launch templates, parameters, access keys; and a clock that tests can put forward. The rules of the
 * services are in ebs.ts, ec2.ts and small-services.ts; here is only state.
 *
 * A snapshot's blocks lie in a sparse file of its own; what it does not have is its parent's, else zeros. `firstDifference` is the oracle: it says what a volume made from it would hold.
 */

import { randomBytes } from "node:crypto";
import { closeSync, fstatSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { AccessKey } from "./signature.ts";

export const BLOCK = 524_288;
export const BLOCKS_PER_GIB = 2048;
export const OWNER = "111122223333";

export type SnapshotState = "pending" | "completed" | "error";

export interface Snapshot {
  readonly id: string;
  readonly volumeSizeGiB: number;
  readonly parent: string | undefined;
  readonly description: string;
  readonly encrypted: boolean;
  readonly kmsKeyArn: string | undefined;
  readonly timeoutMinutes: number;
  startedAt: number;
  readonly tags: Map<string, string>;
  state: SnapshotState;
  /** Why it is in error; for tests. */
  why: string | undefined;
  /** Puts and reads of it answer "does not exist" before. */
  visibleAt: number;
  activeAt: number;
  /** Set by CompleteSnapshot: when the state changes, and to which. */
  finishing: { readonly at: number; readonly to: SnapshotState; readonly why?: string } | undefined;
  /** SHA-256 of what was put, by block index. */
  readonly digests: Map<number, Buffer>;
  /** How often each block was put with success. */
  readonly puts: Map<number, number>;
  /** Zones with fast restore -> since when. */
  readonly fastRestore: Map<string, number>;
}

export interface LaunchTemplate {
  readonly id: string;
  readonly name: string;
  readonly versions: readonly { readonly number: number; readonly snapshots: readonly string[] }[];
}

export class World implements Disposable {
  readonly region: string;
  readonly snapshots = new Map<string, Snapshot>();
  /** ClientToken -> the parameters it came with, and what it made. */
  readonly tokens = new Map<string, { readonly parameters: string; readonly id: string }>();
  readonly keys = new Map<string, AccessKey>();
  readonly launchTemplates: LaunchTemplate[] = [];
  /** Image id -> snapshots of its block device mapping. */
  readonly images = new Map<string, readonly string[]>();
  readonly parameters = new Map<string, { value: string; version: number }>();
  /** What GitHub's or GitLab's issuer would have signed. */
  readonly webIdentityToken = `header.${randomBytes(60).toString("base64url")}.signature`;
  readonly containerToken = randomBytes(20).toString("base64url");
  readonly registryPassword = randomBytes(30).toString("base64url");
  /** Of the credentials that roles give. */
  sessionLifeMs = 3_600_000;
  /** Puts that tried to change a block that was put: never to happen. */
  readonly conflicts: { readonly snapshot: string; readonly index: number }[] = [];
  /** Blocks are checked and counted, but not kept: reads get `patternBlock`, for who measures speed alone. */
  readonly forgetful: boolean;
  readonly #directory = mkdtempSync(join(tmpdir(), "headstart-aws-"));
  readonly #files = new Map<string, number>();
  #offsetMs = 0;
  #serial = 0;

  constructor(options: { readonly region?: string; readonly forgetful?: boolean } = {}) {
    this.region = options.region ?? "eu-central-1";
    this.forgetful = options.forgetful ?? false;
  }

  now(): number {
    return Date.now() + this.#offsetMs;
  }

  advance(ms: number): void {
    this.#offsetMs += ms;
  }

  /** Of a name that no other thing has. */
  newId(prefix: string): string {
    return `${prefix}-${(++this.#serial).toString(16).padStart(4, "0")}${randomBytes(6).toString("hex")}a`;
  }

  addKey(options: { readonly temporary?: boolean; readonly lifeMs?: number } = {}): AccessKey {
    const id = `${options.temporary ? "ASIA" : "AKIA"}${randomBytes(8).toString("hex").toUpperCase()}`;
    const key: AccessKey = {
      id,
      secret: randomBytes(30).toString("base64"),
      ...(options.temporary && { sessionToken: randomBytes(120).toString("base64") }),
      ...(options.lifeMs !== undefined && { expiresAt: this.now() + options.lifeMs }),
    };
    this.keys.set(id, key);
    return key;
  }

  /** Brings the state up to date: time-outs and completions happen when somebody looks. */
  find(id: string): Snapshot | undefined {
    const snapshot = this.snapshots.get(id);
    if (snapshot === undefined) return undefined;
    const now = this.now();
    const { finishing } = snapshot;
    if (finishing !== undefined && finishing.at <= now) {
      snapshot.state = finishing.to;
      snapshot.why = finishing.why;
      snapshot.finishing = undefined;
    } else if (
      snapshot.state === "pending" &&
      finishing === undefined &&
      now > snapshot.activeAt + snapshot.timeoutMinutes * 60_000
    ) {
      snapshot.state = "error";
      snapshot.why = "timed out";
    }
    return snapshot;
  }

  /** Itself first, then its parent, and so on. */
  lineage(id: string): Snapshot[] {
    const found: Snapshot[] = [];
    for (let next: string | undefined = id; next !== undefined; ) {
      const snapshot: Snapshot | undefined = this.snapshots.get(next);
      if (snapshot === undefined) break;
      found.push(snapshot);
      next = snapshot.parent;
    }
    return found;
  }

  /** Whose put a block's bytes are, or undefined. */
  holder(id: string, index: number): Snapshot | undefined {
    return this.lineage(id).find((snapshot) => snapshot.digests.has(index));
  }

  /** Indexes that were put here or in a parent, ascending. */
  indexes(id: string): number[] {
    const all = new Set<number>();
    for (const snapshot of this.lineage(id)) for (const index of snapshot.digests.keys()) all.add(index);
    return [...all].sort((a, b) => a - b);
  }

  store(snapshot: Snapshot, index: number, bytes: Uint8Array, digest: Buffer): void {
    if (!this.forgetful) writeSync(this.#file(snapshot), bytes, 0, BLOCK, index * BLOCK);
    snapshot.digests.set(index, digest);
    snapshot.puts.set(index, (snapshot.puts.get(index) ?? 0) + 1);
  }

  load(id: string, index: number): Buffer {
    if (this.forgetful) return patternBlock(index);
    const bytes = Buffer.alloc(BLOCK);
    const holder = this.holder(id, index);
    if (holder !== undefined) readSync(this.#file(holder), bytes, 0, BLOCK, index * BLOCK);
    return bytes;
  }

  /** The first block in which a volume made from the snapshot differs from a file, beyond whose end it must be zeros; undefined: none. */
  firstDifference(id: string, path: string): number | undefined {
    const wanted = Buffer.alloc(BLOCK);
    const fd = openSync(path, "r");
    try {
      const count = Math.ceil(fstatSync(fd).size / BLOCK);
      const all = new Set([...Array(count).keys(), ...this.indexes(id)]);
      return [...all].find((index) => {
        wanted.fill(0);
        readSync(fd, wanted, 0, BLOCK, index * BLOCK);
        return !this.load(id, index).equals(wanted);
      });
    } finally {
      closeSync(fd);
    }
  }

  #file(snapshot: Snapshot): number {
    let fd = this.#files.get(snapshot.id);
    if (fd === undefined) {
      fd = openSync(join(this.#directory, `${snapshot.id}.raw`), "w+");
      this.#files.set(snapshot.id, fd);
    }
    return fd;
  }

  [Symbol.dispose](): void {
    for (const fd of this.#files.values()) closeSync(fd);
    this.#files.clear();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

let template: Buffer | undefined;

/** A block that is no other's, of bytes that do not compress; cheap to make. */
export function patternBlock(index: number): Buffer {
  if (template === undefined) {
    template = Buffer.alloc(BLOCK);
    let state = 0x2545f491;
    for (let at = 0; at < BLOCK; at += 4) {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      template.writeInt32LE(state, at);
    }
  }
  const block = Buffer.from(template);
  block.writeUInt32LE(index);
  return block;
}
