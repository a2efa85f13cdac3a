import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { findMount, isUnder, parseMountInfo, readMountInfo } from "./mountinfo.ts";

test("a line of mountinfo is read field by field, with its escapes undone and optional fields passed", () => {
  const text =
    "36 35 98:0 /mnt1 /a\\040b\\134c rw,noatime master:1 shared:2 - erofs /dev/ro\\011ot ro,errors=continue\n" +
    "37 36 0:31 / /a ro - fuse.headstart headstart rw,user_id=0\n";
  const [first, second] = parseMountInfo(Buffer.from(text));
  assert.deepEqual(first, {
    id: 36,
    parentId: 35,
    major: 98,
    minor: 0,
    root: "/mnt1",
    mountPoint: "/a b\\c",
    options: ["rw", "noatime"],
    type: "erofs",
    source: "/dev/ro\tot",
    superOptions: ["ro", "errors=continue"],
  });
  assert.equal(second?.type, "fuse.headstart");
  assert.equal(second?.minor, 31);
});

test("names that are not ASCII come back as they are", () => {
  const [mount] = parseMountInfo(Buffer.from("1 2 0:1 / /mänt\\040x rw - tmpfs täg rw\n"));
  assert.equal(mount?.mountPoint, "/mänt x");
  assert.equal(mount?.source, "täg");
});

test("any bytes give a list, never an exception", () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => Array.isArray(parseMountInfo(bytes))));
});

test("this machine's root is mounted", () => {
  assert.ok(findMount(readMountInfo(), "/"));
});

test("a directory holds itself and what is below, not its namesakes", () => {
  assert.ok(isUnder("/a/b", "/a"));
  assert.ok(isUnder("/a", "/a"));
  assert.ok(!isUnder("/ab", "/a"));
  assert.ok(isUnder("/x", "/"));
});
