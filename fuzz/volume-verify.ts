/** Fuzzers of `volume verify` and `volume diff`: disks whose inodes and databases say anything, with every checksum right. Whatever they say, there is an answer, soon; harm to them is noticed. */

import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FileType } from "../src/erofs/file-tree.ts";
import { diffVolumes } from "../src/volume/diff/diff.ts";
import type { Ext4Inode } from "../src/volume/ext4/read.ts";
import { parseVolumeDocument } from "../src/volume/provenance.ts";
import { verifyVolume } from "../src/volume/verify/verify.ts";
import { dropDigests } from "../test/suites/volume-harm.ts";
import { Ext4Patcher } from "../test/tools/ext4-patcher.ts";
import { makeVolume, TINY_SOURCE } from "../test/tools/volumes.ts";
import { type Fuzzer, mutate, type Random, tolerated, toleratedLater } from "./fuzzer.ts";

interface Disk {
  readonly path: string;
  readonly patcher: Ext4Patcher;
  readonly inodes: readonly Ext4Inode[];
  /** Of containerd's two. */
  readonly databases: readonly Ext4Inode[];
}

let made: Promise<Disk> | undefined;

/** Built once; each round undoes what it did. */
async function makeDisk(): Promise<Disk> {
  const folder = mkdtempSync(join(tmpdir(), "headstart-fuzz-"));
  process.once("exit", () => rmSync(folder, { recursive: true }));
  const path = join(folder, "disk.img");
  await makeVolume(path, [TINY_SOURCE], { layout: "al2023" });
  dropDigests(path);
  const patcher = new Ext4Patcher(path);
  const inodes: Ext4Inode[] = [];
  const databases: Ext4Inode[] = [];
  patcher.reader.walk({
    inode: (inode) => inodes.push(inode),
    name(_directory, name, inode) {
      if (Buffer.from(name).toString("latin1").endsWith(".db")) databases.push(inode);
    },
  });
  return { path, patcher, inodes, databases };
}

function damage({ patcher, inodes, databases }: Disk, random: Random): void {
  for (let count = 1 + random.below(4); count > 0; count--) {
    if (random.below(2) === 0) {
      const { number, type } = random.pick(inodes);
      patcher.inode(number, (view, at) => {
        view.setUint8(random.below(at.i_checksum_lo), random.below(256));
        if (type === FileType.regular && random.below(3) === 0)
          view.setUint32(at.i_size_high, random.below(4096), true);
      });
    } else {
      const inode = random.pick(databases);
      const length = 1 + random.below(8);
      const bytes = Uint8Array.from({ length }, () => random.below(256));
      patcher.content(inode, random.below(inode.size - length), bytes);
    }
  }
}

export const VOLUME_VERIFY_FUZZERS: { readonly [name: string]: Fuzzer } = {
  "volume.verify": {
    async round(random) {
      made ??= makeDisk();
      const disk = await made;
      const { path } = disk;
      const { signal } = new AbortController();
      damage(disk, random);
      try {
        const found = await toleratedLater(() => verifyVolume({ path, sources: [], signal }));
        assert.ok(found !== null, "a disk of ours is always judged");
        assert.equal(found.ok, found.differenceCount === 0);
        await toleratedLater(() => diffVolumes({ a: path, b: path, signal }));
      } finally {
        disk.patcher.undo();
      }
    },
  },
  "volume.provenance": {
    round(random) {
      const digest = `sha256:${"0".repeat(64)}`;
      const ids = { snapshotId: 1, backendName: "k8s.io/1/x", blobBytes: 1, region: [1, 2], inodes: [1, 2] };
      const layer = { digest, diffID: digest, chainID: digest, ...ids };
      const text = JSON.stringify({
        schema: "headstart.volume/1",
        ...{ target: "al2023", platform: "linux/amd64", snapshotter: "overlayfs", size: 1, snapshotSequence: 1 },
        images: [
          { refs: ["a"], digest, mediaType: "x", manifest: digest, config: digest, pinned: true, layers: [layer] },
        ],
        options: { blobs: true, pinned: true, time: 1 },
        blocks: { size: 524_288, sha256: { 1: "0".repeat(64) }, linear: "", unused: [[1, 2]] },
      });
      parseVolumeDocument(Buffer.from(text), "x");
      tolerated(() => parseVolumeDocument(mutate(Buffer.from(text), random), "x"));
    },
  },
};
