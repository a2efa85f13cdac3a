/**
 * Registries that fail, as a container and a pull meet them: right data or a clear error, never wrong data; no credential to anybody else; and what failed works again as soon as the
 * registry does. The registry is in memory and does wrong for one blob at a time, so the cases run side by side.
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Limit } from "../../src/base/limit.ts";
import type { CriContainer, CriPod } from "../../src/sandbox/cri-client.ts";
import { layerOf } from "../../src/sandbox/image-builder.ts";
import type { SandboxNode } from "../../src/sandbox/node.ts";
import type { FakeRegistry, FakeRegistryOptions } from "../fakes/registry.ts";
import type { Fault } from "../fakes/registry-faults.ts";
import { type IndexedBlob, indexed, storeSociImage } from "../suites/soci-image.ts";
import { noise } from "../suites/soci-sample.ts";
import { image as imageLine } from "./daemon-status.ts";
import { FakePlace, runShell } from "./fake-place.ts";

const PARALLEL = 8;
/** Longer than the transport waits for a silent body. */
const DEMAND_SECONDS = 25;
/** More than anybody asks for. */
const ALWAYS = 100_000;

interface Case {
  readonly what: string;
  readonly fault: Fault;
  /** How often; default once. */
  readonly times?: number;
  /** "right": the read or pull succeeds all the same; otherwise it fails, with such an error, until the fault is over. */
  readonly lazy: "right" | RegExp;
  readonly eager: "right" | RegExp;
}

const status = (code: number, headers: Record<string, string> = {}): Fault => ({
  kind: "status",
  status: code,
  headers,
});

const CASES: readonly Case[] = [
  { what: "401", fault: status(401), times: ALWAYS, lazy: /HS_REGISTRY_AUTH/, eager: /HS_REGISTRY_AUTH/ },
  {
    what: "403",
    fault: status(403),
    times: ALWAYS,
    lazy: /HS_REGISTRY_(DENIED|AUTH)/,
    eager: /HS_REGISTRY_(DENIED|AUTH)/,
  },
  { what: "404", fault: status(404), times: ALWAYS, lazy: /HS_BLOB_NOT_FOUND/, eager: /HS_BLOB_NOT_FOUND/ },
  { what: "416, once", fault: status(416), lazy: "right", eager: "right" },
  { what: "429 with Retry-After", fault: status(429, { "retry-after": "1" }), times: 2, lazy: "right", eager: "right" },
  { what: "500, twice", fault: status(500), times: 2, lazy: "right", eager: "right" },
  {
    what: "503, always",
    fault: status(503),
    times: ALWAYS,
    lazy: /HS_REGISTRY_UNAVAILABLE/,
    eager: /HS_REGISTRY_UNAVAILABLE/,
  },
  { what: "no answer", fault: { kind: "reset" }, times: 2, lazy: "right", eager: "right" },
  { what: "a broken body", fault: { kind: "break", after: 1000 }, times: 2, lazy: "right", eager: "right" },
  { what: "a body that ends early", fault: { kind: "short", by: 700 }, lazy: "right", eager: "right" },
  { what: "other bytes than asked for", fault: { kind: "shift", by: 512 }, lazy: "right", eager: "right" },
  {
    what: "a wrong Content-Range",
    fault: { kind: "content-range", value: "bytes 0-9/10" },
    lazy: "right",
    eager: "right",
  },
  { what: "no Content-Range", fault: { kind: "content-range", value: undefined }, lazy: "right", eager: "right" },
  { what: "200 for a range", fault: { kind: "whole" }, times: ALWAYS, lazy: "right", eager: "right" },
  {
    what: "a compressed body, always",
    fault: { kind: "gzip" },
    times: ALWAYS,
    lazy: /HS_REGISTRY_PROTOCOL/,
    eager: /HS_REGISTRY_PROTOCOL/,
  },
  { what: "a flipped bit, once", fault: { kind: "flip", at: 321 }, lazy: "right", eager: /HS_DIGEST_MISMATCH/ },
  {
    what: "a flipped bit, always",
    fault: { kind: "flip", at: 321 },
    times: ALWAYS,
    lazy: /HS_UNIT_DIGEST/,
    eager: /HS_/,
  },
  { what: "silence, once", fault: { kind: "stall", after: 100 }, lazy: "right", eager: "right" },
];

