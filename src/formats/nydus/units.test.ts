/** Units of Nydus images and their decoding: what lies ends in an error, never in wrong bytes. */

import assert from "node:assert/strict";
import { createCipheriv } from "node:crypto";
import { test } from "node:test";
import { chunkInfos, nydusBlob, nydusBootstrap } from "../../../test/suites/golden-nydus.ts";
import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { ADDRESS_SPACE } from "../../erofs/file-tree.ts";
import { decoderFor } from "../all.ts";
import type { UnitTable } from "../format.ts";
import { pieceHash, verifyPiece } from "../piece-hash.ts";
import { readBootstrap } from "./bootstrap.ts";
import { type NydusDecodeTable, nydusDecoder } from "./decode.ts";
import { lz4Decompress } from "./lz4.ts";
import { nydusUnits } from "./units.ts";

function open(variant: string) {
  const bootstrap = readBootstrap(nydusBootstrap(variant), variant);
  const blobs = bootstrap.blobs.map((blob) => nydusBlob(blob.id)!);
  const infos = chunkInfos(bootstrap);
  const sizes = blobs.map((blob) => blob.byteLength);
  return { bootstrap, blobs, infos, sizes, ...nydusUnits(bootstrap, infos, sizes, variant) };
}

test("pieces ascend, do not overlap, lie in their units, and units lie in their blobs", () => {
  for (const variant of ["v6-zstd-1m", "v6-zstd-1m-batch", "v6-zran", "v6-zran-multi", "v6-chunkdict"]) {
    const { units } = open(variant);
    let end = 0;
    for (let piece = 0; piece < units.pieceCount; piece++) {
      assert.ok(units.pieceAddress[piece]! >= end, variant);
      end = units.pieceAddress[piece]! + units.pieceLength[piece]!;
      const unit = units.pieceUnit[piece]!;
      assert.ok(units.pieceOffset[piece]! + units.pieceLength[piece]! <= units.unitDecodedLength[unit]!);
      assert.equal(Math.floor(units.pieceAddress[piece]! / ADDRESS_SPACE), units.unitBlob[unit]);
    }
    for (let unit = 0; unit < units.unitCount; unit++) {
      assert.ok(units.unitStart[unit]! < units.unitEnd[unit]!);
      assert.ok(units.unitEnd[unit]! <= units.blobs[units.unitBlob[unit]!]!.size);
    }
  }
});

test("small chunks share a batch, and the chunks of a layer share zran contexts", () => {
  assert.equal(open("v6-zstd-1m").units.unitCount, 341);
  assert.equal(open("v6-zstd-1m-batch").units.unitCount, 8);
  assert.equal(open("v6-zran").units.unitCount, 7);
});

test("a flipped byte anywhere in a blob ends in an error of the unit that holds it", async () => {
  for (const variant of ["v6-zstd-1m-batch", "v6-zran", "v6-lz4-64k-sha256", "v6-zstd-1m-encrypted-upper-layers"]) {
    const { units, decode, blobs } = open(variant);
    const digest = await pieceHash(units.pieceDigestAlgorithm!);
    const decoder = decoderFor(decode, units);
    for (let unit = 0; unit < Math.min(units.unitCount, 12); unit++) {
      const stored = Buffer.from(blobs[units.unitBlob[unit]!]!.subarray(units.unitStart[unit], units.unitEnd[unit]));
      const piece = units.pieceUnit.indexOf(unit);
      const readPiece = (bytes: Uint8Array) => {
        const decoded = decoder.decode(unit, bytes);
        const start = units.pieceOffset[piece]!;
        verifyPiece(units, piece, decoded.subarray(start, start + units.pieceLength[piece]!), digest, variant);
      };
      readPiece(stored);
      // the first byte may be one of a gzip context of which only some bits count
      const at = Math.min(Math.floor(stored.length / 3), stored.length - 1);
      stored[at]! ^= 0x55;
      let failed = false;
      for (let each = piece; each >= 0; each = units.pieceUnit.indexOf(unit, each + 1)) {
        try {
          const decoded = decoder.decode(unit, stored);
          const start = units.pieceOffset[each]!;
          verifyPiece(units, each, decoded.subarray(start, start + units.pieceLength[each]!), digest, variant);
        } catch (error) {
          assert.ok(isHeadstartError(error, "HS_UNIT_DIGEST", "HS_UNIT_DECODE"), String(error));
          failed = true;
          break;
        }
      }
      // chunks that no file uses have no piece: only they may be wrong
      if (units.pieceUnit.indexOf(unit, piece + 1) < 0) assert.ok(failed, `${variant}: unit ${unit}`);
    }
  }
});

