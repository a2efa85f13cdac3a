import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fuseWaiting } from "../../src/linux/fusectl.ts";
import { findMount, readMountInfo } from "../../src/linux/mountinfo.ts";
import { FILES, FusePlace, until } from "./fuse-place.ts";

const options = { skip: process.getuid?.() !== 0 && "needs root", timeout: 150_000 };

test(
  "EROFS mounted over FUSE as a file, not through a loop device, gives the image's bytes; what is filled is not asked for again",
  options,
  async () => {
    await using place = await FusePlace.make();
    await place.mount("file");
    assert.equal(findMount(readMountInfo(), place.layer)?.source, join(place.state, "fuse", "1.erofs"));
    for (let file = 0; file < FILES; file++) assert.equal(await place.compare(`f${file}`), "same");
    assert.equal(await place.compare("hello.txt"), "same");
    const faults = place.faults;
    const before = await place.statistics();
    assert.equal(before.faultsPending, 0);
    // the mounted file is read by a second way: its pages come from the reader threads
    assert.equal(readFileSync(join(place.state, "fuse", "1.erofs")).byteLength % 4096, 0);
    await until(async () => Number((await place.statistics()).reads) > 0);
    assert.ok(faults > 0);
    await place.nothingWaits();
  },
);

test("a supervisor whose log takes nothing keeps its mounts and goes on starting servers", options, async () => {
  await using place = await FusePlace.make({}, (tree) => symlinkSync("/dev/full", join(tree, "../log")));
  await place.mount("file");
  const killed = place.serverPid;
  process.kill(killed, "SIGKILL");
  await place.ready(killed);
  assert.equal(await place.compare("hello.txt"), "same");
});

for (const journalOnly of [false, true]) {
  const how = journalOnly ? "by the journal alone" : "by RESEND";
  test(`a read that waits while the server is killed completes with the right bytes, ${how}`, options, async () => {
    await using place = await FusePlace.make(journalOnly ? { "no-resend": "" } : {});
    await place.mount("file");
    assert.equal(await place.compare("hello.txt"), "same");
    place.set("delay", "1000");
    const faults = place.faults;
    const read = place.compare("f7");
    await until(async () => place.faults > faults);
    process.kill(place.serverPid, "SIGKILL");
    assert.equal(await read, "same");
    await place.nothingWaits();
    assert.equal((await place.statistics()).recovery, journalOnly ? "replayed" : "resent");
  });

  test(`64 pending reads outlive two kills in a row, ${how}`, options, async () => {
    await using place = await FusePlace.make(journalOnly ? { "no-resend": "" } : {});
    await place.mount("file");
    assert.equal(await place.compare("hello.txt"), "same");
    place.set("delay", "600");
    const reads = Array.from({ length: FILES }, (_, file) => place.compare(`f${file}`));
    for (let kill = 0; kill < 2; kill++) {
      const faults = place.faults;
      await until(async () => place.faults >= faults + 10);
      const pid = place.serverPid;
      process.kill(pid, "SIGKILL");
      await place.ready(pid);
    }
    place.set("delay", null);
    assert.deepEqual(new Set(await Promise.all(reads)), new Set(["same"]));
    await place.nothingWaits();
    await nothingStuck();
  });
}

for (const journalOnly of [false, true]) {
  const how = journalOnly ? "by the journal alone" : "by RESEND";
  test(
    `a server that is killed while one of its own threads waits for the mount is replaced, ${how}`,
    options,
    async () => {
      await using place = await FusePlace.make(journalOnly ? { "no-resend": "" } : {});
      await place.mount("file");
      assert.equal(await place.compare("hello.txt"), "same");
      place.set("delay", "600");
      place.set("own", join(place.layer, "f50"));
      const faults = place.faults;
      await place.statistics();
      place.set("own", null);
      await until(async () => place.faults > faults);
      const pid = place.serverPid;
      process.kill(pid, "SIGKILL");
      await place.ready(pid);
      assert.equal(await place.compare("f51"), "same");
      await until(async () => !existsSync(`/proc/${pid}`));
      await place.nothingWaits();
    },
  );
}

// each server dies at its 15th request, at another moment of its life; the next one must finish what it left
for (const journalOnly of [false, true]) {
  const places = ["read", "stored", "served", "reply", "sent"];
  for (const place of places) {
    test(
      `a server that dies at fuse:${place} again and again loses no read${journalOnly ? " (journal alone)" : ""}`,
      options,
      async () => {
        await using there = await FusePlace.make(journalOnly ? { "no-resend": "" } : {}, undefined, {
          HEADSTART_FAILPOINTS: `fuse:${place}=15*exit`,
        });
        await there.mount("file");
        const first = there.serverPid;
        const results: string[] = [];
        for (let file = 0; file < 6; file++) {
          results.push(...(await Promise.all([0, 1, 2].map((more) => there.compare(`f${file + more * 6}`)))));
        }
        assert.deepEqual(new Set(results), new Set(["same"]));
        assert.notEqual(there.serverPid, first);
        await nothingStuck();
      },
    );
  }
}

