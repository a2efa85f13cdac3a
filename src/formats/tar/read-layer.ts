/**
 * A whole layer in one pass: blob bytes in, its tree out, with digest, size and diffID checked (specs/layer.md 1.4). For looking into images and for tests; a
 * pull does the same in a worker with LayerDecoder, TarReader and LayerTreeBuilder.
 */

import { createHash, type Hash } from "node:crypto";
import { type DiffID, type Digest, digestAlgorithm } from "../../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import type { FileTree } from "../../erofs/file-tree.ts";
import type { LayerRole } from "../format.ts";
import { LayerTreeBuilder } from "./apply.ts";
import { ContentHasher } from "./content-hash.ts";
import { checkLayerType, type LayerCompression, LayerDecoder } from "./decompress.ts";
import { type TarEntry, TarReader } from "./records.ts";
import { refusal } from "./refusal.ts";

export interface ReadLayerOptions {
  readonly mediaType: string;
  readonly role: LayerRole;
  /** What the manifest and the configuration say; each is checked if given. */
  readonly digest?: Digest | undefined;
  /** Bytes of the blob. */
  readonly size?: number | undefined;
  readonly diffID?: Digest | undefined;
  /** The layers below, lowest first, as they are in this chain: implied directories copy from them. */
  readonly lowers?: readonly FileTree[] | undefined;
  /** Computes the sha256 of every file's content on the way. */
  readonly hashContents?: boolean | undefined;
  /** Stored data of a regular file that the tree may hold: a view, with its place in the uncompressed tar. */
  readonly onData?: ((entry: TarEntry, chunk: Uint8Array, offset: number) => void) | undefined;
}

export interface ReadLayer {
  readonly tree: FileTree;
  readonly digest: Digest;
  /** Bytes of the blob. */
  readonly size: number;
  readonly diffID: DiffID;
  /** Bytes of the uncompressed tar. */
  readonly tarSize: number;
  readonly entries: number;
  readonly compression: LayerCompression;
  /** Sha256 in hex of an inode's content; only with `hashContents`. */
  contentSha256(inode: number): string;
}

/**
 * Throws HS_LAYER_REFUSED, HS_LIMIT; HS_DIGEST_MISMATCH and HS_SIZE_MISMATCH when the blob is not the one that was meant, also where its bytes are nonsense
 * because of that.
 */
export async function readLayerTree(source: AsyncIterable<Uint8Array>, options: ReadLayerOptions): Promise<ReadLayer> {
  const layer = options.digest ?? "(unnamed)";
  checkLayerType(options.mediaType, layer);
  const builder = new LayerTreeBuilder(options.role, layer, options.lowers ? { lowers: options.lowers } : {});
  const hasher = options.hashContents ? new ContentHasher() : null;
  let current: TarEntry | null = null;
  const reader = new TarReader(
    {
      entry(entry) {
        hasher?.end();
        const { dataWanted } = builder.add(entry);
        current = entry;
        if (dataWanted) hasher?.begin(entry);
        return dataWanted && (hasher !== null || options.onData !== undefined);
      },
      data(chunk, offset) {
        hasher?.data(chunk, offset);
        options.onData?.(current!, chunk, offset);
      },
    },
    { layer },
  );
  const tarAlgorithm = options.diffID === undefined ? "sha256" : digestAlgorithm(options.diffID);
  const tarHash = createHash(tarAlgorithm);
  const blobHash = createHash(options.digest === undefined ? "sha256" : digestAlgorithm(options.digest));
  let size = 0;
  using decoder = new LayerDecoder({
    layer,
    data(bytes) {
      tarHash.update(bytes);
      reader.push(bytes);
    },
  });
  let failure: unknown = null;
  for await (const chunk of source) {
    size += chunk.byteLength;
    if (options.size !== undefined && size > options.size) break;
    blobHash.update(chunk);
    if (failure !== null) continue;
    try {
      decoder.push(chunk);
    } catch (error) {
      // whether the layer is bad or its transport, only the digest of all of it can tell
      if (!isHeadstartError(error, "HS_LAYER_REFUSED") || options.digest === undefined) throw error;
      failure = error;
    }
  }
  const digest = checkBlob(blobHash, size, options, failure);
  if (failure !== null) throw failure;
  decoder.finish();
  reader.finish();
  hasher?.end();
  const tree = builder.finish();
  const diffID = `${tarAlgorithm}:${tarHash.digest("hex")}` as DiffID;
  if (options.diffID !== undefined && options.diffID !== diffID) {
    throw refusal("diff-id", `the configuration names the diffID ${options.diffID}, the layer has ${diffID}`, {
      layer,
    });
  }
  return {
    tree,
    digest,
    size,
    diffID,
    tarSize: reader.offset,
    entries: reader.entries,
    compression: decoder.compression ?? "none",
    contentSha256(inode) {
      if (hasher === null) throw new HeadstartError("HS_INTERNAL", { what: "contents were not hashed" });
      return hasher.sha256(tree, inode);
    },
  };
}

function checkBlob(hash: Hash, size: number, options: ReadLayerOptions, cause: unknown): Digest {
  const digest = options.digest;
  if (options.size !== undefined && size !== options.size) {
    throw new HeadstartError("HS_SIZE_MISMATCH", {
      what: `layer ${digest ?? "(unnamed)"}: ${options.size} bytes wanted, got ${size > options.size ? "more" : size}`,
      ...(cause === null ? {} : { cause }),
    });
  }
  const got = `${digest === undefined ? "sha256" : digestAlgorithm(digest)}:${hash.digest("hex")}` as Digest;
  if (digest !== undefined && got !== digest) {
    throw new HeadstartError("HS_DIGEST_MISMATCH", {
      what: `layer ${digest}: got ${got}`,
      got,
      want: digest,
      ...(cause === null ? {} : { cause }),
    });
  }
  return got;
}
