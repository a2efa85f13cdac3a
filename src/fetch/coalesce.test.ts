import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { coalesce } from "./coalesce.ts";

const limits = { bytes: 100, gap: 5 };
const range = (start: number, end: number) => ({ start, end });

test("a unit alone becomes a request of exactly its bytes, also when it is larger than a request may be", () => {
  const leader = range(10, 500);
  assert.deepEqual(coalesce(leader, [leader], limits), { start: 10, end: 500, members: [leader] });
});

test("neighbours behind and before the leader join, those across a wide gap do not", () => {
  const [before, leader, touching, near, far] = [
    range(0, 20),
    range(20, 40),
    range(39, 60),
    range(64, 80),
    range(90, 95),
  ];
  assert.deepEqual(coalesce(leader, [far, near, leader, touching, before], limits), {
    start: 0,
    end: 80,
    members: [before, leader, touching, near],
  });
});

test("a request stops growing at its limit and what lies behind the leader goes first", () => {
  const [before, leader, behind] = [range(0, 60), range(60, 120), range(120, 160)];
  assert.deepEqual(coalesce(leader, [before, behind, leader], limits), {
    start: 60,
    end: 160,
    members: [leader, behind],
  });
});

test("a request covers its members exactly: it begins and ends with one, holds no wide gap and keeps its limit", () => {
  const ranges = fc
    .tuple(fc.nat(400), fc.integer({ min: 1, max: 60 }))
    .map(([start, length]) => range(start, start + length));
  fc.assert(
    fc.property(fc.array(ranges, { minLength: 1, maxLength: 40 }), fc.nat(), (waiting, pick) => {
      const leader = waiting[pick % waiting.length]!;
      const request = coalesce(leader, waiting, limits);
      assert.ok(request.members.includes(leader));
      assert.equal(new Set(request.members).size, request.members.length);
      assert.equal(request.start, Math.min(...request.members.map((member) => member.start)));
      assert.equal(request.end, Math.max(...request.members.map((member) => member.end)));
      assert.ok(request.end - request.start <= Math.max(limits.bytes, leader.end - leader.start));
      let covered = request.start;
      for (const member of request.members) {
        assert.ok(waiting.includes(member));
        assert.ok(member.start <= covered + limits.gap);
        covered = Math.max(covered, member.end);
      }
    }),
  );
});
