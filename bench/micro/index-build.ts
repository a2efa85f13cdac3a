/** How fast zTOCs are built: one big layer, and two at once. */

import { createReadStream } from "node:fs";
import { availableParallelism } from "node:os";
import { ZtocBuilders } from "../../src/formats/soci/build.ts";
import { execute } from "../../src/sandbox/process.ts";
import { type BenchCase, percentile, type Report } from "../case.ts";
import { bigLayer } from "../fixtures.ts";

const ROUNDS = 3;
const SPAN_SIZE = 4 * 1024 * 1024;

async function build(report: Report, copies: number): Promise<void> {
  const { path, descriptor, size } = await bigLayer();
  await using builders = new ZtocBuilders(Math.max(1, availableParallelism() / 2));
  const rates: number[] = [];
  let ztocBytes = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const started = performance.now();
    const results = await Promise.all(
      Array.from({ length: copies }, () =>
        builders.build({
          blob: createReadStream(path, { highWaterMark: 1024 * 1024 }),
          layer: descriptor,
          spanSize: SPAN_SIZE,
          buildTool: "bench",
        }),
      ),
    );
    let bytes = 0;
    for (const result of results) {
      if (result.kind !== "built") throw new Error(`no zTOC: ${result.reason}`);
      bytes += result.uncompressedSize;
      ztocBytes = result.ztoc.byteLength;
    }
    rates.push(bytes / 1000 / (performance.now() - started));
  }
  // the same bytes through gzip(1), in the same run: what a busy machine does to both
  const started = performance.now();
  await execute("sh", ["-c", 'gzip -dc "$0" > /dev/null', path]);
  const gzip = size / 1000 / (performance.now() - started);
  report("first, with cold code", rates[0]!, "MB/s");
  report("median", percentile(rates, 0.5), "MB/s");
  report("gzip -d of the same layer", gzip, "MB/s");
  report("index / gzip -d", percentile(rates, 0.5) / gzip, "x");
  report("zTOC / compressed layer", (100 * ztocBytes) / descriptor.size, "%");
}

export const INDEX_CASES: readonly BenchCase[] = [1, 2].map((copies) => ({
  name: copies === 1 ? "index.one" : "index.two",
  about: `zTOCs of ${copies === 1 ? "one layer" : "two layers at once"} of 510 MB, uncompressed MB/s`,
  run: (report) => build(report, copies),
}));
