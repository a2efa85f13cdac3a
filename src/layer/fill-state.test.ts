import assert from "node:assert/strict";
import { closeSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { noise } from "../../test/fakes/plain-layer.ts";
import { readFully } from "../base/files.ts";
import { BLOCK_SIZE, makePlacement } from "../erofs/placement.ts";
import type { UnitTable } from "../formats/format.ts";
import { FillState } from "./fill-state.ts";
import { makeRestMap } from "./rest.ts";
import { Scatterer } from "./scatter.ts";
import { streamBack } from "./stream-back.ts";
import { checkUnits, groupPieces } from "./unit-index.ts";

/** Units whose decoded bytes follow each other in the stream, in the order of `lengths`, but numbered as `shuffle` says. */
function tableOf(lengths: readonly number[], shuffle: readonly number[]): UnitTable {
  const count = lengths.length;
  const f64 = (values: readonly number[]) => {
    const array = new Float64Array(new SharedArrayBuffer(values.length * 8));
    array.set(values);
    return array;
  };
  const order = [...lengths.keys()].sort((a, b) => shuffle[a]! - shuffle[b]! || a - b);
  const numberOf = new Map(order.map((piece, unit) => [piece, unit]));
  const addresses: number[] = [];
  lengths.reduce((address, length) => {
    addresses.push(address);
    return address + length;
  }, 0);
  return {
    blobs: [{ digest: `sha256:${"0".repeat(64)}` as never, size: 1 + count }],
    unitCount: count,
    unitBlob: new Uint16Array(count),
    unitStart: f64(lengths.map((_, index) => index)),
    unitEnd: f64(lengths.map((_, index) => index + 1)),
    unitDecodedLength: f64(order.map((piece) => lengths[piece]!)),
    unitDigest: new Uint8Array(count * 32),
    pieceCount: count,
    pieceAddress: f64(addresses),
    pieceLength: f64(lengths),
    pieceUnit: Uint32Array.from(lengths.keys(), (piece) => numberOf.get(piece)!),
    pieceOffset: f64(lengths.map(() => 0)),
    pieceDigest: null,
    pieceDigestAlgorithm: null,
  };
}

interface File {
  readonly gap: number;
  readonly length: number;
  /** Bytes of the file that are a hole in front of its data. */
  readonly hole: number;
}

/** A stream of gaps (headers, padding) and files, cut into units at arbitrary places. */
const layers = fc
  .record({
    files: fc.array(
      fc.record<File>({
        gap: fc.integer({ min: 0, max: 6000 }),
        length: fc.oneof(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 1, max: 20_000 })),
        hole: fc.constantFrom(0, 0, 0, 100, 5000),
      }),
      { minLength: 1, maxLength: 25 },
    ),
    cuts: fc.array(fc.integer({ min: 1, max: 9000 }), { minLength: 1, maxLength: 30 }),
    shuffle: fc.array(fc.nat(1000), { minLength: 200, maxLength: 200 }),
    shared: fc.boolean(),
  })
  .map(({ files, cuts, shuffle, shared }) => {
    const rows = { address: [] as number[], length: [] as number[], fileOffset: [] as number[] };
    let address = 0;
    let place = 2 * BLOCK_SIZE;
    const put = (from: number, file: File) => {
      rows.address.push(from);
      rows.length.push(file.length);
      rows.fileOffset.push(place + file.hole);
      place += Math.ceil((file.hole + file.length) / BLOCK_SIZE) * BLOCK_SIZE;
    };
    for (const file of files) {
      address += file.gap;
      put(address, file);
      address += file.length;
    }
    // a second file over the bytes of the first
    if (shared) put(files[0]!.gap, files[0]!);
    const streamLength = address + 1024;
    const lengths: number[] = [];
    for (let at = 0, index = 0; at < streamLength; index++) {
      const cut = Math.max(cuts[index % cuts.length]!, Math.ceil(streamLength / 60));
      const length = Math.min(cut * (1 + (index % 3)), streamLength - at);
      lengths.push(length);
      at += length;
    }
    const placement = makePlacement({
      address: Float64Array.from(rows.address),
      length: Float64Array.from(rows.length),
      fileOffset: Float64Array.from(rows.fileOffset),
    });
    const table = tableOf(
      lengths,
      lengths.map((_, index) => shuffle[index % shuffle.length]!),
    );
    return { placement, table, streamLength, imageSize: place };
  });

type Layer = ReturnType<typeof layers.generate>["value"];

