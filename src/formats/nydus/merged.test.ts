import assert from "node:assert/strict";
import { test } from "node:test";
import { chunkInfos, nydusBlob, nydusBootstrap, nydusVariants } from "../../../test/suites/golden-nydus.ts";
import { isHeadstartError } from "../../base/errors.ts";
import { ADDRESS_SPACE } from "../../erofs/file-tree.ts";
import { decoderFor } from "../all.ts";
import { pieceHash } from "../piece-hash.ts";
import { type NydusBootstrap, readBootstrap } from "./bootstrap.ts";
import { mergedNydus } from "./merged.ts";

const sizesOf = (bootstrap: NydusBootstrap) =>
  bootstrap.blobs.map((blob) => nydusBlob(blob.id)?.byteLength ?? blob.compressedSize);
const golden = (variant: string) => {
  const bootstrap = readBootstrap(nydusBootstrap(variant));
  return { bootstrap, merged: mergedNydus(bootstrap, chunkInfos(bootstrap), sizesOf(bootstrap), variant) };
};

test("a blob's table has all its chunks, and the digests are those of the chunks that the tree uses", async () => {
  for (const variant of ["v6-zstd-1m", "v6-zstd-1m-batch", "v6-zran-multi", "v6-lz4-64k-sha256"]) {
    const { bootstrap, merged } = golden(variant);
    for (const [space, each] of merged.blobs.entries()) {
      const { table, bound, blob } = each!;
      const info = chunkInfos(bootstrap)[space]!;
      assert.equal(table.units.pieceCount, info.count);
      assert.deepEqual([...table.units.pieceAddress], [...info.offset]);
      const stored = nydusBlob(blob.digest.slice(7))!;
      const decoder = decoderFor(table.decode, table.units);
      const digest = await pieceHash(bound.algorithm);
      bound.pieces.forEach((piece, index) => {
        const unit = table.units.pieceUnit[piece]!;
        const decoded = decoder.decode(unit, stored.subarray(table.units.unitStart[unit], table.units.unitEnd[unit]));
        const offset = table.units.pieceOffset[piece]!;
        const got = digest(decoded.subarray(offset, offset + table.units.pieceLength[piece]!));
        assert.deepEqual(Buffer.from(got), Buffer.from(bound.digests.subarray(index * 32, index * 32 + 32)));
      });
    }
  }
});

test("the prefetch list is chunks of the files that the author named, in order", () => {
  const variant = "v6-zstd-1m-prefetch";
  const bootstrap = readBootstrap(nydusBootstrap(variant));
  const whole = readBootstrap(nydusBootstrap("v6-zstd-1m"));
  // its own blobs are left out of the repository: the list alone is taken from it
  const merged = mergedNydus(
    { ...whole, prefetch: bootstrap.prefetch.slice(0, 3) },
    chunkInfos(whole),
    sizesOf(whole),
    variant,
  );
  assert.ok(merged.prefetch.length > 0);
  for (let index = 0; index < merged.prefetch.length; index += 2) {
    const [space, piece] = [merged.prefetch[index]!, merged.prefetch[index + 1]!];
    assert.ok(merged.blobs[space]!.bound.pieces.includes(piece));
  }
});

test("chunks of RAFS v5 are laid on blocks, each where the tree then says", () => {
  const bootstrap = readBootstrap(nydusBootstrap("v5-zstd-1m"));
  const merged = mergedNydus(bootstrap, chunkInfos(bootstrap), sizesOf(bootstrap), "v5");
  for (const each of merged.blobs)
    for (const address of each!.table.units.pieceAddress) assert.equal(address % 4096, 0);
  const { tree } = merged;
  for (let segment = 0; segment < tree.segmentAddress.length; segment++) {
    const space = Math.floor(tree.segmentAddress[segment]! / ADDRESS_SPACE);
    const { units } = merged.blobs[space]!.table;
    const piece = units.pieceAddress.indexOf(tree.segmentAddress[segment]! - space * ADDRESS_SPACE);
    assert.equal(units.pieceLength[piece], tree.segmentLength[segment]);
  }
  assert.equal(Object.keys(nydusVariants["v5-zstd-1m"]!.layers).length, merged.blobs.length);
});

test("chunks without a digest in the bootstrap are refused: nothing binds them", () => {
  const { bootstrap } = golden("v6-none-1m-upper-layers");
  const uses = { ...bootstrap.uses, record: new Int32Array(bootstrap.uses.count).fill(-1) };
  assert.throws(
    () => mergedNydus({ ...bootstrap, uses }, chunkInfos(bootstrap), sizesOf(bootstrap), "x"),
    (error) => isHeadstartError(error, "HS_FORMAT_UNSUPPORTED"),
  );
});
