import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { sha256 } from "../base/digest.ts";
import { GiB, MiB } from "../base/limits.ts";
import { type FileTree, FileTreeBuilder, FileType } from "../erofs/file-tree.ts";
import { type DiskLayoutRequest, identityOf, layoutDisk, uuidText } from "./disk-layout.ts";
import type { RegionPlace } from "./ext4/place.ts";
import type { FormerVolume } from "./former.ts";
import { DISK_TARGETS, diskSkeleton } from "./layout/disk.ts";
import { makePlan } from "./plan.ts";

const PLAIN = { mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 0 };
const DIGEST = sha256(Buffer.from("x"));
const descriptor = { mediaType: "application/vnd.oci.image.layer.v1.tar", digest: DIGEST, size: 10_000 };

function treeOf(files: number, bytes: number): FileTree {
  const builder = new FileTreeBuilder({ ...PLAIN, mode: 0o755 });
  for (let index = 0; index < files; index++) {
    const segments = [{ fileOffset: 0, length: bytes, address: index * (bytes + 512) }];
    const inode = builder.addInode({ ...PLAIN, type: FileType.regular, size: bytes, segments });
    builder.addName(0, Buffer.from(`file-${index}`), inode);
  }
  return builder.finish();
}

function request(tree: FileTree, sizeGib: number | "auto" = "auto"): DiskLayoutRequest {
  const image = {
    source: "oci:x",
    names: ["host/x:1"],
    target: {
      ...descriptor,
      digest: sha256(Buffer.from("manifest")),
      mediaType: "application/vnd.oci.image.manifest.v1+json",
    },
    indexes: [],
    manifest: { ...descriptor, digest: sha256(Buffer.from("manifest")) },
    config: { ...descriptor, digest: sha256(Buffer.from("config")) },
    layers: [{ descriptor, diffID: DIGEST }],
    created: 1_700_000_000,
    repository: null,
  };
  const platform = { os: "linux", architecture: "amd64" };
  const plan = makePlan([image], { platform, snapshotter: "overlayfs", pinned: true, blobs: true });
  const target = DISK_TARGETS.bottlerocket;
  const databases = { metaDatabase: Buffer.alloc(20_000), snapshotDatabase: Buffer.alloc(20_000) };
  return {
    plan,
    target,
    skeleton: diskSkeleton(plan, target, { selinux: true, ...databases, warmBytes: 0 }),
    selinux: true,
    trees: new Map([[1, tree]]),
    hot: [],
    sizeGib,
    identity: identityOf(DIGEST),
    former: null,
  };
}

test("a size that is too small names the least one, and that one does", () => {
  const tree = treeOf(1, 1100 * MiB);
  assert.throws(() => layoutDisk(request(tree, 1)), {
    code: "HS_EXT4_FULL",
    message: /a disk of 1 GiB is too small for these images: the least is 2 GiB/,
  });
  assert.equal(layoutDisk(request(tree, 2)).diskSize, 2 * GiB);
});

test("auto is the least size with room for the node's own first files", () => {
  assert.equal(layoutDisk(request(treeOf(1, MiB))).diskSize, GiB);
  // 1 GiB has 64 MiB of journal
  const nearly = layoutDisk(request(treeOf(1, 885 * MiB)));
  assert.equal(nearly.diskSize, 2 * GiB);
  const { blocks } = nearly.ext4.geometry;
  const used = nearly.ext4.used.reduce((sum, { start, end }) => sum + end - start, 0);
  assert.ok((blocks - used) * 4096 >= 64 * MiB);
});

test("every disk has a journal that growing to 1 TiB does not outgrow, and inodes to spare", () => {
  const { ext4 } = layoutDisk(request(treeOf(70_000, 10)));
  const { journal, reservedDescBlocks, descBlocks, groups, inodesPerGroup } = ext4.geometry;
  assert.equal(journal.end - journal.start, 16_384);
  assert.equal(reservedDescBlocks + descBlocks, 128);
  assert.ok(groups * inodesPerGroup >= 70_000 * 1.25);
});

test("regions begin on 512 KiB of the disk and do not meet; a layer's rows ascend in tar and on the disk", () => {
  const tree = treeOf(300, 5000);
  const wanted = request(tree);
  const layout = layoutDisk(wanted);
  const { stores, records, blob, snapshot } = layout.placeOf;
  const places = [layout.placeOf.rest, stores, records, blob(DIGEST)!, snapshot(1)].sort(
    (a, b) => a.startBlock - b.startBlock,
  );
  for (const [index, place] of places.entries()) {
    assert.equal((layout.base + place.startBlock * 4096) % (512 * 1024), 0);
    const next = places[index + 1];
    if (next !== undefined) assert.ok(place.startBlock + place.blockCount <= next.startBlock);
  }
  const rows = layout.snapshotRows(wanted.plan.snapshots[0]!);
  assert.equal(rows.length.length, 300);
  for (let row = 1; row < 300; row++) {
    assert.equal(rows.address[row], row * 5512);
    assert.equal(rows.offset[row], rows.offset[row - 1]! + 8192);
  }
  const region = snapshot(1);
  assert.ok(rows.offset[0]! >= MiB + region.startBlock * 4096);
});

