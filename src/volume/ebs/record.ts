/** PATH.snapshot.json: what was pushed, or pulled, as which snapshot. The next push of a successor reads it as its parent's description (parent.ts). */

import { writeFileDurably } from "../../base/files.ts";
import type { SnapshotStatus } from "./api.ts";
import { ascending, BLOCK_BYTES, type BlockMap, contentDigest, linearChecksum } from "./blocks.ts";

const RECORD_SCHEMA = "headstart.snapshot/1";

export interface SnapshotRecord {
  readonly snapshot: string;
  readonly status: SnapshotStatus;
  readonly parent: string | null;
  readonly region: string;
  readonly sizeBytes: number;
  readonly volumeSizeGiB: number;
  readonly blocks: BlockMap;
}

export function recordPath(path: string): string {
  return `${path}.snapshot.json`;
}

/** Beside the volume `path`. */
export function writeRecord(path: string, fields: SnapshotRecord): void {
  const { snapshot: id, status, parent, region, sizeBytes, volumeSizeGiB, blocks } = fields;
  const record = {
    schema: RECORD_SCHEMA,
    snapshot: { id, status, parent, region },
    size: sizeBytes,
    volumeSizeGiB,
    content: contentDigest(blocks),
    blocks: {
      size: BLOCK_BYTES,
      sha256: Object.fromEntries(ascending(blocks).map((index) => [index, blocks.get(index)!])),
      linear: linearChecksum(blocks),
    },
  };
  writeFileDurably(recordPath(path), `${JSON.stringify(record)}\n`, 0o644);
}
