/** The snapshotter is closed, killed or rebooted between, and in the middle of, calls: what was answered holds, what was not can be done again. */

import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { Code, ConnectError } from "@connectrpc/connect";
import { sha256 } from "../../src/base/digest.ts";
import type { ChainElement } from "../../src/snapshotter/provider.ts";
import { FakeLayerProvider } from "../fakes/layer-provider.ts";
import { mountAll } from "../fakes/mounting.ts";
import { connectSnapshots, type ServedSnapshotter, startSnapshotter } from "../fakes/snapshots-client.ts";
import { list, rejects, type SnapshotsClient } from "../suites/snapshotter.ts";

const target = sha256(Buffer.from("target"));
const extraction = { "containerd.io/snapshot.ref": target };

function temporary(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), "snapshotter-restart-"));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return join(directory, "root");
}

test("a restart between any two calls changes nothing that a client sees", async (t) => {
  const root = temporary(t);
  const provider = new FakeLayerProvider(join(root, "layers"));
  const layer = provider.addLayer((directory) => writeFileSync(join(directory, "lazy"), "from a layer\n"));
  let served: ServedSnapshotter | null = null;
  t.after(() => served?.close());
  const restarted = async (): Promise<SnapshotsClient> => {
    const before = served === null ? [] : await list(served.client);
    await served?.close();
    served = await startSnapshotter(root, { provider, quietMs: 0 });
    assert.deepEqual(await list(served.client), before);
    return served.client;
  };
  const point = join(root, "point");
  mkdirSync(point, { recursive: true });

  await (await restarted()).prepare({ key: "x0", labels: { a: "b" } });
  {
    using _ = mountAll((await (await restarted()).mounts({ key: "x0" })).mounts, point);
    writeFileSync(join(point, "plain"), "from a directory\n");
  }
  await (await restarted()).commit({ name: "c0", key: "x0" });
  provider.decide = () => ({ kind: "lazy", layer });
  await rejects((await restarted()).prepare({ key: "x1", parent: "c0", labels: extraction }), Code.AlreadyExists);
  const [claimed] = await list(await restarted(), [`labels."containerd.io/snapshot.ref"==${target},parent==c0`]);
  await (await restarted()).update({ info: { name: claimed!.name, labels: { ...claimed!.labels, more: "1" } } });
  const { mounts } = await (await restarted()).prepare({ key: "container", parent: claimed!.name });
  const again = await (await restarted()).mounts({ key: "container" });
  assert.deepEqual(again.mounts, mounts);
  {
    using _ = mountAll(again.mounts, point);
    await restarted();
    assert.equal(readFileSync(join(point, "plain"), "utf8"), "from a directory\n");
    assert.equal(readFileSync(join(point, "lazy"), "utf8"), "from a layer\n");
    writeFileSync(join(point, "written"), "by the container\n");
  }
  await (await restarted()).view({ key: "view", parent: claimed!.name });
  await rejects((await restarted()).remove({ key: claimed!.name }), Code.FailedPrecondition);
  {
    using _ = mountAll((await (await restarted()).mounts({ key: "container" })).mounts, point);
    assert.equal(readFileSync(join(point, "written"), "utf8"), "by the container\n");
  }
  for (const key of ["view", "container", claimed!.name, "c0"]) await (await restarted()).remove({ key });
  await (await restarted()).cleanup({});
  assert.deepEqual(readdirSync(join(root, "snapshots")), []);
  assert.deepEqual([...provider.layers.keys()], []);
});

/** Layers as mounts of their own, which a reboot takes away. */
class MountingProvider extends FakeLayerProvider implements Disposable {
  readonly mounted = new Set<string>();
  readonly #points: string;

  constructor(root: string) {
    super(join(root, "layers"));
    this.#points = join(root, "l");
  }

  override async lowers(owner: string, chain: readonly ChainElement[], options: { signal?: AbortSignal }) {
    const paths = await super.lowers(owner, chain, options);
    return paths.map((path, index) => {
      const element = chain[index]!;
      if (element.kind === "directory") return path;
      const point = join(this.#points, String(element.layer));
      if (!this.mounted.has(point)) {
        mkdirSync(point, { recursive: true });
        execFileSync("mount", ["--bind", path, point]);
        this.mounted.add(point);
      }
      return point;
    });
  }

  [Symbol.dispose](): void {
    this.reboot();
  }

  reboot(): void {
    for (const point of this.mounted) execFileSync("umount", [point]);
    this.mounted.clear();
    this.owners.clear();
  }
}

test("after a reboot the mounts of a container are made again when it is started", async (t) => {
  const root = temporary(t);
  using provider = new MountingProvider(root);
  const layer = provider.addLayer((directory) => writeFileSync(join(directory, "lazy"), "from a layer\n"));
  provider.decide = () => ({ kind: "lazy", layer });
  const point = join(root, "point");
  mkdirSync(point, { recursive: true });
  {
    await using served = await startSnapshotter(root, { provider });
    await rejects(served.client.prepare({ key: "e", labels: extraction }), Code.AlreadyExists);
    const [claimed] = await list(served.client);
    const { mounts } = await served.client.prepare({ key: "container", parent: claimed!.name });
    using _ = mountAll(mounts, point);
    writeFileSync(join(point, "written"), "before\n");
  }
  provider.reboot();
  assert.ok(!existsSync(join(root, "l/1/lazy")));
  await using served = await startSnapshotter(root, { provider });
  using _ = mountAll((await served.client.mounts({ key: "container" })).mounts, point);
  assert.equal(readFileSync(join(point, "lazy"), "utf8"), "from a layer\n");
  assert.equal(readFileSync(join(point, "written"), "utf8"), "before\n");
});

async function startChild(root: string, failpoints = ""): Promise<ChildProcess> {
  const program = join(import.meta.dirname, "../fakes/snapshotter-child.ts");
  const child = spawn(process.execPath, [program, root], {
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, HEADSTART_FAILPOINTS: failpoints },
  });
  const [ready] = await once(child.stdout!, "data");
  assert.equal(String(ready), "ready\n");
  return child;
}

