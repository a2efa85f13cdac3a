/** Containers of the golden Nydus images. */

import { type CriContainer, type CriPod, readCriLog } from "../../src/sandbox/cri-client.ts";
import type { SandboxNode } from "../../src/sandbox/node.ts";
import { busyboxProgram } from "../../src/sandbox/tools.ts";
import { expectedNydusTree } from "../suites/golden-nydus.ts";

/** The golden images have no shell: the node's own busybox is put into the container. */
export const BUSYBOX = "/busybox-of-the-node";

let containers = 0;

/** Starts a shell script in a new container of the image, which is there. */
export async function startIn(node: SandboxNode, pod: CriPod, image: string, script: string): Promise<CriContainer> {
  const container = await node.cri.createContainer(pod, {
    name: `n${++containers}`,
    image,
    command: [BUSYBOX, "sh", "-c", script],
    mounts: [{ host: await busyboxProgram(), container: BUSYBOX, readonly: true }],
  });
  await node.cri.startContainer(container);
  return container;
}

/** The same to its end. */
export async function runIn(node: SandboxNode, pod: CriPod, image: string, script: string) {
  const container = await startIn(node, pod, image, script);
  const exitCode = await node.cri.waitForExit(container);
  const output = readCriLog(container.logPath);
  await node.cri.removeContainer(container);
  return { exitCode, output };
}

/** A script that prints the sha256 of that file of a golden image, and what it prints. */
export function reading(path: string): { readonly script: string; readonly printed: string } {
  const want = expectedNydusTree().find((line) => line.path === path)?.sha256;
  return { script: `${BUSYBOX} sha256sum ${path}`, printed: `${want}  ${path}\n` };
}
