/**
 * What the threads that index a layer tell each other. Two workers make a pair: `front` inflates, finds checkpoints and reads the tar, `back` hashes.
 *
 *   main --chunk--> front --[decoded, memberEnd, stored]--> back --free--> main
 *                   front --[finish]--> back --hashes--> front --built--> main
 *
 * What front has to say to back is sent once a chunk, and before front waits: each message wakes a thread.
 *
 * Bytes lie in two rings of shared memory and are never copied between threads: main fills slots of the stored ring and waits for free ones; front decodes
 * into buffers of the decoded ring. A buffer's word in `decodedBusy` is 1 from when front takes it until back has hashed all of it; front waits for 0.
 */

import type { MessagePort } from "node:worker_threads";
import { WINDOW } from "../gzip/inflate.ts";
import type { LayerHashes } from "./build-hash.ts";

export const STORED_SLOTS = 8;
export const STORED_SLOT_SIZE = 512 * 1024;
export const DECODED_BUFFERS = 8;
/** Small enough that a ring stays in the cache of the two cores. */
export const DECODED_BUFFER_SIZE = WINDOW + 512 * 1024;

export interface BuildRings {
  readonly stored: SharedArrayBuffer;
  readonly decoded: SharedArrayBuffer;
  /** Int32 a buffer. */
  readonly decodedBusy: SharedArrayBuffer;
}

export function makeRings(): BuildRings {
  return {
    stored: new SharedArrayBuffer(STORED_SLOTS * STORED_SLOT_SIZE),
    decoded: new SharedArrayBuffer(DECODED_BUFFERS * DECODED_BUFFER_SIZE),
    decodedBusy: new SharedArrayBuffer(DECODED_BUFFERS * 4),
  };
}

export interface BuildWorkerData {
  readonly role: "front" | "back";
  readonly rings: BuildRings;
  /** To the other of the pair. */
  readonly port: MessagePort;
}

export type ToFront =
  | { readonly t: "start"; readonly spanSize: number; readonly buildTool: string; readonly layer: string }
  | { readonly t: "chunk"; readonly slot: number; readonly length: number }
  | { readonly t: "end" };

export interface Cut {
  readonly offset: number;
  readonly previousEnd: number;
}

/** Sent as a list of them, in order. */
export type FrontToBack =
  | { readonly t: "start" }
  | { readonly t: "stored"; readonly slot: number; readonly length: number; readonly cuts: readonly Cut[] }
  | { readonly t: "decoded"; readonly buffer: number; readonly start: number; readonly end: number }
  | { readonly t: "release"; readonly buffer: number }
  | { readonly t: "memberEnd"; readonly crc: number; readonly length: number }
  | { readonly t: "finish" };

export type BackToFront = { readonly t: "hashes"; readonly hashes: LayerHashes };

/** From either worker. After "failed" and "notIndexable" the pair is useless. */
export type ToMain =
  /** From both: its modules are loaded. */
  | { readonly t: "ready" }
  | { readonly t: "free"; readonly slot: number }
  | {
      readonly t: "built";
      readonly ztoc: Uint8Array<ArrayBuffer>;
      readonly hashes: LayerHashes;
      readonly compression: "gzip" | "tar";
      readonly entryCount: number;
      readonly uncompressedSize: number;
      readonly hasXattrs: boolean;
    }
  | { readonly t: "notIndexable"; readonly reason: string }
  | {
      readonly t: "failed";
      readonly code: string | null;
      readonly details: { readonly what: string; readonly [field: string]: unknown };
    };
