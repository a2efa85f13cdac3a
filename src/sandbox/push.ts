/** From an OCI layout to a registry of plain HTTP: by skopeo, which knows nothing of our code. */

import { debianPackages, type Say } from "./packages.ts";
import { execute } from "./process.ts";

/** `target` is "HOST:PORT/REPO:TAG". Throws HS_CHILD_FAILED. */
export async function pushImage(layout: string, name: string, target: string, say?: Say): Promise<void> {
  await debianPackages(["skopeo"], say);
  await execute("skopeo", [
    "copy",
    "--quiet",
    "--insecure-policy",
    "--dest-tls-verify=false",
    "--preserve-digests",
    `oci:${layout}:${name}`,
    `docker://${target}`,
  ]);
}
