import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { type Acl, chmodAcl, inheritedAccess, isOnlyMode, parseAcl, serializeAcl } from "./acl.ts";

const [OWNER, USER, GROUP_OBJ, GROUP, MASK, OTHER] = [1, 2, 4, 8, 0x10, 0x20];
const NOBODY = 0xffff_ffff;
const acl = (...entries: (readonly [tag: number, permissions: number, id?: number])[]): Acl =>
  entries.map(([tag, permissions, id]) => ({ tag, permissions, id: id ?? NOBODY }));
const verdict = (...entries: Parameters<typeof acl>) => {
  const parsed = parseAcl(serializeAcl(acl(...entries)));
  return typeof parsed === "string" ? parsed : "sound";
};

test("ACLs of three entries, with named ones and a mask, are sound and come back as they were", () => {
  for (const entries of [
    acl([OWNER, 7], [GROUP_OBJ, 5], [OTHER, 4]),
    acl([OWNER, 7], [GROUP_OBJ, 5], [MASK, 1], [OTHER, 4]),
    acl([OWNER, 7], [USER, 1, 5], [USER, 2, 5], [GROUP_OBJ, 5], [GROUP, 3, 0], [MASK, 7], [OTHER, 0]),
  ]) {
    assert.deepEqual(parseAcl(serializeAcl(entries)), entries);
  }
});

test("nothing at all and no entries say nothing", () => {
  assert.equal(parseAcl(new Uint8Array(0)), "none");
  assert.equal(parseAcl(Buffer.from([2, 0, 0, 0])), "none");
});

test("another version is told from malformed bytes, and those from entries that do not fit together", () => {
  assert.equal(parseAcl(Buffer.from([1, 0, 0, 0, 9])), "version");
  assert.equal(parseAcl(Buffer.from([2, 0, 0])), "malformed");
  assert.equal(parseAcl(Buffer.from([2, 0, 0, 0, 1, 0, 7, 0])), "malformed");
  assert.equal(verdict([3, 7]), "malformed");
  assert.equal(verdict([OWNER, 7], [USER, 1, NOBODY], [GROUP_OBJ, 5], [MASK, 7], [OTHER, 0]), "malformed");
  assert.equal(verdict([OWNER, 7], [GROUP_OBJ, 5]), "unsound");
  assert.equal(verdict([GROUP_OBJ, 5], [OWNER, 7], [OTHER, 4]), "unsound");
  assert.equal(verdict([OWNER, 8], [GROUP_OBJ, 5], [OTHER, 4]), "unsound");
  assert.equal(verdict([OWNER, 7], [USER, 1, 5], [GROUP_OBJ, 5], [OTHER, 4]), "unsound");
  assert.equal(verdict([OWNER, 7], [GROUP_OBJ, 5], [OTHER, 4], [OTHER, 4]), "unsound");
  assert.equal(verdict([OWNER, 7], [GROUP_OBJ, 5], [USER, 4, 1], [MASK, 7], [OTHER, 4]), "unsound");
});

test("chmod rewrites owner, mask and other; the group where there is no mask", () => {
  assert.deepEqual(
    chmodAcl(acl([OWNER, 7], [USER, 6, 5], [GROUP_OBJ, 5], [MASK, 7], [OTHER, 7]), 0o4610),
    acl([OWNER, 6], [USER, 6, 5], [GROUP_OBJ, 5], [MASK, 1], [OTHER, 0]),
  );
  assert.deepEqual(
    chmodAcl(acl([OWNER, 7], [GROUP_OBJ, 5], [OTHER, 7]), 0o641),
    acl([OWNER, 6], [GROUP_OBJ, 4], [OTHER, 1]),
  );
});

test("an access ACL comes from a default ACL unless that is only a mode", () => {
  const named = acl([OWNER, 7], [USER, 6, 5], [GROUP_OBJ, 5], [MASK, 7], [OTHER, 7]);
  assert.deepEqual(inheritedAccess(named, 0o640), chmodAcl(named, 0o640));
  assert.equal(inheritedAccess(acl([OWNER, 7], [GROUP_OBJ, 5], [OTHER, 7]), 0o640), null);
  assert.deepEqual([isOnlyMode(named), isOnlyMode(acl([OWNER, 7], [GROUP_OBJ, 5], [OTHER, 7]))], [false, true]);
});

test("any bytes are judged, never a crash", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 60 }), (bytes) => {
      const parsed = parseAcl(Uint8Array.from([2, 0, 0, 0, ...bytes]));
      if (typeof parsed !== "string") assert.ok(parsed.length >= 3);
    }),
  );
});
