/** The content store of a volume: which blobs lie there, and their bytes, which are believed only after their digest was checked. */

import { createHash } from "node:crypto";
import { type Digest, digestAlgorithm, isDigest } from "../../base/digest.ts";
import { childName, FileType } from "../../erofs/file-tree.ts";
import type { Findings } from "./findings.ts";
import { findPath, hashContent, type Pieces, readAll, type StoredTree } from "./stored-tree.ts";

export const CONTENT_BLOBS = "io.containerd.content.v1.content/blobs";

export class StoredBlobs {
  readonly #stored: StoredTree;
  readonly #findings: Findings;
  readonly #inodes = new Map<Digest, number>();
  /** What has been read whole and hashed. */
  readonly #checked = new Map<Digest, boolean>();
  readonly #onBytes: (count: number) => void;

  /** `root`: inode of containerd's root. */
  constructor(stored: StoredTree, root: number, findings: Findings, onBytes: (count: number) => void) {
    this.#stored = stored;
    this.#findings = findings;
    this.#onBytes = onBytes;
    const { tree } = stored;
    const directory = findPath(tree, root, CONTENT_BLOBS);
    for (const algorithm of ["sha256", "sha512"]) {
      const folder = directory === null ? null : findPath(tree, directory, algorithm);
      if (folder === null || tree.type[folder] !== FileType.directory) continue;
      for (let dirent = tree.childStart[folder]!; dirent < tree.childStart[folder + 1]!; dirent++) {
        const digest = `${algorithm}:${Buffer.from(childName(tree, dirent)).toString("latin1")}`;
        const inode = tree.childInode[dirent]!;
        if (isDigest(digest) && tree.type[inode] === FileType.regular) this.#inodes.set(digest, inode);
      }
    }
  }

  get digests(): IterableIterator<Digest> {
    return this.#inodes.keys();
  }

  has(digest: Digest): boolean {
    return this.#inodes.has(digest);
  }

  /** Bytes of the file; null when there is none. */
  size(digest: Digest): number | null {
    const inode = this.#inodes.get(digest);
    return inode === undefined ? null : this.#stored.tree.size[inode]!;
  }

  /** The verified bytes; null when there is no such blob or it is not what its name says, which becomes a difference. Throws HS_LIMIT. */
  async read(digest: Digest, limit: number): Promise<Uint8Array | null> {
    const inode = this.#inodes.get(digest);
    if (inode === undefined) return null;
    const bytes = await readAll(this.#stored, inode, limit, `blob ${digest}`);
    this.#onBytes(bytes.byteLength);
    const got = createHash(digestAlgorithm(digest)).update(bytes).digest("hex");
    return this.#judge(digest, got) ? bytes : null;
  }

  /** Not verified: the reader does it, and reports by `judged`. */
  async *stream(digest: Digest): Pieces {
    for await (const piece of this.#stored.read(this.#inodes.get(digest)!)) {
      this.#onBytes(piece.byteLength);
      yield piece;
    }
  }

  judged(digest: Digest, isRight: boolean): void {
    this.#checked.set(digest, isRight);
  }

  /** Hashes what nobody has read yet and has the size that it should have; of others it was said that they are wrong. */
  async checkRest(sizes: ReadonlyMap<Digest, number>): Promise<void> {
    for (const [digest, inode] of this.#inodes) {
      if (this.#checked.has(digest) || sizes.get(digest) !== this.#stored.tree.size[inode]) continue;
      const algorithm = digestAlgorithm(digest);
      this.#judge(digest, await hashContent(this.#stored, inode, algorithm, this.#onBytes));
    }
  }

  #judge(digest: Digest, hex: string): boolean {
    const got = `${digestAlgorithm(digest)}:${hex}`;
    const isRight = got === digest;
    if (!isRight && !this.#checked.has(digest))
      this.#findings.differs("blob", `blob ${digest}`, "its digest", got, digest);
    this.#checked.set(digest, isRight);
    return isRight;
  }
}