const SILENCE: Case = {
  what: "silence, always",
  fault: { kind: "stall", after: 0 },
  times: ALWAYS,
  lazy: /HS_FILL_TIMEOUT/,
  eager: "right",
};

interface Place {
  readonly place: FakePlace;
  readonly node: SandboxNode;
  readonly pod: CriPod;
}

let seed = 5000;

/** A layer with one file, and a tiny one whose blob takes the read before the claim. */
function makeImage(place: FakePlace, lazy: boolean, registry: FakeRegistry = place.registry) {
  seed++;
  const data = noise(150_000, seed);
  const layer = layerOf([{ path: "data/big", data }]);
  const parts: IndexedBlob[] = [
    lazy ? indexed(layer, 32_768) : { layer, ztoc: null },
    { layer: layerOf([{ path: `tiny/${seed}` }]), ztoc: null },
  ];
  const { reference } = storeSociImage(registry, [place.shell, ...parts], { repository: `faulty/${seed}` });
  return { reference, blob: layer.descriptor.digest, hash: createHash("sha256").update(data).digest("hex") };
}

async function create({ node, pod }: Place, image: string, name: string): Promise<CriContainer> {
  await node.cri.pull(image);
  return await node.cri.createContainer(pod, { name, image, command: ["/bin/sleep", "1000"] });
}

const READ = ["/bin/sha256sum", "/data/big"];

/** The log lines of failed reads and pulls, or of those that name `blob`. */
function failuresIn(node: SandboxNode, blob = ""): string {
  return readFileSync(node.headstart.places.log, "utf8")
    .split("\n")
    .filter((line) => /fault-failed|pull-failed/.test(line) && line.includes(blob))
    .join("\n");
}

async function lazyCase(at: Place, one: Case): Promise<void> {
  const { place, node } = at;
  const { reference, blob, hash } = makeImage(place, true);
  const container = await create(at, reference, `lazy${seed}`);
  await node.cri.startContainer(container);
  const rule = { match: new RegExp(`GET .*${blob}`), times: one.times ?? 1, fault: one.fault };
  place.registry.inject(rule);
  const first = await node.cri.exec(container, READ, 60);
  if (one.lazy === "right") assert.equal(first.stdout, `${hash}  /data/big\n`, first.stderr);
  else {
    assert.notEqual(first.exitCode, 0);
    assert.match(first.stderr, /I\/O error|Input\/output error/);
    assert.match(failuresIn(node), one.lazy);
  }
  rule.times = 0;
  place.registry.faults.splice(
    0,
    place.registry.faults.length,
    ...place.registry.faults.filter((other) => other !== rule),
  );
  const again = await node.cri.exec(container, READ, 60);
  assert.equal(again.stdout, `${hash}  /data/big\n`, again.stderr);
}

async function eagerCase(at: Place, one: Case): Promise<void> {
  const { place, node, pod } = at;
  const { reference, blob, hash } = makeImage(place, false);
  const rule = { match: new RegExp(`GET .*${blob}`), times: one.times ?? 1, fault: one.fault };
  place.registry.inject(rule);
  const name = `eager${seed}`;
  let container: CriContainer | null = null;
  try {
    container = await create(at, reference, name);
    // a pull may fail before the container asks for its layers: that ask begins a new one, and only the log tells of the first
    if (one.eager !== "right") {
      assert.equal(rule.times, 0, "the fault is still there");
      assert.match(failuresIn(node, blob), one.eager);
    }
  } catch (error) {
    if (one.eager === "right" || error instanceof assert.AssertionError) throw error;
    assert.match(String(error), one.eager);
  }
  place.registry.faults.splice(
    0,
    place.registry.faults.length,
    ...place.registry.faults.filter((other) => other !== rule),
  );
  container ??= await node.cri.createContainer(pod, { name, image: reference, command: ["/bin/sleep", "1000"] });
  await node.cri.startContainer(container);
  const read = await node.cri.exec(container, READ, 60);
  assert.equal(read.stdout, `${hash}  /data/big\n`, read.stderr);
  assert.equal((await imageLine(node, reference)).mode, "eager");
}

