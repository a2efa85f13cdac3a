import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";
import fc from "fast-check";
import type { ChainID } from "../base/digest.ts";
import { PROJECT } from "../base/project.ts";
import { readLayerTree } from "../formats/tar/read-layer.ts";
import { parseSource } from "../oci/reference.ts";
import { type Bucket, isBucket } from "./bolt/ondisk.ts";
import { readBolt } from "./bolt/read.ts";
import { writeBolt } from "./bolt/write.ts";
import { openPlan } from "./build.ts";
import { goTime, metaDatabase, readUvarint, snapshotDatabase, uvarint, varint } from "./containerd-db.ts";
import { type SnapshotUsage, snapshotUsage } from "./usage.ts";

const GOLDEN = join(PROJECT, "test/golden/volume");
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

async function goldenPlan() {
  return openPlan({
    sources: [{ source: parseSource(`oci:${join(GOLDEN, "oci-layout")}`), names: [], open: {} }],
    platform: { os: "linux", architecture: "amd64" },
    layout: "containerd",
    pinned: true,
    blobs: true,
    signal: new AbortController().signal,
  });
}

/** "path = value" of every record, without times and the annotations that only an import writes. Backend names have every `step`th number: as if it were each. */
function records(bucket: Bucket, step: 1 | 2, path = ""): string[] {
  const renumber = (text: string) => text.replace(/^k8s\.io\/(\d+)\//, (_, n: string) => `k8s.io/${Number(n) / step}/`);
  return [...bucket.entries].flatMap(([key, value]) => {
    const name = `${path}/${renumber(key)}`;
    if (isBucket(value)) return key === "annotations" ? [] : records(value, step, name);
    if (key === "createdat" || key === "updatedat") return [];
    return [`${name} = ${renumber(Buffer.from(value).toString("latin1"))}`];
  });
}

/** A pull takes two numbers for a layer: 2, 4, … */
const THEIRS = 2;
const OURS = 1;

function golden(name: string): Bucket {
  return readBolt(gunzipSync(readFileSync(join(GOLDEN, "containerd-1.6.20", `${name}.gz`))), name).root;
}

test("meta.db has the records that containerd wrote for the same image; more are only the digest's name and the pin of the id", async () => {
  await using opened = await goldenPlan();
  const theirs = new Set(records(golden("meta.db"), THEIRS));
  const ours = new Set(records(readBolt(writeBolt(metaDatabase(opened.plan)), "ours").root, OURS));
  const { target, config } = opened.plan.images[0]!;
  assert.deepEqual([...theirs.difference(ours)], []);
  const more = [...ours.difference(theirs)].filter(
    (line) => !line.includes(`/docker.io/library/tiny@${target.digest}/`),
  );
  assert.deepEqual(more, [`/v1/k8s.io/images/${config.digest}/labels/io.cri-containerd.pinned = pinned`]);
});

test("metadata.db has the records that containerd wrote: kinds, parents, inodes and sizes counted from the trees alone", async () => {
  await using opened = await goldenPlan();
  const usage = new Map<ChainID, SnapshotUsage>();
  const lowers = [];
  for (const { chainID, layer, role, diffID } of opened.plan.snapshots) {
    const source = opened.readers[0]!.openBlob(layer).stream(0);
    const { tree } = await readLayerTree(source, { mediaType: layer.mediaType, role, diffID, lowers: [...lowers] });
    lowers.push(tree);
    usage.set(chainID, snapshotUsage(tree));
  }
  const bytes = writeBolt(snapshotDatabase(opened.plan, usage));
  const ours = records(readBolt(bytes, "ours").root, OURS);
  assert.deepEqual(ours.sort(), records(golden("metadata.db"), THEIRS).sort());
});

test("numbers and times are Go's", () => {
  assert.equal(hex(varint(590)), "9c09");
  assert.equal(hex(varint(53_248)), "80c006");
  assert.equal(hex(varint(3)), "06");
  assert.equal(hex(goTime(1_700_000_000)), "010000000edce5e80000000000ffff");
  fc.assert(
    fc.property(fc.maxSafeNat(), (value) => {
      assert.equal(readUvarint(uvarint(value)), value);
    }),
  );
  assert.equal(readUvarint(new Uint8Array(12).fill(0xff)), null);
  assert.equal(readUvarint(Uint8Array.of(0x80)), null);
  assert.equal(readUvarint(Uint8Array.of(1, 1)), null);
});
