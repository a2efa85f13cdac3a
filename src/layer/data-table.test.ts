import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import fc from "fast-check";
import { mergedGolden } from "../../test/suites/nydus-merged.ts";
import { isHeadstartError } from "../base/errors.ts";
import { dataTableDigest, readDataTable, writeDataTable } from "./data-table.ts";
import { agrees, noDigests, readKnownDigests, unknownOf, withDigests, writeKnownDigests } from "./known-digests.ts";

const folder = mkdtempSync(join(tmpdir(), "data-table-"));
after(() => rmSync(folder, { recursive: true }));

test("a table is read back as it was written, keys and dictionaries included, and has the same digest", async () => {
  const digests = new Set<string>();
  for (const variant of ["v6-zran-multi", "v6-zstd-1m-encrypted-upper-layers", "v6-zstd-1m-batch", "v6-zstd-1m"]) {
    for (const blob of mergedGolden(variant).blobs) {
      const digest = dataTableDigest(blob!.table);
      const path = join(folder, "index");
      await writeDataTable(path, blob!.table);
      assert.deepEqual(await readDataTable(path, digest), structuredClone(blob!.table));
      digests.add(digest);
    }
  }
  assert.equal(digests.size, 11, "each blob has another table");
});

test("a table of another digest, and a damaged one, are refused", async () => {
  const [first, second] = mergedGolden("v6-zstd-1m").blobs.map((blob) => blob!.table);
  const path = join(folder, "index");
  await writeDataTable(path, first!);
  const digest = dataTableDigest(first!);
  await assert.rejects(() => readDataTable(path, dataTableDigest(second!)), /HS_DIGEST_MISMATCH/);
  const bytes = readFileSync(path);
  await fc.assert(
    fc.asyncProperty(fc.nat({ max: bytes.byteLength - 1 }), fc.integer({ min: 1, max: 255 }), async (at, change) => {
      const damaged = Uint8Array.from(bytes);
      damaged[at]! ^= change;
      writeFileSync(path, damaged);
      await assert.rejects(
        () => readDataTable(path, digest),
        (error) => isHeadstartError(error, "HS_DIGEST_MISMATCH", "HS_MALFORMED", "HS_TRUNCATED", "HS_LIMIT"),
      );
    }),
    { numRuns: 60 },
  );
});

test("known digests grow by what images bind, and never change", async () => {
  const bound = (pieces: number[], fill: number) => ({
    algorithm: "blake3" as const,
    pieces: Uint32Array.from(pieces),
    digests: new Uint8Array(pieces.length * 32).map((_, index) => fill + pieces[Math.floor(index / 32)]!),
  });
  const first = withDigests(noDigests(10, "blake3"), bound([1, 4], 0));
  assert.equal(agrees(first, bound([4, 7], 0)), true);
  assert.equal(agrees(first, bound([4, 7], 1)), false);
  assert.equal(agrees(first, bound([7, 9], 1)), true);
  assert.equal(agrees(first, { ...bound([7], 0), algorithm: "sha256" }), false);
  assert.deepEqual(unknownOf(first, bound([1, 4, 7], 0)), [2]);
  const second = withDigests(first, bound([4, 7], 0));
  assert.equal(first.known.has(7), false, "a copy");
  const path = join(folder, "digests");
  await writeKnownDigests(path, second);
  const again = await readKnownDigests(path, 10);
  assert.deepEqual(again.digests, second.digests);
  assert.deepEqual(again.known.bytes, second.known.bytes);
  await assert.rejects(() => readKnownDigests(path, 100), /HS_MALFORMED/);
});