test("a failed fill is EIO for that read only: the next one succeeds", options, async () => {
  await using place = await FusePlace.make();
  await place.mount("file");
  assert.equal(await place.compare("hello.txt"), "same");
  place.set("fail", "");
  assert.match(await place.compare("f3"), /Input\/output error/);
  place.set("fail", null);
  assert.equal(await place.compare("f3"), "same");
  await place.nothingWaits();
});

test("a read that waits beyond the deadline fails with EIO, and succeeds later", options, async () => {
  await using place = await FusePlace.make({ deadline: "500" });
  await place.mount("file");
  assert.equal(await place.compare("hello.txt"), "same");
  place.set("delay", "600000");
  const start = performance.now();
  assert.match(await place.compare("f9"), /Input\/output error/);
  assert.ok(performance.now() - start < 60_000);
  place.set("delay", null);
  assert.equal(await place.compare("f9"), "same");
});

test("a loop device over the FUSE file works the same: bytes, kill, error", options, async () => {
  await using place = await FusePlace.make();
  await place.mount("loop");
  assert.match(findMount(readMountInfo(), place.layer)?.source ?? "", /^\/dev\/loop\d+$/);
  assert.equal(await place.compare("hello.txt"), "same");
  place.set("delay", "800");
  const faults = place.faults;
  const read = place.compare("f7");
  await until(async () => place.faults > faults);
  process.kill(place.serverPid, "SIGKILL");
  assert.equal(await read, "same");
  place.set("delay", null);
  place.set("fail", "");
  assert.match(await place.compare("f20"), /Input\/output error/);
  place.set("fail", null);
  assert.equal(await place.compare("f20"), "same");
  await place.nothingWaits();
});

test("SIGHUP replaces the server under load: no read fails", options, async () => {
  await using place = await FusePlace.make({ delay: "20" });
  await place.mount("file");
  let going = true;
  const readers = [0, 1].map(async (half) => {
    const results: string[] = [];
    for (let file = half; going; file += 2) results.push(await place.compare(`f${file % FILES}`));
    return results;
  });
  for (let round = 0; round < 3; round++) {
    const pid = place.serverPid;
    process.kill(place.supervisorPid, "SIGHUP");
    await place.ready(pid);
    await sleep(200);
  }
  going = false;
  for (const results of await Promise.all(readers)) assert.deepEqual(new Set(results), new Set(["same"]));
});

test(
  "when the supervisor is killed the server goes on, and the next supervisor takes the connection over from it",
  options,
  async () => {
    await using place = await FusePlace.make();
    await place.mount("file");
    const orphan = place.serverPid;
    await place.stop("SIGKILL");
    assert.equal(await place.compare("f1"), "same");
    place.set("delay", "700");
    const faults = place.faults;
    const read = place.compare("f2");
    await until(async () => place.faults > faults);
    await place.startSupervisor();
    assert.notEqual(place.serverPid, orphan);
    assert.ok(!existsSync(`/proc/${orphan}/exe`));
    assert.equal(await read, "same");
    assert.equal(await place.compare("f40"), "same");
  },
);

test("teardown leaves no mount, also with a read that nobody will answer", options, async () => {
  await using place = await FusePlace.make();
  await place.mount("file");
  assert.equal(await place.compare("hello.txt"), "same");
  place.set("delay", "600000");
  const faults = place.faults;
  const read = place.compare("f5");
  await until(async () => place.faults > faults);
  const minor = findMount(readMountInfo(), join(place.state, "fuse"))!.minor;
  await place.teardown();
  assert.match(await read, /Input\/output error|connection abort/);
  assert.equal(findMount(readMountInfo(), join(place.state, "fuse")), undefined);
  assert.equal(findMount(readMountInfo(), place.layer), undefined);
  await until(async () => fuseWaiting(minor) === null);
});

/** A server that reads from its disk is in state D for a moment, too: stuck is what stays there. */
async function nothingStuck(): Promise<void> {
  await until(
    async () => stuck() === 0,
    () => `${stuck()} processes wait uninterruptibly`,
  );
}

/** Processes in uninterruptible sleep that read below a temporary directory of these tests. */
function stuck(): number {
  return readdirSync("/proc").filter((pid) => {
    if (!/^\d+$/.test(pid)) return false;
    try {
      return (
        / D /.test(readFileSync(`/proc/${pid}/stat`, "latin1").replace(/.*\)/s, "")) &&
        readFileSync(`/proc/${pid}/cmdline`, "latin1").includes("headstart-fuse-")
      );
    } catch {
      return false;
    }
  }).length;
}
