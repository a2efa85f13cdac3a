/** What the main thread and its readers say to each other. */

import type { MessagePort } from "node:worker_threads";
import type { Negotiated } from "./connection.ts";

/** Places of a reader's counters. */
export const ReaderCounter = { reads: 0, readBytes: 1, others: 2 } as const;

export interface ReaderData {
  readonly fd: number;
  readonly files: MessagePort;
  /** Which of the journal's landings is this reader's. */
  readonly index: number;
  readonly journalPath: string;
  readonly taken: SharedArrayBuffer;
  /** Float64 at the places of ReaderCounter; only this thread writes them. */
  readonly counters: SharedArrayBuffer;
  readonly connectionPath: string;
  readonly stopName: string;
}

export type ReaderMessage =
  | { readonly kind: "fault"; readonly slot: number; readonly request: Uint8Array }
  | { readonly kind: "init"; readonly negotiated: Negotiated }
  | { readonly kind: "trouble"; readonly error: Error }
  | { readonly kind: "closed" };
