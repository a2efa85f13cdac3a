/**
 * A hole server in a process of its own, for tests of the fault path: it serves one file whose holes are filled, after a delay, from a complete image.
 * Started by the supervisor: slow-server.ts COMPLETE_IMAGE SPARSE_FILE CONTROL_DIRECTORY
 *
 * In the control directory: `delay` (ms before each fill), `fail` (each fill throws while the file exists), `no-resend` (trust the journal alone),
 * `deadline` (ms), `readers`, `quiet` (at start: fill at once, look at nothing, for benches); `own` (a path to read ourselves at SIGUSR2); the server writes `faults` (a line "start end" each) and `statistics` (when it gets SIGUSR2).
 */

import { appendFileSync, existsSync, fstatSync, ftruncateSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Bitmap } from "../../src/base/bitmap.ts";
import { HeadstartError } from "../../src/base/errors.ts";
import { listen } from "../../src/base/events.ts";
import { readFully, writeFully } from "../../src/base/files.ts";
import { alignDown, alignUp } from "../../src/base/ranges.ts";
import { HoleServer } from "../../src/fuse/hole-server.ts";

const [image, sparse, control] = process.argv.slice(2) as [string, string, string];
const setting = (name: string, otherwise: number) =>
  existsSync(join(control, name)) ? Number(readFileSync(join(control, name), "latin1")) : otherwise;

const quiet = existsSync(join(control, "quiet"));
const source = openSync(image, "r");
const size = alignUp(fstatSync(source).size, 4096);
const fd = openSync(sparse, "w+");
ftruncateSync(fd, size);
const fillMap = new Bitmap(size / 4096);

const server = await HoleServer.open({
  fd: Number(process.env.HEADSTART_FUSE_FD),
  stateDirectory: process.env.HEADSTART_STATE!,
  resend: !existsSync(join(control, "no-resend")),
  faultDeadlineMs: setting("deadline", 60_000),
  readers: setting("readers", 2),
});
server.addFile({
  nodeid: 2,
  name: "1.erofs",
  size,
  fd,
  fillMap,
  async ensure(range, { signal }) {
    if (!quiet) {
      appendFileSync(join(control, "faults"), `${range.start} ${range.end}\n`);
      await sleep(setting("delay", 0), undefined, { signal });
      if (existsSync(join(control, "fail")))
        throw new HeadstartError("HS_REGISTRY_UNAVAILABLE", { what: "told to fail" });
    }
    const start = alignDown(range.start, 4096);
    const bytes = Buffer.alloc(alignUp(range.end, 4096) - start);
    readFully(source, bytes, start);
    writeFully(fd, bytes, start);
    fillMap.setRange(start / 4096, (start + bytes.byteLength) / 4096);
  },
});
for (const name of ["fuse:trouble", "fuse:fault-failed"]) listen(name, (fact) => console.error(name, fact));
await server.start();
writeFileSync(join(process.env.HEADSTART_STATE!, "ready"), `${process.pid}\n`);
process.on("SIGUSR2", () => {
  // a thread of this very process waits for our own mount, as a mount(2) of ours may
  if (existsSync(join(control, "own"))) void readFile(readFileSync(join(control, "own"), "utf8"));
  writeFileSync(join(control, "statistics"), JSON.stringify({ ...server.statistics, rss: process.memoryUsage.rss() }));
});
process.on("SIGTERM", async () => {
  await server[Symbol.asyncDispose]();
  process.exit(0);
});
setInterval(() => {}, 1 << 30);
