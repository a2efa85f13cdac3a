import assert from "node:assert/strict";
import { test } from "node:test";
import { isHeadstartError } from "../base/errors.ts";
import { isReadable, LAYER_STATES, type LayerState, type LayerStateName, transition } from "./state.ts";

const stateOf = (t: LayerStateName): LayerState =>
  t === "broken" ? { t, code: "HS_LAYER_BROKEN", reason: "a test" } : { t };

const EXISTING = new Set([
  "opening>lazy",
  "opening>pulling",
  "opening>sealed",
  "opening>broken",
  "lazy>filling",
  "lazy>broken",
  "filling>lazy",
  "filling>verifying",
  "filling>broken",
  "verifying>lazy",
  "verifying>sealed",
  "verifying>broken",
  "pulling>opening",
  "pulling>syncing",
  "pulling>broken",
  "syncing>sealed",
  "syncing>broken",
  "sealed>lazy",
  "sealed>broken",
]);

test("every edge between two states exists or is refused as the diagram says", () => {
  for (const from of LAYER_STATES) {
    for (const to of LAYER_STATES) {
      if (EXISTING.has(`${from}>${to}`)) {
        assert.equal(transition(stateOf(from), stateOf(to)).t, to);
      } else {
        assert.throws(
          () => transition(stateOf(from), stateOf(to)),
          (error) => isHeadstartError(error, "HS_LAYER_STATE"),
          `${from} > ${to}`,
        );
      }
    }
  }
});

test("a layer can be read in every state but before its tables and during an eager pull", () => {
  assert.deepEqual(
    LAYER_STATES.filter((name) => !isReadable(stateOf(name))),
    ["opening", "pulling"],
  );
});