async function start(options: FakeRegistryOptions = {}): Promise<Place & AsyncDisposable> {
  const place = await FakePlace.make(options);
  const config = {
    fetch: { background: false, demand_timeout_seconds: DEMAND_SECONDS },
    // one that is silent shall not hold up the others
    eager: { parallel_layers: PARALLEL },
  };
  const node = await place.node({ policy: "bound", config });
  const pod = await node.cri.runPod("faults");
  return { place, node, pod, [Symbol.asyncDispose]: () => place[Symbol.asyncDispose]() };
}

test("right data or a clear error, and right data once the registry is well again", {
  concurrency: PARALLEL,
}, async (t) => {
  await using at = await start();
  const limit = new Limit(PARALLEL);
  const jobs = [
    { title: `a read, ${SILENCE.what}`, run: () => lazyCase(at, SILENCE) },
    // the slow ones first
    ...CASES.toReversed().flatMap((one) => [
      { title: `an eager pull, ${one.what}`, run: () => eagerCase(at, one) },
      { title: `a read, ${one.what}`, run: () => lazyCase(at, one) },
    ]),
  ];
  await Promise.all(jobs.map(({ title, run }) => limit.run(() => t.test(title, run))));
});

test("a registry that refuses the read before the claim leaves the image to containerd, with the reason", async () => {
  await using at = await start();
  const { place, node, pod } = at;
  const { reference, hash } = makeImage(place, true);
  const { layers } = JSON.parse(
    Buffer.from([...place.registry.stored(`faulty/${seed}`).manifests.values()].at(-2)!.bytes).toString(),
  ) as { layers: { digest: string }[] };
  place.registry.inject({ match: layers.at(-1)!.digest, fault: status(403) });
  const ran = await runShell(node, pod, reference, READ.join(" "));
  assert.equal(ran.output, `${hash}  /data/big\n`);
  const line = await imageLine(node, reference);
  assert.equal(line.mode, "unclaimed");
  assert.match(line.reason ?? "", /HS_IMAGE_UNCLAIMED.*no blob of .* can be read/);
});

test("tokens and signed URLs that are over are renewed, and no credential reaches anybody else", async () => {
  await using place = await FakePlace.make();
  const password = "correct-horse-battery";
  const guarded = await place.addRegistry({
    auth: { kind: "bearer", users: { me: password }, anonymousPull: true },
    redirect: { lifetimeMs: 60_000 },
  });
  const docker = join(place.root, "docker");
  mkdirSync(docker);
  const auth = Buffer.from(`me:${password}`).toString("base64");
  writeFileSync(join(docker, "config.json"), JSON.stringify({ auths: { [guarded.host]: { auth } } }));
  const node = await place.node({
    policy: "bound",
    config: { fetch: { background: false }, registry: { docker_config: join(docker, "config.json") } },
  });
  const at = { place, node, pod: await node.cri.runPod("guarded") };
  const open = async () => {
    const image = makeImage(place, true, guarded);
    const container = await create(at, image.reference, `guarded${seed}`);
    await node.cri.startContainer(container);
    return async () => {
      const read = await node.cri.exec(container, READ, 60);
      assert.equal(read.stdout, `${image.hash}  /data/big\n`, read.stderr);
    };
  };
  const readers = [await open(), await open(), await open(), await open()];
  assert.ok(
    guarded.auth!.log.some((one) => one.authorization?.startsWith("Basic ")),
    "the user was used",
  );
  await readers[0]!();
  guarded.expireSignedUrls();
  await readers[1]!();
  guarded.auth!.revokeAll();
  guarded.expireSignedUrls();
  await readers[2]!();
  // as ECR says that a token is over
  guarded.expireSignedUrls();
  guarded.inject({ match: /GET .*\/blobs\//, fault: status(403) });
  await readers[3]!();

  const sent = (registry: FakeRegistry["log"]) => registry.filter((one) => one.headers.authorization !== undefined);
  assert.deepEqual(sent(guarded.storageLog), []);
  assert.deepEqual(sent(place.registry.log), []);
  assert.ok(sent(guarded.log).every((one) => one.headers.authorization!.startsWith("Bearer ")));
  const log = readFileSync(node.headstart.places.log, "utf8");
  for (const secret of [password, auth, "X-Signature=secret"]) assert.ok(!log.includes(secret), secret);
  for (const one of sent(guarded.log))
    assert.ok(!log.includes(one.headers.authorization!.slice(7)), "a token is in the log");
});