async function stop(child: ChildProcess): Promise<void> {
  const exited = once(child, "exit");
  child.kill("SIGKILL");
  await exited;
}

async function withClient<T>(root: string, work: (client: SnapshotsClient) => Promise<T>): Promise<T> {
  const { client, close } = connectSnapshots(join(root, "s.sock"));
  try {
    return await work(client);
  } finally {
    close();
  }
}

interface Crash {
  readonly what: string;
  readonly failpoint: string;
  readonly call: (client: SnapshotsClient) => Promise<unknown>;
  /** Names that exist after the crash. */
  readonly left: readonly RegExp[];
}

const CRASHES: readonly Crash[] = [
  {
    what: "before a new snapshot's row is written",
    failpoint: "snapshotter:transaction",
    call: (client) => client.prepare({ key: "k" }),
    left: [],
  },
  {
    what: "between a new snapshot's row and its answer",
    failpoint: "snapshotter:created",
    call: (client) => client.prepare({ key: "k" }),
    left: [/^k$/],
  },
  {
    what: "before a claim is written",
    failpoint: "snapshotter:transaction",
    call: (client) => client.prepare({ key: "e", labels: extraction }),
    left: [],
  },
  {
    what: "between a claim and its answer",
    failpoint: "snapshotter:claimed",
    call: (client) => client.prepare({ key: "e", labels: extraction }),
    left: [/^\d+\/sha256:/],
  },
  {
    what: "before a commit is written",
    failpoint: "snapshotter:transaction=2",
    call: async (client) => {
      await client.prepare({ key: "k" });
      await client.commit({ name: "c", key: "k" });
    },
    left: [/^k$/],
  },
  {
    what: "between a commit and its answer",
    failpoint: "snapshotter:answer=2",
    call: async (client) => {
      await client.prepare({ key: "k" });
      await client.commit({ name: "c", key: "k" });
    },
    left: [/^c$/],
  },
  {
    what: "between a removal and its answer",
    failpoint: "snapshotter:answer=2",
    call: async (client) => {
      await client.prepare({ key: "k" });
      await client.remove({ key: "k" });
    },
    left: [],
  },
];

for (const { what, failpoint, call, left } of CRASHES) {
  test(`killed ${what}: the rows are whole, the call can be made again, and garbage collection leaves nothing`, async (t) => {
    const root = temporary(t);
    const [name, count] = failpoint.split("=");
    const rule = `${name}=${count === undefined ? "" : `${count}*`}exit`;
    const crashing = await startChild(root, rule);
    const ended = once(crashing, "exit");
    await assert.rejects(withClient(root, call), ConnectError);
    assert.equal((await ended)[1], "SIGKILL");
    const child = await startChild(root);
    t.after(() => stop(child));
    await withClient(root, async (client) => {
      const names = (await list(client)).map((info) => info.name);
      assert.equal(names.length, left.length, names.join());
      for (const [index, pattern] of left.entries()) assert.match(names[index]!, pattern);
      // containerd's collector removes what it does not know
      for (const key of names) await client.remove({ key });
      await client.prepare({ key: "k" });
      await client.commit({ name: "c", key: "k" });
      await rejects(client.prepare({ key: "e", parent: "c", labels: extraction }), Code.AlreadyExists);
      for (const info of (await list(client)).toReversed()) await client.remove({ key: info.name });
      await client.cleanup({});
    });
    assert.deepEqual(readdirSync(join(root, "snapshots")), []);
  });
}

test("a listening socket that somebody else opened is served", async (t) => {
  const root = temporary(t);
  mkdirSync(root);
  const listener = createServer().listen(join(root, "activation.sock"));
  await once(listener, "listening");
  const { fd } = (listener as unknown as { _handle: { fd: number } })._handle;
  const program = join(import.meta.dirname, "../fakes/snapshotter-child.ts");
  const child = spawn(process.execPath, [program, root, "3"], { stdio: ["ignore", "pipe", "inherit", fd] });
  t.after(() => stop(child));
  await once(child.stdout!, "data");
  // from here on only the child accepts; under its new name the socket outlives our closing
  renameSync(join(root, "activation.sock"), join(root, "s.sock"));
  listener.close();
  await withClient(root, async (client) => {
    await client.prepare({ key: "k" });
    assert.deepEqual(
      (await list(client)).map(({ name }) => name),
      ["k"],
    );
  });
});

test("a full disk in the middle of a Prepare is RESOURCE_EXHAUSTED, leaves no row, and the next one works", async (t) => {
  const root = temporary(t);
  const child = await startChild(root, "snapshotter:transaction=throw:ENOSPC");
  t.after(() => stop(child));
  await withClient(root, async (client) => {
    await rejects(client.prepare({ key: "k" }), Code.ResourceExhausted);
    assert.deepEqual(await list(client), []);
    await client.prepare({ key: "k" });
    assert.equal((await client.mounts({ key: "k" })).mounts.length, 1);
    await client.cleanup({});
    assert.deepEqual(readdirSync(join(root, "snapshots")), ["1"]);
  });
});
