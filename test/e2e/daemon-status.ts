/** What the end-to-end tests read from the daemon's status API. */

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { readMountInfo } from "../../src/linux/mountinfo.ts";
import type { SandboxNode } from "../../src/sandbox/node.ts";

export interface LayerLine {
  readonly id: number;
  readonly digest: string;
  readonly format: string;
  readonly state: string;
  readonly reason: string | null;
  readonly diskBytes: number;
  readonly unitsFilled: number;
}

export interface ImageLine {
  readonly reference: string;
  readonly mode: string;
  readonly reason: string | null;
  readonly layers: readonly { readonly digest: string; readonly mode: string; readonly reason: string | null }[];
}

export async function layers(node: SandboxNode): Promise<readonly LayerLine[]> {
  return (await node.headstart.status("/v1/layers")) as LayerLine[];
}

/** The daemon's record of that image. */
export async function image(node: SandboxNode, reference: string): Promise<ImageLine> {
  const lines = (await node.headstart.status("/v1/images")) as ImageLine[];
  const line = lines.find((one) => one.reference === reference);
  assert.ok(line, `no image ${reference} among ${lines.map((one) => one.reference).join(", ")}`);
  return line;
}

/** Waits until every layer is whole, verified and on disk. */
export async function allSealed(node: SandboxNode, timeoutMs = 120_000): Promise<readonly LayerLine[]> {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    const lines = await layers(node);
    if (lines.length > 0 && lines.every((line) => line.state === "sealed")) return lines;
    const states = lines.map(({ digest, state, reason }) => `${digest.slice(7, 19)} ${state} ${reason ?? ""}`);
    assert.ok(Date.now() < deadline, `not sealed:\n${states.join("\n")}\n${node.headstart.tail.slice(-3000)}`);
    await sleep(50);
  }
}

/** Mounts of the daemon's layers: EROFS whose file, or whose devices, lie on our FUSE mount (`<id>f`), and EROFS straight from the disk. */
export function layerMounts(node: SandboxNode): { overFuse: string[]; native: string[] } {
  const { root } = node.headstart.places;
  const erofs = readMountInfo()
    .filter((mount) => mount.type === "erofs" && mount.mountPoint.startsWith(`${root}/`))
    .map((mount) => mount.mountPoint);
  const isOverFuse = (path: string) => /\/\d+f$/.test(path);
  return { overFuse: erofs.filter(isOverFuse), native: erofs.filter((path) => !isOverFuse(path)) };
}

/** Waits for the server that takes the place of the one that `end` ends. */
export async function newServer(node: SandboxNode, end: () => void): Promise<void> {
  const before = node.headstart.serverPid;
  end();
  for (const deadline = Date.now() + 60_000; ; await sleep(20)) {
    assert.ok(Date.now() < deadline, node.headstart.tail);
    try {
      if (node.headstart.serverPid === before) continue;
      await node.headstart.status("/v1/config");
      return;
    } catch {
      // not there yet
    }
  }
}

export function killServer(node: SandboxNode): Promise<void> {
  return newServer(node, () => process.kill(node.headstart.serverPid, "SIGKILL"));
}
