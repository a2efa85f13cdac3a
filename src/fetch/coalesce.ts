/**
 * Units -> requests, pure. The most urgent waiting unit leads; waiting units of the same blob that touch what it needs join, up to a size, so that one request
 * brings them all. Units overlap or touch (SOCI spans share a byte), so a request is one closed run of bytes with at most small gaps.
 */

import type { Range } from "../base/ranges.ts";

export interface CoalesceLimits {
  /** Bytes that a request may have; a leader that is larger alone still goes. */
  readonly bytes: number;
  /** Bytes nobody asked for that may be fetched to save a request: what a round trip costs at link speed. */
  readonly gap: number;
}

export interface Coalesced<T extends Range> extends Range {
  /** Leader and those that lie inside [start, end), ascending by start. */
  readonly members: readonly T[];
}

/**
 * `waiting` in any order; it may contain the leader. Those behind the leader join first (readers go forwards), then those before it. Every member lies inside the
 * result, and the result begins and ends with a member.
 */
export function coalesce<T extends Range>(leader: T, waiting: readonly T[], limits: CoalesceLimits): Coalesced<T> {
  const others = waiting.filter((range) => range !== leader);
  const members = new Set<T>([leader]);
  let { start, end } = leader;
  const ascending = [...others].sort((a, b) => a.start - b.start || a.end - b.end);
  for (const range of ascending) {
    if (range.start < start) continue;
    if (range.start > end + limits.gap) break;
    const grown = Math.max(end, range.end);
    if (grown > end && grown - start > limits.bytes) continue;
    end = grown;
    members.add(range);
  }
  const descending = others.sort((a, b) => b.end - a.end || b.start - a.start);
  for (const range of descending) {
    if (members.has(range) || range.end > end) continue;
    if (range.end < start - limits.gap) break;
    const grown = Math.min(start, range.start);
    if (grown < start && end - grown > limits.bytes) continue;
    start = grown;
    members.add(range);
  }
  return { start, end, members: [...members].sort((a, b) => a.start - b.start || a.end - b.end) };
}
