/** containerd's own demands on a snapshotter, against our socket: plain overlays, and overlays with redirect_dir, where directories of lower layers can be renamed too. */

import { startSnapshotter } from "../fakes/snapshots-client.ts";
import { snapshotterSuite } from "../suites/snapshotter.ts";

snapshotterSuite("overlay", (root) => startSnapshotter(root), { renamesLowerDirectories: false });

snapshotterSuite(
  "overlay with redirect_dir",
  (root) => startSnapshotter(root, { overlayOptions: ["redirect_dir=on"] }),
  { renamesLowerDirectories: true },
);
