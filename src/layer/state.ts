/**
 * The states of a layer and the one function that moves between them. Nothing else writes a state.
 *
 *   opening ──> lazy ──> filling ──> verifying ──> sealed        with an index: holes are filled on demand, then in the background
 *    ▲  │        ▲          │            │
 *    │  │        └──────────┴────────────┘ │                     the fill or the check was cut off (restart, full disk): still lazy
 *    │  └─> pulling ──> syncing ─────────────────> sealed         without one: the whole blob in one pass
 *    └─────────┘                                                 network away, full disk: it may be pulled again
 *
 *   opening ──> sealed                                           an image: its own file is complete at birth, its devices have states of their own
 *   sealed ──> lazy                                              a data file of which one more image wants more
 *
 *   any ──> broken (with a reason)                               never left: the layer is removed and made anew
 *
 * Syncing: all bytes are there and have the right digests, but a power loss may still take them. Sealed: the same, durably.
 * A broken layer that has a mounted file stays readable where units can be verified; only what is known to be wrong answers EIO.
 */

import { type ErrorCode, HeadstartError } from "../base/errors.ts";

export type LayerState =
  /** `reason`: why the last attempt to pull it failed. */
  | { readonly t: "opening"; readonly reason?: string }
  | { readonly t: "lazy" }
  | { readonly t: "filling" }
  | { readonly t: "verifying" }
  | { readonly t: "pulling" }
  | { readonly t: "syncing" }
  | { readonly t: "sealed" }
  | { readonly t: "broken"; readonly code: ErrorCode; readonly reason: string };

export type LayerStateName = LayerState["t"];

export const LAYER_STATES = [
  "opening",
  "lazy",
  "filling",
  "verifying",
  "pulling",
  "syncing",
  "sealed",
  "broken",
] as const satisfies readonly LayerStateName[];

const EDGES: { readonly [from in LayerStateName]: readonly LayerStateName[] } = {
  opening: ["lazy", "pulling", "sealed", "broken"],
  lazy: ["filling", "broken"],
  filling: ["lazy", "verifying", "broken"],
  verifying: ["lazy", "sealed", "broken"],
  pulling: ["opening", "syncing", "broken"],
  syncing: ["sealed", "broken"],
  sealed: ["lazy", "broken"],
  broken: [],
};

export function mayBecome(from: LayerStateName, to: LayerStateName): boolean {
  return EDGES[from].includes(to);
}

/** The next state. Throws HS_LAYER_STATE for an edge that does not exist. */
export function transition(from: LayerState, to: LayerState): LayerState {
  if (!mayBecome(from.t, to.t))
    throw new HeadstartError("HS_LAYER_STATE", { what: `a layer that is ${from.t} cannot become ${to.t}` });
  return to;
}

/** True where reads of the layer's file can be answered: at once, or after a fill. */
export function isReadable(state: LayerState): boolean {
  switch (state.t) {
    case "lazy":
    case "filling":
    case "verifying":
    case "syncing":
    case "sealed":
    case "broken":
      return true;
    case "opening":
    case "pulling":
      return false;
    default:
      return state satisfies never;
  }
}
