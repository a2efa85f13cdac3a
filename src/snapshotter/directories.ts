/**
 * Where the content of snapshots lives: `<root>/snapshots/<id>/fs` (the upper, or the layer that containerd unpacked) and `<id>/work` (active ones only), laid
 * out and with the modes of containerd's own overlay snapshotter (specs/containerd.md 5.1). Names come from ids alone, never from keys. A claimed snapshot has no directory.
 * Knows nothing of rows: gc.ts decides what may go. A directory that is not a snapshot's (a crash between mkdir and the row) is out of the way by another name.
 */

import { randomUUID } from "node:crypto";
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync, renameSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { HeadstartError } from "../base/errors.ts";
import { makePrivateDirectory } from "../base/files.ts";
import { isUnder, readMountInfo } from "../linux/mountinfo.ts";

export class SnapshotDirectories {
  readonly #base: string;

  /** Makes `<root>/snapshots`. Throws HS_CONFIG for a root that cannot stand in an overlay's options. */
  constructor(root: string) {
    if (!root.startsWith("/") || /[,:\\\s]/.test(root)) {
      throw new HeadstartError("HS_CONFIG", {
        what: `root ${JSON.stringify(root)}: must be absolute, without comma, colon, backslash or blank (it goes into mount options)`,
      });
    }
    makePrivateDirectory(root);
    this.#base = makePrivateDirectory(join(root, "snapshots"));
  }

  get base(): string {
    return this.#base;
  }

  upper(id: number): string {
    return join(this.#base, String(id), "fs");
  }

  work(id: number): string {
    return join(this.#base, String(id), "work");
  }

  exists(id: number): boolean {
    return existsSync(this.upper(id));
  }

  /** Three or four system calls: fit for a transaction. */
  create(id: number, options: { work: boolean }): void {
    const directory = join(this.#base, String(id));
    if (existsSync(directory)) renameSync(directory, join(this.#base, `orphan-${id}-${randomUUID()}`));
    mkdirSync(directory, { mode: 0o700 });
    mkdirSync(this.upper(id));
    // whatever the umask: 0755 is what a container sees as the mode of "/"
    chmodSync(this.upper(id), 0o755);
    if (!options.work) return;
    mkdirSync(this.work(id));
    chmodSync(this.work(id), 0o711);
  }

  /** The owner of the root directory that a container sees. */
  setOwner(id: number, owner: { uid: number; gid: number }): void {
    chownSync(this.upper(id), owner.uid, owner.gid);
  }

  /** Entry names in `<root>/snapshots`; those that are decimal numbers are ids. */
  entries(): string[] {
    return readdirSync(this.#base);
  }

  /**
   * Deletes one entry, however large. Never reaches into a mount that somebody left below it: then it throws HS_MOUNT and is to be tried again later.
   */
  async delete(entry: string): Promise<void> {
    const path = join(this.#base, entry);
    if (readMountInfo().some((mount) => isUnder(mount.mountPoint, path))) {
      throw new HeadstartError("HS_MOUNT", { what: `${path}: something is still mounted in it` });
    }
    await rm(path, { recursive: true, force: true });
  }
}

/** The id that an entry of `<root>/snapshots` names, or null. */
export function entryId(entry: string): number | null {
  return /^[1-9][0-9]{0,14}$/.test(entry) ? Number(entry) : null;
}
