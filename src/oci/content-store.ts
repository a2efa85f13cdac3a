/**
 * containerd's content directory, read only (specs/containerd.md 9.1): whole blobs of all namespaces, renamed into place after fsync, named by digest.
 * Every whole read is checked against its digest all the same. What an image is called stands in containerd's database, so the
 * descriptor must be given.
 */

import { join } from "node:path";
import type { Descriptor } from "./descriptor.ts";
import { directoryLocator } from "./layout.ts";
import { LocalReader } from "./local.ts";

export const CONTAINERD_ROOT = "/var/lib/containerd";

export function contentDirectory(containerdRoot: string): string {
  return join(containerdRoot, "io.containerd.content.v1.content", "blobs");
}

export function openContentStore(containerdRoot: string, target: Descriptor, what: string): LocalReader {
  return new LocalReader({
    what,
    locator: directoryLocator(contentDirectory(containerdRoot)),
    resolve: async () => target,
    roots: async () => [target],
  });
}
