/** What `npm run bundle` makes: it runs away from the checkout, finds its programs, worker threads and koffi's binary, and serves a container lazily. */

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { cpSync, existsSync, readdirSync, readFileSync } from "node:fs";
import { isBuiltin } from "node:module";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { readCriLog } from "../../src/sandbox/cri-client.ts";
import { execute } from "../../src/sandbox/process.ts";
import { prints, startWorkload } from "../../src/sandbox/ready.ts";
import { buildImage, shellLayer } from "../build-image.ts";
import { formatMemory, memoryOf } from "../tools/memory.ts";
import { Place } from "./place.ts";

const root = dirname(dirname(import.meta.dirname));
const MiB = 2 ** 20;
const DATA_BYTES = 8 * MiB;

test("the bundled daemon serves a lazy container from a folder of its own", async (t) => {
  await using place = await Place.make();
  const built = join(place.root, "built");
  await execute(process.execPath, [join(root, "scripts/bundle.ts"), "--out", built], { cwd: root });
  // hard links into the checkout would hide a file that the package lacks
  const installed = join(place.root, "opt");
  cpSync(built, installed, { recursive: true });
  const command = join(installed, "bin/headstart");
  const { stdout } = await execute(command, ["--version"]);
  assert.equal(stdout.trim(), JSON.parse(readFileSync(join(root, "package.json"), "utf8")).version);

  await buildImage(place.layout, "big", [
    await shellLayer(),
    [
      { path: "data", data: randomBytes(DATA_BYTES) },
      { path: "last", data: "the end\n" },
    ],
  ]);
  await place.push(place.layout, "big");
  const image = await place.convertToSoci("big", ["--min-layer-size", "0", "--span-size", "1048576"]);
  place.meter.limit({ bytesPerSecond: 2 * MiB });
  // what was fetched before ready is what the start asked for, however long it takes
  const config = { lazy: { min_layer_size: 0 }, fetch: { bandwidth_bytes_per_second: 100_000 } };
  const node = await place.node({ version: "1.6.20", headstart: { policy: "bound", command, config } });
  const idle = memoryOf(node.headstart.serverPid);
  const pod = await node.cri.runPod("bundle");
  const mark = place.meter.mark();
  const script = "cat /last; sleep 1000";
  const started = await startWorkload(node.cri, pod, {
    name: "bundle",
    image,
    command: ["/bin/sh", "-c", script],
    ready: prints(/^the end$/m),
  });
  const fetched = place.meter.since(mark);
  assert.match(readCriLog(started.container.logPath), /^the end$/m);
  assert.ok(fetched.bytes < DATA_BYTES * 0.75, `${fetched.bytes} bytes were fetched before ready`);
  const layers = (await node.headstart.status("/v1/layers")) as { format: string }[];
  assert.ok(layers.filter((layer) => layer.format === "soci").length >= 2, JSON.stringify(layers));

  for (const pid of node.headstart.processes()) {
    const [, ...words] = readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0");
    const program = words.find((word) => !word.startsWith("-")) ?? "";
    assert.ok(program.startsWith(`${installed}/dist/`), `${words.join(" ")} is not of the bundle`);
  }
  t.diagnostic(`supervisor: ${formatMemory(memoryOf(node.headstart.pid))}`);
  t.diagnostic(
    `server idle: ${formatMemory(idle)}; with the image: ${formatMemory(memoryOf(node.headstart.serverPid))}`,
  );
  place.meter.limit({});
});

test("the package has a bundle for every worker thread, and says which packages are in it", async () => {
  await using place = await Place.make();
  const out = join(place.root, "package");
  await execute(process.execPath, [join(root, "scripts/bundle.ts"), "--out", out], { cwd: root });
  const bundles = readdirSync(join(out, "dist"));
  for (const bundle of bundles) {
    for (const match of readFileSync(join(out, "dist", bundle), "utf8").matchAll(
      /new URL\("\.\/([^"]+)",\s*import\.meta\.url\)/g,
    ))
      assert.ok(bundles.includes(match[1]!), `${bundle} starts ${match[1]}, which is not there`);
  }
  const manifest = JSON.parse(readFileSync(join(out, "package.json"), "utf8")) as { bundleDependencies: string[] };
  for (const name of manifest.bundleDependencies)
    assert.ok(existsSync(join(out, "node_modules", name, "package.json")));
  assert.match(readFileSync(join(out, "THIRD-PARTY.md"), "utf8"), /^## undici \d/m);
  const loaded = /createRequire\w*\(import\.meta\.url\)\("([^"]+)"\)|\bfrom"([^"]+)"|\bimport\("([^"]+)"\)/g;
  for (const bundle of bundles) {
    for (const match of readFileSync(join(out, "dist", bundle), "utf8").matchAll(loaded)) {
      const name = match[1] ?? match[2] ?? match[3]!;
      assert.ok(
        isBuiltin(name) || manifest.bundleDependencies.includes(name),
        `${bundle} loads ${name}, which the package lacks`,
      );
    }
  }
});
