/** Messages between decoders.ts and decode.worker.ts. Tables are shared, stored bytes are handed over: a message costs the same for every size. */

import type { ErrorCode } from "../base/errors.ts";
import type { Placement } from "../erofs/placement.ts";
import type { DecodeTable, UnitTable } from "../formats/format.ts";
import type { RestMap } from "./rest.ts";
import type { UnitPieces } from "./unit-index.ts";

/** What a worker must know of a layer to decode any of its units. File descriptors are the process's: they stay open until the layer was closed here. */
export interface DecodeContext {
  /** LayerId. */
  readonly layer: number;
  /** For messages: "layer sha256:…". */
  readonly what: string;
  readonly imageFd: number;
  readonly restFd: number;
  readonly units: UnitTable;
  readonly pieces: UnitPieces;
  readonly placement: Placement;
  readonly rest: RestMap | null;
  readonly decode: DecodeTable;
}

export type ToDecoder =
  | { readonly t: "open"; readonly context: DecodeContext }
  | { readonly t: "close"; readonly layer: number }
  | {
      readonly t: "decode";
      readonly job: number;
      readonly layer: number;
      readonly unit: number;
      readonly stored: Uint8Array<ArrayBuffer>;
      /** Of the unit these alone, each by itself; null: all of it, or nothing. */
      readonly pieces: Uint32Array | null;
    }
  /** Takes pieces from other files of this machine. */
  | {
      readonly t: "copy";
      readonly job: number;
      readonly layer: number;
      readonly unit: number;
      readonly copy: CopyPieces;
    };

/** `pieces[i]` is at byte `offsets[i]` of the open file `fds[i]`, as far as is known. */
export interface CopyPieces {
  readonly pieces: Uint32Array;
  readonly fds: Int32Array;
  readonly offsets: Float64Array;
}

/** Pieces that do not have their digest; all others were written. */
export interface BadPieces {
  readonly pieces: Uint32Array;
  readonly what: string;
}

export type FromDecoder =
  /** Its modules are loaded. */
  | { readonly t: "ready" }
  | {
      readonly t: "done";
      readonly job: number;
      readonly decodeMs: number;
      readonly writes: number;
      readonly bad: BadPieces | null;
    }
  | { readonly t: "failed"; readonly job: number; readonly code: ErrorCode; readonly what: string };