test("a stored range that is cut decodes to an error", () => {
  for (const variant of ["v6-zstd-1m", "v6-zran", "v6-lz4-64k-sha256"]) {
    const { units, decode, blobs } = open(variant);
    const decoder = decoderFor(decode, units);
    const unit = units.unitCount - 1;
    const stored = blobs[units.unitBlob[unit]!]!.subarray(units.unitStart[unit], units.unitEnd[unit]);
    for (const length of [0, 1, Math.floor(stored.length / 2)])
      assert.throws(() => decoder.decode(unit, stored.subarray(0, length)), { code: "HS_UNIT_DECODE" }, variant);
  }
});

test("blobs that are shorter than their chunks say are refused", () => {
  const { bootstrap, infos, sizes } = open("v6-zstd-1m");
  assert.throws(() => nydusUnits(bootstrap, infos, [sizes[0]!, 1000, sizes[2]!], "here"), { code: "HS_NYDUS_INVALID" });
});

test("an image without chunk digests is refused when contents are wanted: nothing binds its data", () => {
  const { bootstrap, infos, sizes } = open("v6-zstd-1m");
  const record = new Int32Array(bootstrap.uses.count).fill(-1);
  const bare = { ...bootstrap, uses: { ...bootstrap.uses, record } };
  assert.throws(() => nydusUnits(bare, infos, sizes, "here"), { code: "HS_FORMAT_UNSUPPORTED" });
});

test("a chunk array that disagrees with the tree is refused", () => {
  const { bootstrap, infos, sizes } = open("v6-zstd-1m");
  for (const field of ["offset", "size"] as const) {
    const info = infos[1]!;
    const changed = info[field].slice();
    changed[bootstrap.uses.chunk[20]!]! += 1;
    const lying = [infos[0]!, { ...info, [field]: changed }, infos[2]!];
    assert.throws(() => nydusUnits(bootstrap, lying, sizes, "here"), { code: "HS_NYDUS_INVALID" }, field);
  }
});

test("LZ4 blocks decode to exactly their length or not at all", () => {
  // a literal run of 5
  const block = Buffer.from([0x50, ...Buffer.from("hello")]);
  assert.equal(Buffer.from(lz4Decompress(block, 5, "here")).toString(), "hello");
  for (const size of [4, 6, 0])
    assert.throws(() => lz4Decompress(block, size, "here"), { code: "HS_UNIT_DECODE" }, `${size} bytes`);
  assert.throws(() => lz4Decompress(Buffer.from([0xff, 0xff]), 100, "here"), { code: "HS_UNIT_DECODE" });
});

/** One unit, stored as it is in an encrypted blob. */
function encryptedUnit(plain: Uint8Array, size: number): Uint8Array {
  const key = Buffer.from(Array.from({ length: 32 }, (_, index) => index));
  const iv = Buffer.alloc(16, 7);
  const units = { unitDecodedLength: [size], unitBlob: [0] } as unknown as UnitTable;
  const table = { codec: "nydus-chunks", unitCodec: [0], ciphers: [{ key, iv }] } as unknown as NydusDecodeTable;
  const cipher = createCipheriv("aes-128-xts", key, iv);
  return nydusDecoder(table, units).decode(0, Buffer.concat([cipher.update(plain), cipher.final()]));
}

test("padding of small encrypted chunks is taken off where the length says so, and only there", () => {
  const short = Buffer.concat([Buffer.from("hello"), Buffer.alloc(11, 11), Buffer.from([0x78, 0x90])]);
  assert.equal(Buffer.from(encryptedUnit(short, 5)).toString(), "hello");
  // 18 bytes of a file that look the same
  assert.deepEqual(Buffer.from(encryptedUnit(short, 18)), short);
  assert.throws(() => encryptedUnit(short, 6), { code: "HS_UNIT_DECODE" });
});

test("an unknown codec is refused", () => {
  const { units } = open("v6-zran");
  assert.throws(
    () => decoderFor({ codec: "nydus-other" }, units),
    (error) => error instanceof HeadstartError && error.code === "HS_FORMAT_UNSUPPORTED",
  );
});
