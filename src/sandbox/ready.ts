/**
 * A workload is an image, a command and how to see that it is ready. The time to ready counts from the request to pull, as kubelet makes it: the pod's
 * sandbox is there before.
 */

import { connect } from "node:net";
import { systemClock } from "../base/clock.ts";
import { describeError, HeadstartError } from "../base/errors.ts";
import { ContainerState } from "../gen/k8s.io/cri-api/pkg/apis/runtime/v1/api_pb.ts";
import type { CriClient, CriContainer, CriContainerOptions, CriPod } from "./cri-client.ts";
import { readCriLog } from "./cri-client.ts";

/** Asked again and again; resolves to true once the workload is ready. A rejection means "not yet". */
export type Probe = (container: CriContainer) => Promise<boolean>;

export interface Workload extends CriContainerOptions {
  readonly ready: Probe;
  /** Default: two minutes. */
  readonly readyTimeoutMs?: number;
}

export interface Started {
  readonly container: CriContainer;
  /** From the request to pull to its answer. */
  readonly pullMs: number;
  /** From the request to pull to ready. */
  readonly readyMs: number;
}

const POLL_MS = 2;
/** How often the container itself is asked whether it still runs. */
const STATUS_MS = 500;
const READY_MS = 120_000;

/** Pulls, creates, starts, and waits until ready. Throws HS_CONTAINER_NOT_READY with the end of its log. */
export async function startWorkload(cri: CriClient, pod: CriPod, workload: Workload): Promise<Started> {
  const start = systemClock.monotonic();
  await cri.pull(workload.image);
  const pullMs = systemClock.monotonic() - start;
  const container = await cri.createContainer(pod, workload);
  await cri.startContainer(container);
  await waitUntilReady(cri, container, workload);
  return { container, pullMs, readyMs: systemClock.monotonic() - start };
}

export async function waitUntilReady(
  cri: CriClient,
  container: CriContainer,
  workload: Pick<Workload, "name" | "ready" | "readyTimeoutMs">,
): Promise<void> {
  const deadline = systemClock.monotonic() + (workload.readyTimeoutMs ?? READY_MS);
  let statusAt = systemClock.monotonic() + STATUS_MS;
  let cause: unknown;
  for (;;) {
    const ready = await workload.ready(container).catch((error) => {
      cause = error;
      return false;
    });
    if (ready) return;
    const now = systemClock.monotonic();
    const notReady = (how: string) => {
      const log = readCriLog(container.logPath).trimEnd().split("\n").slice(-10).join("\n  ");
      return new HeadstartError("HS_CONTAINER_NOT_READY", { what: `${workload.name}: ${how}\n  ${log}`, cause });
    };
    if (now > deadline) throw notReady(`not ready in time${cause === undefined ? "" : `: ${describeError(cause)}`}`);
    if (now > statusAt) {
      const status = await cri.containerStatus(container);
      // a program may print its line and end: the next probe still sees the log
      if (status.state === ContainerState.CONTAINER_EXITED && !(await workload.ready(container).catch(() => false))) {
        throw notReady(`ended with exit code ${status.exitCode} before it was ready`);
      }
      statusAt = now + STATUS_MS;
    }
    await systemClock.sleep(POLL_MS);
  }
}

/** Ready when its output has a line that matches. */
export function prints(wanted: RegExp): Probe {
  return async (container) => wanted.test(readCriLog(container.logPath));
}

/** Ready as soon as it is started and has ended without an error. */
export function ends(cri: CriClient): Probe {
  return async (container) => {
    const status = await cri.containerStatus(container);
    return status.state === ContainerState.CONTAINER_EXITED && status.exitCode === 0;
  };
}

const ANSWER_MS = 2_000;

/** Ready when a TCP server on the loopback answers `request` with something that begins with `answer`. */
export function answers(port: number, request: string, answer: string): Probe {
  return () =>
    new Promise((resolve, reject) => {
      const socket = connect({ port, host: "127.0.0.1" });
      let got = "";
      socket.setTimeout(ANSWER_MS, () => socket.destroy(new Error(`no answer on port ${port}`)));
      socket.setEncoding("utf8");
      socket.on("connect", () => socket.write(request));
      socket.on("data", (text: string) => {
        got += text;
        if (got.length < answer.length) return;
        socket.destroy();
        resolve(got.startsWith(answer));
      });
      socket.on("end", () => resolve(false));
      socket.on("error", reject);
    });
}

/** "redis answers": PING, +PONG. */
export function redisAnswers(port: number): Probe {
  return answers(port, "PING\r\n", "+PONG\r\n");
}
