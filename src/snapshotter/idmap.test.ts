import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isHeadstartError } from "../base/errors.ts";
import { mapsMountedLowers, readIdMapping } from "./idmap.ts";

const labels = (uid: string, gid = uid) => ({
  "containerd.io/snapshot/uidmapping": uid,
  "containerd.io/snapshot/gidmapping": gid,
});

test("the container's root gets its host ids, and containerd is asked to map the lowers", () => {
  assert.deepEqual(readIdMapping(labels("0:65536:65536", "5:9:1,0:131072:5")), {
    root: { uid: 65536, gid: 131072 },
    mountOptions: ["uidmap=0:65536:65536", "gidmap=5:9:1,0:131072:5"],
  });
  assert.equal(readIdMapping({}), null);
});

test("mappings without root, beyond 32 bits, empty or of another shape are refused", () => {
  const bad = ["", "0:1", "1:2:3", "0:1:0", "0:4294967295:1", "0:1:4294967295", "a:b:c", "0:1:2,", "0:-1:5", "0:1:2:3"];
  for (const mapping of [...bad, Array.from({ length: 341 }, () => "0:1:1").join()]) {
    assert.throws(
      () => readIdMapping(labels(mapping)),
      (error) => isHeadstartError(error, "HS_SNAPSHOT_INVALID"),
      mapping.slice(0, 40),
    );
  }
  assert.throws(() => readIdMapping({ "containerd.io/snapshot/uidmapping": "0:1:1" }), /only one/);
});

test("any text is a mapping or a typed error", () => {
  fc.assert(
    fc.property(fc.stringMatching(/^[0-9:,a-]{0,40}$/), (mapping) => {
      try {
        const read = readIdMapping(labels(mapping));
        assert.ok(read !== null && read.root.uid >= 0 && read.root.uid < 2 ** 32 - 1);
      } catch (error) {
        assert.ok(isHeadstartError(error, "HS_SNAPSHOT_INVALID"));
      }
    }),
  );
});

test("only versions that keep mounts in the mapped clone get layers", () => {
  const yes = ["2.0.0", "v2.0.6", "2.1.4", "v2.3.0", "2.4.0-beta.0", "3.0.0"];
  const no = ["1.7.24", "2.0.7", "2.1.5", "v2.1.9", "2.2.3", "unknown", ""];
  for (const version of yes) assert.ok(mapsMountedLowers(version), version);
  for (const version of no) assert.ok(!mapsMountedLowers(version), version);
});
