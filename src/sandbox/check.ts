/**
 * `headstart check`: an image as headstart serves it against the same (or another) image as containerd unpacks it, both mounted by one containerd,
 * compared entry by entry and byte by byte. Decides nothing: the differences are the answer.
 */

import { join } from "node:path";
import { systemClock } from "../base/clock.ts";
import { type CompareOptions, type Comparison, compareTrees } from "./compare.ts";
import { mountCriImage } from "./image-mount.ts";
import type { SandboxNode } from "./node.ts";

/** CRI's images live in k8s.io. */
const PLAIN_NAMESPACE = "plain";

export interface CheckOptions extends CompareOptions {
  /** Served by headstart: "HOST/REPO:TAG", pulled by CRI. */
  readonly image: string;
  /** Unpacked by containerd: default, the same. */
  readonly against?: string;
  /** An empty folder of ours for the two mounts. */
  readonly directory: string;
  /** Called when the image is mounted lazily and before anything of it is read. */
  readonly mounted?: (tree: string) => Promise<void>;
}

/** Pulls both on this node (unless they are there), mounts, compares. */
export async function checkImage(node: SandboxNode, options: CheckOptions): Promise<Comparison> {
  const { image, against = image, directory, mounted, ...compare } = options;
  await node.cri.pull(image);
  const lazy = join(directory, "lazy");
  await using _lazy = await mountCriImage(node, image, lazy);
  await mounted?.(lazy);
  const plain = join(directory, "plain");
  const plainCtr = node.ctr.in(PLAIN_NAMESPACE);
  await plainCtr.pull(against, { snapshotter: "overlayfs" });
  // a layer of it may have been unpacked for another image before
  const unpacked = { startMs: node.startedMs, endMs: systemClock.now() };
  await using _plain = await plainCtr.mountImage(against, plain, { snapshotter: "overlayfs" });
  return await compareTrees(plain, lazy, { unpacked, ...compare });
}
