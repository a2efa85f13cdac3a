/** Random images of odd layers, as disks and directories: whatever is built is right. Those that containerd refuses are refused. */

import { rmSync } from "node:fs";
import { join } from "node:path";
import { isHeadstartError } from "../../src/base/errors.ts";
import { layerOfTar, writeImage } from "../../src/sandbox/image-builder.ts";
import { verifyVolume } from "../../src/volume/verify/verify.ts";
import { randomImage } from "../interop/random-layers.ts";
import { temporaryFolder } from "../tools/erofs-image.ts";
import { makeVolume } from "../tools/volumes.ts";

export async function oddVolumes([count = "200", first = "1"]: readonly string[]): Promise<void> {
  using folder = temporaryFolder("headstart-odd-");
  const { signal } = new AbortController();
  let built = 0;
  let refused = 0;
  for (let seed = Number(first); seed < Number(first) + Number(count); seed++) {
    const layout = join(folder.path, `layout-${seed}`);
    const layers = randomImage(seed).map((tar) => layerOfTar(Buffer.from(tar)));
    await writeImage(layout, layers, { name: "odd" });
    for (const kind of ["containerd", "bottlerocket"] as const) {
      const path = join(folder.path, `${kind}-${seed}`);
      try {
        await makeVolume(path, [`oci:${layout}:odd`], { layout: kind });
      } catch (error) {
        if (!isHeadstartError(error, "HS_LAYER_REFUSED", "HS_EXT4_LIMIT")) throw error;
        refused++;
        continue;
      }
      const { ok, checked, differences } = await verifyVolume({ path, sources: [], signal });
      if (!ok || checked.provenSnapshots !== layers.length) {
        throw new Error(`${kind}, seed ${seed}: ${JSON.stringify({ checked, differences }, null, 1)}`);
      }
      built++;
      rmSync(path, { recursive: true });
    }
    rmSync(layout, { recursive: true });
  }
  console.log(`${built} volumes are right, ${refused} were refused`);
  if (built === 0) throw new Error("nothing was built");
}