/** What a later build would read of the manifest of this layout. */
function formerOf(layout: ReturnType<typeof layoutDisk>, wanted: DiskLayoutRequest): FormerVolume {
  const { rest, stores, records } = layout.placeOf;
  const [snapshot] = wanted.plan.snapshots;
  return {
    path: "disk.img.json",
    target: "bottlerocket",
    platform: "linux/amd64",
    snapshotter: "overlayfs",
    plan: DIGEST,
    digest: "",
    previous: null,
    size: layout.diskSize,
    time: wanted.plan.time,
    sequence: 1,
    uuid: Buffer.from(layout.identity.uuid).toString("hex"),
    hashSeed: Buffer.from(layout.identity.hashSeed).toString("hex"),
    diskGuid: layout.identity.diskGuid,
    inodesPerGroup: layout.ext4.geometry.inodesPerGroup,
    layers: [{ ...snapshot!, lowest: true, place: layout.placeOf.snapshot(1) }],
    blobs: new Map([[DIGEST, layout.placeOf.blob(DIGEST)!]]),
    regions: { rest, stores, records },
  };
}

test("after a former disk: the same again; what has outgrown its place moves alone; what has outgrown the disk is placed anew", () => {
  const first = request(treeOf(300, 5000));
  const layout = layoutDisk(first);
  const former = formerOf(layout, first);
  const again = layoutDisk({ ...first, former });
  assert.deepEqual(again.followed, { kept: true, moved: 0 });
  assert.deepEqual(again.placeOf.snapshot(1), layout.placeOf.snapshot(1));

  const grown = layoutDisk({ ...request(treeOf(400, 5000)), former });
  assert.deepEqual(grown.followed, { kept: true, moved: 1 });
  assert.ok(grown.placeOf.snapshot(1).inodeCount > layout.placeOf.snapshot(1).inodeCount);
  assert.deepEqual(grown.placeOf.blob(DIGEST), layout.placeOf.blob(DIGEST));
  assert.deepEqual(grown.identity, layout.identity);

  const large = layoutDisk({ ...request(treeOf(1, 1100 * MiB)), former });
  assert.ok(large.followed?.kept === false && /do not fit/.test(large.followed.reason), JSON.stringify(large.followed));
  assert.equal(large.diskSize, 2 * GiB);
});

test("a former place that no file system has is given up, not believed", () => {
  const first = request(treeOf(300, 5000));
  const former = formerOf(layoutDisk(first), first);
  const far = { startBlock: 2 ** 40, blockCount: 128, firstInode: 4097, inodeCount: 400 };
  const many = { ...former.layers[0]!.place, inodeCount: 2 ** 40 };
  for (const place of [far, many]) {
    const layout = layoutDisk({ ...first, former: { ...former, layers: [{ ...former.layers[0]!, place }] } });
    assert.equal(layout.diskSize, GiB);
    assert.ok(layout.placeOf.snapshot(1).startBlock < 2 ** 18);
  }
  assert.equal(layoutDisk({ ...first, former: { ...former, inodesPerGroup: 7 } }).followed?.kept, false);
});

test("whatever places a manifest names: all regions lie apart on a disk of whole GiB", () => {
  const wanted = request(treeOf(60, 5000));
  const before = formerOf(layoutDisk(wanted), wanted);
  const gap = fc.integer({ min: 0, max: 900 });
  const slot = fc.record({ gap, blocks: fc.nat(300), inodeGap: fc.nat(5000), inodes: fc.nat(200) });
  fc.assert(
    fc.property(fc.array(slot, { minLength: 5, maxLength: 5 }), (slots) => {
      let block = 0;
      let inode = 12;
      const places = slots.map(({ gap: skip, blocks, inodeGap, inodes }) => {
        const place = {
          startBlock: block + skip * 128,
          blockCount: blocks * 8,
          firstInode: inode + inodeGap,
          inodeCount: inodes,
        };
        block = Math.ceil((place.startBlock + place.blockCount) / 128) * 128;
        inode = place.firstInode + inodes;
        return place;
      }) as [RegionPlace, RegionPlace, RegionPlace, RegionPlace, RegionPlace];
      const [rest, stores, records, blob, snapshot] = places;
      const former = {
        ...before,
        regions: { rest, stores, records },
        blobs: new Map([[DIGEST, blob]]),
        layers: [{ ...before.layers[0]!, place: snapshot }],
      };
      const layout = layoutDisk({ ...wanted, former });
      assert.equal(layout.diskSize % GiB, 0);
      const used = layout.ext4.regions.map(({ place }) => place).sort((a, b) => a.startBlock - b.startBlock);
      for (const [index, place] of used.entries()) {
        const next = used[index + 1];
        if (next !== undefined)
          assert.ok(place.startBlock + place.blockCount <= next.startBlock || place.blockCount === 0);
      }
      const numbers = new Set(layout.ext4.inodeOf);
      assert.equal(numbers.size, layout.ext4.tree.inodeCount);
    }),
    { numRuns: 100 },
  );
});

test("identities are UUIDs of their own kind, and follow from the plan alone", () => {
  const one = identityOf(DIGEST);
  assert.deepEqual(one, identityOf(DIGEST));
  assert.notDeepEqual(one, identityOf(sha256(Buffer.from("y"))));
  for (const text of [uuidText(one.uuid), uuidText(one.hashSeed), one.diskGuid]) {
    assert.match(text, /^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  }
});