/** What the head of fill-state.ts says, without any search or memory. */
function readable(layer: Layer, filled: ReadonlySet<number>, headers: boolean): boolean[] {
  const { placement, table } = layer;
  /** Addresses of [start, end) that are not there. */
  const missing = (start: number, end: number): [number, number][] => {
    const found: [number, number][] = [];
    for (let piece = 0; piece < table.pieceCount; piece++) {
      const from = Math.max(start, table.pieceAddress[piece]!);
      const to = Math.min(end, table.pieceAddress[piece]! + table.pieceLength[piece]!);
      if (from < to && !filled.has(table.pieceUnit[piece]!)) found.push([from, to]);
    }
    return found;
  };
  const blocks = new Array<boolean>(layer.imageSize / BLOCK_SIZE).fill(true);
  for (let row = 0; row < placement.rowCount; row++) {
    const start = placement.address[row]!;
    const end = start + placement.length[row]!;
    const before = row === 0 ? 0 : placement.addressEnd[row - 1]!;
    const headerStart = Math.max(Math.min(before, start), start - 4096);
    const unchecked = headers && missing(headerStart, start).length > 0;
    for (const [from, to] of unchecked ? [[start, end] as const] : missing(start, end)) {
      const shift = placement.fileOffset[row]! - start;
      blocks.fill(false, Math.floor((from + shift) / BLOCK_SIZE), Math.ceil((to + shift) / BLOCK_SIZE));
    }
  }
  return blocks;
}

test("in whatever order units come, exactly those blocks can be read whose bytes and headers are there", () => {
  fc.assert(
    fc.property(layers, fc.boolean(), (layer, headers) => {
      const { table, placement, imageSize, streamLength } = layer;
      checkUnits(table, placement, streamLength);
      const state = new FillState({ table, pieces: groupPieces(table), placement, imageSize, headers });
      const filled = new Set<number>();
      for (let unit = 0; unit <= table.unitCount; unit++) {
        const want = readable(layer, filled, headers);
        for (const [block, readableNow] of want.entries()) {
          assert.equal(state.fillMap.has(block), readableNow, `block ${block} with units ${[...filled]}`);
          const missing = state.unitsFor(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE);
          assert.equal(missing.length === 0, readableNow);
          assert.ok(missing.every((needed) => !filled.has(needed)));
        }
        if (unit < table.unitCount) {
          state.markUnit(unit);
          state.markUnit(unit);
          filled.add(unit);
        }
      }
      assert.ok(state.complete);
    }),
    { numRuns: 40, interruptAfterTimeLimit: 10_000 },
  );
});

test("scattered units read back as the stream they were, whatever the placement", () => {
  const paths = ["image", "rest"].map((name) => join(tmpdir(), `scatter-test-${process.pid}-${name}`));
  fc.assert(
    fc.property(layers, fc.nat(), ({ table, placement, streamLength, imageSize }, seed) => {
      const [imageFd, restFd] = paths.map((path) => openSync(path, "w+")) as [number, number];
      try {
        const stream = noise(streamLength, seed);
        const rest = makeRestMap(placement, streamLength);
        const pieces = groupPieces(table);
        const scatterer = new Scatterer();
        for (let unit = 0; unit < table.unitCount; unit++) {
          const start = table.pieceAddress[pieces.pieces[pieces.start[unit]!]!]!;
          const decoded = stream.subarray(start, start + table.unitDecodedLength[unit]!);
          scatterer.scatter({ imageFd, restFd, units: table, pieces, placement, rest }, unit, decoded);
        }
        const parts: Buffer[] = [];
        streamBack({ imageFd, restFd, placement, rest, streamLength }, (bytes) => parts.push(Buffer.from(bytes)));
        assert.ok(Buffer.concat(parts).equals(stream));
        const image = new Uint8Array(imageSize);
        readFully(imageFd, image, 0);
        const used = new Uint8Array(imageSize);
        for (let row = 0; row < placement.rowCount; row++) {
          const offset = placement.fileOffset[row]!;
          used.fill(1, offset, offset + placement.length[row]!);
        }
        assert.ok(
          image.every((byte, at) => used[at] === 1 || byte === 0),
          "what no row covers is zeros",
        );
      } finally {
        closeSync(imageFd);
        closeSync(restFd);
      }
    }),
    { numRuns: 40, interruptAfterTimeLimit: 10_000 },
  );
  for (const path of paths) rmSync(path, { force: true });
});
