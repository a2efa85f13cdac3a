/**
 * A SOCI zTOC as a lazy layer (formats/format.ts): the tree from its table of contents by the rules of tar layers, spans as units, and what decoders need. A
 * zTOC that does not belong to the layer, or that no reader could serve, is an error here: the layer is then pulled eagerly.
 */

import { type Digest, isDigest } from "../../base/digest.ts";
import { HeadstartError } from "../../base/errors.ts";
import { LIMITS } from "../../base/limits.ts";
import { annotation, type Descriptor } from "../../oci/descriptor.ts";
import type { Manifest } from "../../oci/manifest.ts";
import type { FormatAdapter, LayerIdentity, LayerRole, LayerTables, LazyLayer } from "../format.ts";
import { LayerTreeBuilder } from "../tar/apply.ts";
import type { TarEntry } from "../tar/records.ts";
import type { SociDecodeTable } from "./decode.ts";
import { type EntryTable, entryAt, type ZtocEntry } from "./entries.ts";
import { FlatBuffer } from "./flatbuffer.ts";
import { makeStraddleTable, tarType } from "./header-check.ts";
import { prefetchSpans, readPrefetch, readSociIndex } from "./index.ts";
import { SOCI_ANNOTATIONS, SOCI_MEDIA_TYPES } from "./ondisk.ts";
import { readZtoc, shareBytes, type Ztoc } from "./read.ts";
import { decodedEnd, spanUnits } from "./units.ts";

export const sociFormat: FormatAdapter = {
  name: "soci",
  referrerType: SOCI_MEDIA_TYPES.indexV1,
  tableBytesMax: LIMITS.ztocBytes,
  boundIndex,
  readIndex,
  openLayer: ({ identity, role, table, extras }) =>
    openSociLayer({ ztoc: table, layer: identity, role, ...(extras[0] ? { prefetch: extras[0] } : {}) }),
};

/** The v2 index that `soci convert` binds to the manifest (specs/soci.md 1.1, B25). */
function boundIndex(manifest: Manifest): Digest | null {
  const digest = annotation(manifest, SOCI_ANNOTATIONS.indexDigest);
  if (digest === undefined) return null;
  if (isDigest(digest)) return digest;
  throw new HeadstartError("HS_INDEX_INVALID", {
    what: `the manifest's annotation ${SOCI_ANNOTATIONS.indexDigest} is no digest: ${JSON.stringify(digest.slice(0, 200))}`,
  });
}

function readIndex(
  bytes: Uint8Array,
  image: { readonly layers: readonly Descriptor[] },
): ReadonlyMap<Digest, LayerTables> {
  const index = readSociIndex(bytes);
  const tables = new Map<Digest, LayerTables>();
  for (const { digest } of image.layers) {
    const table = index.ztocs.get(digest);
    const prefetch = index.prefetch.get(digest);
    if (table !== undefined) tables.set(digest, { table, extras: prefetch === undefined ? [] : [prefetch] });
  }
  return tables;
}

export interface SociLayerInput {
  /** Bytes whose digest was checked. Over a SharedArrayBuffer they are used as they are, else copied once. */
  readonly ztoc: Uint8Array;
  readonly layer: LayerIdentity;
  readonly role: LayerRole;
  /** A prefetch artifact: a hint, so one that cannot be read is as good as none. */
  readonly prefetch?: Uint8Array;
}

/**
 * Throws HS_INDEX_INVALID, HS_INDEX_MISMATCH (the zTOC of another blob), HS_FORMAT_UNSUPPORTED, HS_LIMIT, and HS_LAYER_REFUSED for entries that containerd's
 * unpack refuses.
 */
export function openSociLayer(input: SociLayerInput): LazyLayer {
  const { layer } = input;
  const what = `zTOC of ${layer.digest}`;
  const ztoc = readZtoc(shareBytes(input.ztoc), what);
  if (ztoc.compressedSize !== layer.size) {
    throw new HeadstartError("HS_INDEX_MISMATCH", {
      what: `${what}: it is about a blob of ${ztoc.compressedSize} bytes, the layer has ${layer.size}`,
    });
  }
  const units = spanUnits(ztoc.spans, layer.digest);
  const streamLength = decodedEnd(units);
  // not their padding: an archive may end without it
  const dataEnd = lastDataEnd(ztoc.entries);
  if (streamLength < dataEnd) {
    throw new HeadstartError("HS_INDEX_INVALID", {
      what: `${what}: its spans end at byte ${streamLength} of the tar, its entries at ${dataEnd}`,
    });
  }
  const builder = new LayerTreeBuilder(input.role, layer.digest);
  for (const entry of tarEntries(ztoc, what)) builder.add(entry);
  const decode: SociDecodeTable = {
    codec: ztoc.spans.compression === "gzip" ? "soci-gzip" : "soci-tar",
    ztoc,
    straddle: makeStraddleTable(ztoc),
  };
  return {
    tree: builder.finish(),
    units,
    decode,
    streamLength,
    prefetchUnits: input.prefetch === undefined ? [] : hintedSpans(input.prefetch, ztoc.spans.count),
  };
}

function lastDataEnd({ count, dataOffset, dataSize }: EntryTable): number {
  return count === 0 ? 0 : dataOffset[count - 1]! + dataSize[count - 1]!;
}

function hintedSpans(bytes: Uint8Array, spanCount: number): number[] {
  try {
    return prefetchSpans(readPrefetch(bytes), spanCount);
  } catch (error) {
    if (error instanceof HeadstartError) return [];
    throw error;
  }
}

/** The entries of the table of contents as a tar reader would have delivered them. Throws HS_INDEX_INVALID for a sparse file (specs/soci.md 2.3). */
export function* tarEntries(ztoc: Ztoc, what: string): Generator<TarEntry> {
  const buffer = new FlatBuffer(ztoc.bytes, what, { trusted: true });
  const { entries } = ztoc;
  for (let index = 0; index < entries.count; index++) {
    const entry = entryAt(buffer, entries, index);
    const pax = paxMap(entry);
    for (const key of pax.keys()) {
      // its size is that of the expanded file, while the tar has a map and pieces: no address would be right
      if (key.startsWith("GNU.sparse."))
        throw buffer.bad(entries.position[index]!, `entry ${index + 1} is a sparse file`);
    }
    const dataSize = entries.dataSize[index]!;
    yield {
      number: index + 1,
      type: tarType(entry.type),
      name: entry.name,
      linkname: entry.linkname,
      mode: entry.mode,
      uid: entry.uid,
      gid: entry.gid,
      uname: entry.uname,
      gname: entry.gname,
      mtimeSeconds: entry.mtime.seconds,
      mtimeNanoseconds: entry.mtime.nanoseconds,
      size: dataSize,
      devMajor: entry.devmajor,
      devMinor: entry.devminor,
      pax,
      headerOffset: entries.headerOffset[index]!,
      dataOffset: entry.dataOffset,
      storedSize: dataSize,
      sparse: null,
    };
  }
}

const NO_PAX: ReadonlyMap<string, Uint8Array> = new Map();

function paxMap(entry: ZtocEntry): ReadonlyMap<string, Uint8Array> {
  if (entry.pax.length === 0) return NO_PAX;
  return new Map(entry.pax.map((record) => [Buffer.from(record.key).toString("latin1"), record.value]));
}
