/**
 * The project's cache folder: unpacked packages and built images, which may be dropped at any time. An entry is a directory that appears by
 * rename once it is whole, so an entry that is there is complete; one builder at a time holds its lock, which the kernel drops when he dies.
 */

import { randomUUID } from "node:crypto";
import { existsSync, mkdirSync } from "node:fs";
import { mkdir, readdir, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { systemClock } from "../base/clock.ts";
import { HeadstartError } from "../base/errors.ts";
import { IS_CHECKOUT, PROJECT } from "../base/project.ts";

/** `$HEADSTART_CACHE`, else `.cache/` of a checkout, else /var/cache/headstart. */
export function cacheDirectory(): string {
  const named = process.env.HEADSTART_CACHE;
  const directory = named || (IS_CHECKOUT ? join(PROJECT, ".cache") : "/var/cache/headstart");
  mkdirSync(directory, { recursive: true });
  return directory;
}

const LOCK_MS_MAX = 30 * 60_000;

/** Runs `work` while no other process or caller holds the lock of this name. Throws HS_CANCELED after half an hour. */
export async function withCacheLock<T>(name: string, work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
  const directory = join(cacheDirectory(), "locks");
  mkdirSync(directory, { recursive: true });
  // SQLite's file lock: of all locks within Node's reach the one that the kernel takes back when its holder is killed
  using database = new DatabaseSync(join(directory, `${name}.lock`), { timeout: 0 });
  const deadline = systemClock.monotonic() + LOCK_MS_MAX;
  while (!tryLock(database)) {
    if (systemClock.monotonic() > deadline) {
      throw new HeadstartError("HS_CANCELED", { what: `waited half an hour for another process to make ${name}` });
    }
    await systemClock.sleep(100, signal);
  }
  try {
    return await work();
  } finally {
    database.exec("ROLLBACK");
  }
}

const SQLITE_BUSY = 5;

function tryLock(database: DatabaseSync): boolean {
  try {
    database.exec("BEGIN EXCLUSIVE");
    return true;
  } catch (error) {
    if ((error as { errcode?: number }).errcode === SQLITE_BUSY) return false;
    throw error;
  }
}

/** The directory of a cache entry, which `build` fills if it is not there. `path` is relative to the cache, e.g. "packages/sid/containerd". */
export async function cachedDirectory(
  path: string,
  build: (directory: string) => Promise<void>,
  signal?: AbortSignal,
): Promise<string> {
  const target = join(cacheDirectory(), path);
  if (existsSync(target)) return target;
  return withCacheLock(
    path.replaceAll("/", "_"),
    async () => {
      if (existsSync(target)) return target;
      const prefix = `${target}.part-`;
      await sweepParts(prefix);
      const part = `${prefix}${randomUUID().slice(0, 8)}`;
      await mkdir(part, { recursive: true });
      try {
        await build(part);
        await rename(part, target);
      } catch (error) {
        await rm(part, { recursive: true, force: true });
        throw error;
      }
      return target;
    },
    signal,
  );
}

/** We hold the lock: what an earlier builder left half-made is nobody's. */
async function sweepParts(prefix: string): Promise<void> {
  const parent = dirname(prefix);
  await mkdir(parent, { recursive: true });
  for (const name of await readdir(parent)) {
    const path = join(parent, name);
    if (path.startsWith(prefix)) await rm(path, { recursive: true, force: true });
  }
}
