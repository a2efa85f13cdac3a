/** A zTOC for people: what it says, and which spans each file needs. */

import type { Digest } from "../../base/digest.ts";
import { lastAtMost } from "../../base/ranges.ts";
import { entryAt } from "./entries.ts";
import { FlatBuffer } from "./flatbuffer.ts";
import { readZtoc } from "./read.ts";
import { spanUnits } from "./units.ts";

export interface ZtocFacts {
  readonly buildTool: string;
  readonly compressedSize: number;
  readonly uncompressedSize: number;
  readonly compression: string;
  readonly spans: number;
  readonly files: number;
  /** Regular files whose data lie in more than one span. */
  readonly filesInSeveralSpans: number;
  readonly entries?: readonly {
    readonly name: string;
    readonly type: string;
    readonly offset: number;
    readonly size: number;
    readonly startSpan: number;
    readonly endSpan: number;
  }[];
}

/** Throws what `readZtoc` throws. */
export function inspectZtoc(bytes: Uint8Array, what: string, options: { entries: boolean }): ZtocFacts {
  const ztoc = readZtoc(bytes, what);
  const buffer = new FlatBuffer(bytes, what, { trusted: true });
  // the digest names the blob only; nothing is fetched here
  const units = spanUnits(ztoc.spans, `sha256:${"0".repeat(64)}` as Digest);
  const spanOf = (address: number) => Math.max(0, lastAtMost(units.pieceAddress, units.pieceCount, address));
  let several = 0;
  const listed: NonNullable<ZtocFacts["entries"]>[number][] = [];
  for (let index = 0; index < ztoc.entries.count; index++) {
    const entry = entryAt(buffer, ztoc.entries, index);
    const size = ztoc.entries.dataSize[index]!;
    const startSpan = spanOf(entry.dataOffset);
    const endSpan = size === 0 ? startSpan : spanOf(entry.dataOffset + size - 1);
    if (endSpan > startSpan) several++;
    if (options.entries)
      listed.push({
        name: Buffer.from(entry.name).toString(),
        type: Buffer.from(entry.type).toString(),
        offset: entry.dataOffset,
        size,
        startSpan,
        endSpan,
      });
  }
  return {
    buildTool: ztoc.buildTool,
    compressedSize: ztoc.compressedSize,
    uncompressedSize: ztoc.uncompressedSize,
    compression: ztoc.spans.compression,
    spans: ztoc.spans.count,
    files: ztoc.entries.count,
    filesInSeveralSpans: several,
    ...(options.entries && { entries: listed }),
  };
}
