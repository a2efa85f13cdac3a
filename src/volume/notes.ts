/** What a user should know of a plan before it is built, and cannot see in it (specs/warm-volume.md 2.2, 4, 11.3, 11.4). Pure. */

import type { VolumePlan } from "./plan.ts";

/** One sentence each; none: nothing to say. */
export function planNotes(plan: VolumePlan, layout: string): string[] {
  const notes: string[] = [];
  if (!plan.blobsKept) {
    notes.push(
      `Without the layers' blobs a node with another snapshotter than ${plan.snapshotter} cannot create these containers.`,
    );
  }
  const pause = plan.images.flatMap(({ names }) => names).find((name) => /\/pause[:@]/.test(name));
  if (layout === "al2023" && pause === undefined) {
    notes.push(
      "No pause image is named: the volume hides the node's own. Add the one that the node's containerd is configured with.",
    );
  }
  if (layout === "bottlerocket" && pause !== undefined) {
    notes.push(`Bottlerocket brings its own pause image; ${pause} may get in its way when it is older.`);
  }
  return notes;
}
