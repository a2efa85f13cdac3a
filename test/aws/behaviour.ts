/** How the services of the tests behave beyond their rules: speed, limits, and faults by rule. Plain data that a test may change while it runs. */

export type FaultKind =
  /** 400 RequestThrottledException (EC2: 503 RequestLimitExceeded). */
  | "throttle"
  | "500"
  /** EBS: 400 ValidationException WRITE_REQUEST_TIMEOUT. */
  | "late"
  /** A proxy's page in place of the service's answer. */
  | "html"
  /** The connection ends before anything is done. */
  | "reset"
  /** It is done, and the answer is lost. */
  | "lost"
  /** Half of the answer's body, then the connection ends. */
  | "cut"
  /** No answer at all, while the connection stays. */
  | "hang"
  /** The answer's body comes in small pieces. */
  | "slow"
  /** Other bytes than the checksum names. */
  | "wrong-bytes"
  | "denied";

export interface FaultRule {
  /** "PutSnapshotBlock", "DescribeSnapshots", …; "*" is all. */
  readonly on: string;
  readonly kind: FaultKind;
  /** The requests of `on` are counted from 1: those that `every` divides. Default 1. */
  readonly every?: number;
  /** Ends after so many. */
  times?: number;
}

export interface Behaviour {
  /** From the request's end to the answer. */
  latencyMs: number;
  putsPerSecond: number;
  getsPerSecond: number;
  /** A fresh snapshot does not exist for so long. */
  visibilityDelayMs: number;
  /** From CompleteSnapshot to completed. */
  completionMs: number;
  /** Every n-th page of a list is empty. */
  emptyPageEvery: number;
  /** The most that a page holds, whatever was asked for. */
  pageLimit: number;
  pageTokenLifeMs: number;
  blockTokenLifeMs: number;
  /** So many lists give block tokens that have expired already. */
  staleLists: number;
  encryptionByDefault: boolean;
  faults: FaultRule[];
}

export function calm(): Behaviour {
  return {
    latencyMs: 0,
    putsPerSecond: Number.POSITIVE_INFINITY,
    getsPerSecond: Number.POSITIVE_INFINITY,
    visibilityDelayMs: 0,
    completionMs: 0,
    emptyPageEvery: 0,
    pageLimit: 10_000,
    pageTokenLifeMs: 60 * 60_000,
    blockTokenLifeMs: 7 * 24 * 3_600_000,
    staleLists: 0,
    encryptionByDefault: false,
    faults: [],
  };
}

/** Picks the fault for the n-th request of an operation, and uses it up. */
export function faultFor(behaviour: Behaviour, operation: string, count: number): FaultKind | undefined {
  const rule = behaviour.faults.find(
    ({ on, every = 1, times = Number.POSITIVE_INFINITY }) =>
      (on === "*" || on === operation) && count % every === 0 && times > 0,
  );
  if (rule?.times !== undefined) rule.times--;
  return rule?.kind;
}

/** A bucket that fills with `rate` a second and holds a tenth of a second's worth. */
export class Rate {
  #level = 1;
  #at = performance.now();

  take(rate: number): boolean {
    if (!Number.isFinite(rate)) return true;
    const now = performance.now();
    this.#level = Math.min(Math.max(1, rate / 10), this.#level + ((now - this.#at) / 1000) * rate);
    this.#at = now;
    if (this.#level < 1) return false;
    this.#level--;
    return true;
  }
}
