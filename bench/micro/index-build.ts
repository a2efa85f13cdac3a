/**
 * How fast zTOCs are built: MB/s of uncompressed data for one big layer, and for several at once.
 *
 *   node bench/micro/index-build.ts LAYER.tar.gz [COPIES]
 */

import { createHash } from "node:crypto";
import { createReadStream, readFileSync, statSync } from "node:fs";
import { availableParallelism } from "node:os";
import type { Digest } from "../../src/base/digest.ts";
import { ZtocBuilders } from "../../src/formats/soci/build.ts";

const path = process.argv[2];
const copies = Number(process.argv[3] ?? 1);
if (path === undefined) {
  console.error("usage: node bench/micro/index-build.ts LAYER.tar.gz [COPIES]");
  process.exit(2);
}
const digest = `sha256:${createHash("sha256").update(readFileSync(path)).digest("hex")}` as Digest;
const layer = { digest, size: statSync(path).size };
await using builders = new ZtocBuilders(Math.max(1, availableParallelism() / 2));
for (let round = 0; round < 3; round++) {
  const started = performance.now();
  const results = await Promise.all(
    Array.from({ length: copies }, () =>
      builders.build({
        blob: createReadStream(path, { highWaterMark: 1024 * 1024 }),
        layer,
        spanSize: 4 * 1024 * 1024,
        buildTool: "bench",
      }),
    ),
  );
  const seconds = (performance.now() - started) / 1000;
  let bytes = 0;
  for (const result of results) if (result.kind === "built") bytes += result.uncompressedSize;
  const first = results[0];
  const what = first?.kind === "built" ? `${first.spanCount} spans, ${first.entryCount} entries` : "no zTOC";
  console.log(`${copies} x ${what}: ${seconds.toFixed(2)} s, ${(bytes / seconds / 1e6).toFixed(0)} MB/s uncompressed`);
}
