import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeRegistry, type FakeRegistryOptions } from "../../../test/fakes/registry.ts";
import type { Fault } from "../../../test/fakes/registry-faults.ts";
import { isHeadstartError } from "../../base/errors.ts";
import { listen } from "../../base/events.ts";
import { collect, descriptorOf, openFake, openReference, patterned, scratch } from "./testing.ts";

const BYTES = patterned(300_000);

async function withBlob(options: FakeRegistryOptions = {}) {
  const fake = await FakeRegistry.start(options);
  const descriptor = descriptorOf(fake.putBlob("app", BYTES));
  const client = await openFake(fake.host, "app");
  return {
    fake,
    descriptor,
    ...client,
    blob: client.repo.openBlob(descriptor),
    async [Symbol.asyncDispose]() {
      await client[Symbol.asyncDispose]();
      await fake[Symbol.asyncDispose]();
    },
  };
}

function code(wanted: string) {
  return (error: unknown) => isHeadstartError(error) && error.code === wanted;
}

test("a range is asked for closed and uncompressed, and lands in the caller's shared buffer", async () => {
  await using it = await withBlob();
  const into = new Uint8Array(new SharedArrayBuffer(64), 8, 40);
  const got = await it.blob.readRange(1000, 1032, { into });
  assert.equal(got.buffer, into.buffer);
  assert.deepEqual(Buffer.from(got), Buffer.from(BYTES.subarray(1000, 1032)));
  const { headers } = it.fake.log.at(-1)!;
  assert.equal(headers.range, "bytes=1000-1031");
  assert.equal(headers["accept-encoding"], "identity");
  assert.match(headers["user-agent"]!, /^headstart\/\d/);
});

test("the empty range costs no request", async () => {
  await using it = await withBlob();
  assert.equal((await it.blob.readRange(5, 5)).byteLength, 0);
  assert.equal(it.fake.log.length, 0);
});

test("a range outside of the blob is a fault of the caller", async () => {
  await using it = await withBlob();
  await assert.rejects(it.blob.readRange(0, BYTES.length + 1), code("HS_INTERNAL"));
  await assert.rejects(it.blob.readRange(0, 10, { into: new Uint8Array(9) }), code("HS_INTERNAL"));
});

test("a stream may begin anywhere", async () => {
  await using it = await withBlob();
  for (const offset of [0, 1, BYTES.length - 1, BYTES.length]) {
    assert.deepEqual(await collect(it.blob.stream(offset)), Buffer.from(BYTES.subarray(offset)));
  }
});

const MENDED: readonly (readonly [string, Fault, number?])[] = [
  ["a reset before the answer", { kind: "reset" }, 2],
  ["a 500", { kind: "status", status: 500 }, 3],
  ["a 502", { kind: "status", status: 502 }],
  ["a 408", { kind: "status", status: 408 }],
  ["a 429 with Retry-After in seconds", { kind: "status", status: 429, headers: { "retry-after": "0" } }, 2],
  [
    "a 429 with Retry-After as a date",
    { kind: "status", status: 429, headers: { "retry-after": "Thu, 01 Jan 2026 00:00:00 GMT" } },
  ],
  ["a body that breaks", { kind: "break", after: 12_345 }, 3],
  ["a body that breaks at once, several times", { kind: "break", after: 0 }, 3],
  ["a body that ends early without saying so", { kind: "short", by: 777 }, 2],
  ["a body that stalls", { kind: "stall", after: 20_000 }],
  ["a shifted range", { kind: "shift", by: 3 }, 2],
  ["a Content-Range that is not true", { kind: "content-range", value: "bytes 0-99/300000" }],
  ["a 206 without a Content-Range", { kind: "content-range", value: undefined }],
  ["the whole blob instead of the range", { kind: "whole" }],
];

for (const [what, fault, times] of MENDED) {
  test(`${what}: the right bytes all the same`, async () => {
    await using it = await withBlob();
    it.fake.inject({ match: "/blobs/", fault, times: times ?? 1 });
    const got = await it.blob.readRange(50_000, 250_000);
    assert.ok(Buffer.from(got).equals(Buffer.from(BYTES.subarray(50_000, 250_000))));
    assert.equal(it.fake.faults.length, 0, "the fault was met");
  });
}

test("a body that breaks is gone on with from where it broke", async () => {
  await using it = await withBlob();
  it.fake.inject({ fault: { kind: "break", after: 100_000 } });
  assert.deepEqual(await collect(it.blob.stream(0)), Buffer.from(BYTES));
  const [first, second] = it.fake.log;
  assert.equal(first!.headers.range, undefined);
  assert.match(second!.headers.range!, /^bytes=[1-9]\d*-299999$/);
});

const REFUSED: readonly (readonly [string, Fault, string])[] = [
  ["a 404", { kind: "status", status: 404 }, "HS_BLOB_NOT_FOUND"],
  ["a 403", { kind: "status", status: 403 }, "HS_REGISTRY_DENIED"],
  ["a 401 without a challenge", { kind: "status", status: 401 }, "HS_REGISTRY_AUTH"],
  ["a 416 inside the blob", { kind: "status", status: 416 }, "HS_SIZE_MISMATCH"],
  ["a 400", { kind: "status", status: 400 }, "HS_REGISTRY_PROTOCOL"],
  ["500 for ever", { kind: "status", status: 500 }, "HS_REGISTRY_UNAVAILABLE"],
  ["429 for ever", { kind: "status", status: 429 }, "HS_REGISTRY_RATE"],
  [
    "429 with more patience than we have",
    { kind: "status", status: 429, headers: { "retry-after": "3600" } },
    "HS_REGISTRY_RATE",
  ],
  ["a compressed body", { kind: "gzip" }, "HS_REGISTRY_PROTOCOL"],
  ["another total size", { kind: "content-range", value: "bytes 10-19/299999" }, "HS_SIZE_MISMATCH"],
  ["a shifted range for ever", { kind: "shift", by: -1 }, "HS_REGISTRY_RANGE"],
  ["a body that breaks at once for ever", { kind: "break", after: 0 }, "HS_REGISTRY_UNAVAILABLE"],
  ["a multi-part answer", { kind: "content-range", value: "bytes 10-19,20-29/300000" }, "HS_REGISTRY_RANGE"],
];

for (const [what, fault, wanted] of REFUSED) {
  test(`${what}: a clear error, ${wanted}`, async () => {
    await using it = await withBlob();
    it.fake.inject({ match: "/blobs/", fault, times: 1000 });
    await assert.rejects(it.blob.readRange(10, 20), code(wanted));
  });
}

test("a flipped byte is found when the whole blob is read, and asked for again once", async () => {
  await using it = await withBlob();
  it.fake.inject({ fault: { kind: "flip", at: 5 } });
  assert.deepEqual(await it.blob.readAll(), BYTES);
  it.fake.inject({ fault: { kind: "flip", at: 5 }, times: 2 });
  await assert.rejects(it.blob.readAll(), code("HS_DIGEST_MISMATCH"));
  it.fake.inject({ fault: { kind: "flip", at: 5 } });
  await assert.rejects(collect(it.blob.stream(0)), code("HS_DIGEST_MISMATCH"));
});

test("a blob of another size than its descriptor says is refused", async () => {
  await using it = await withBlob();
  for (const size of [BYTES.length - 1, BYTES.length + 1]) {
    const blob = it.repo.openBlob({ ...it.descriptor, size });
    await assert.rejects(blob.readAll(), code("HS_SIZE_MISMATCH"));
    await assert.rejects(blob.readRange(10, 20), code("HS_SIZE_MISMATCH"));
  }
});

test("a redirect is followed once, then its target is asked directly", async () => {
  await using it = await withBlob({ redirect: { lifetimeMs: 60_000 } });
  await it.blob.readRange(0, 10);
  await it.blob.readRange(20, 30);
  const second = it.repo.openBlob(it.descriptor);
  assert.deepEqual(Buffer.from(await second.readRange(40, 50)), Buffer.from(BYTES.subarray(40, 50)));
  assert.equal(it.fake.log.length, 1);
  assert.equal(it.fake.storageLog.length, 3);
});

for (const [what, fault] of [
  ["expired", undefined],
  ["401", { kind: "status", status: 401, headers: { "www-authenticate": 'Basic realm="phish"' } }],
  ["404", { kind: "status", status: 404 }],
  ["400 ExpiredToken", { kind: "status", status: 400, body: "<Error><Code>ExpiredToken</Code></Error>" }],
] as const) {
  test(`a signed URL that is over (${what}) is asked for again at the registry`, async () => {
    await using it = await withBlob({ redirect: { lifetimeMs: 60_000 } });
    await it.blob.readRange(0, 10);
    if (fault === undefined) it.fake.expireSignedUrls();
    else it.fake.inject({ at: "storage", fault });
    assert.deepEqual(Buffer.from(await it.blob.readRange(100, 200)), Buffer.from(BYTES.subarray(100, 200)));
    assert.equal(it.fake.log.length, 2);
  });
}

test("a signed URL that dies in the middle of a stream: the stream goes on", async () => {
  await using it = await withBlob({ redirect: { lifetimeMs: 60_000 } });
  it.fake.inject({ at: "storage", fault: { kind: "break", after: 150_000 } });
  const chunks: Uint8Array[] = [];
  for await (const chunk of it.blob.stream(0)) {
    if (chunks.length === 0) it.fake.expireSignedUrls();
    chunks.push(chunk);
  }
  assert.deepEqual(Buffer.concat(chunks), Buffer.from(BYTES));
});

test("an abort ends the read with the signal's reason, also within a stall", async () => {
  await using it = await withBlob();
  const reason = new Error("the container is gone");
  it.fake.inject({ fault: { kind: "stall", after: 10 }, times: 100 });
  const controller = new AbortController();
  const read = it.blob.readRange(0, 1000, { signal: controller.signal });
  setTimeout(() => controller.abort(reason), 50);
  await assert.rejects(read, (error) => error === reason);
  await assert.rejects(it.blob.readRange(0, 10, { signal: AbortSignal.abort(reason) }), (error) => error === reason);
});

test("leaving a stream early releases its connection and its place", async () => {
  await using it = await withBlob();
  const client = await openFake(it.fake.host, "app", { hostConcurrency: 1 });
  await using _ = client;
  const blob = client.repo.openBlob(it.descriptor);
  for (let round = 0; round < 3; round++) {
    for await (const chunk of blob.stream(0)) {
      assert.ok(chunk.byteLength > 0);
      break;
    }
  }
  assert.equal((await blob.readRange(0, 10)).byteLength, 10);
});

test("mirrors are asked in order, with ns, and the registry itself last", async () => {
  await using origin = await FakeRegistry.start();
  await using mirror = await FakeRegistry.start();
  const descriptor = descriptorOf(origin.putBlob("app", BYTES));
  mirror.putBlob("hub/app", BYTES);
  using hosts = await scratch({
    [`${origin.host}/hosts.toml`]: `server = "http://${origin.host}"\n[host."http://${mirror.host}/v2/hub"]\noverride_path = true\n`,
  });
  await using it = await openReference(`${origin.host}/app`, { hostsDirs: [hosts.path] });
  const blob = it.repo.openBlob(descriptor);
  assert.equal(blob.sourceCount, 2);
  await blob.readRange(0, 10);
  assert.equal(mirror.log.at(-1)!.query, `?ns=${encodeURIComponent(origin.host)}`);
  assert.equal(origin.log.length, 0);
  // wrong bytes: the caller begins with the next source
  await blob.readRange(0, 10, { attempt: 1 });
  assert.equal(origin.log.length, 1);
  assert.equal(origin.log[0]!.query, "");
  // a mirror that fails is passed at once
  mirror.inject({ fault: { kind: "status", status: 404 } }, { fault: { kind: "flip", at: 1 } });
  assert.deepEqual(Buffer.from(await blob.readRange(7, 70)), Buffer.from(BYTES.subarray(7, 70)));
  assert.equal(origin.log.length, 2);
  assert.deepEqual(await blob.readAll(), BYTES);
});

test("hosts that ignore ranges are noticed, and asked last for parts", async () => {
  await using origin = await FakeRegistry.start();
  await using mirror = await FakeRegistry.start();
  const descriptor = descriptorOf(origin.putBlob("app", BYTES));
  mirror.putBlob("app", BYTES);
  mirror.inject({ fault: { kind: "whole" } });
  using hosts = await scratch({
    [`${origin.host}/hosts.toml`]: `server = "http://${origin.host}"\n[host."http://${mirror.host}"]\n`,
  });
  await using it = await openReference(`${origin.host}/app`, { hostsDirs: [hosts.path] });
  const blob = it.repo.openBlob(descriptor);
  for (const at of [1000, 2000]) {
    assert.deepEqual(Buffer.from(await blob.readRange(at, at + 9)), Buffer.from(BYTES.subarray(at, at + 9)));
  }
  assert.deepEqual([mirror.log.length, origin.log.length, blob.ignoresRanges], [1, 1, false]);
  origin.inject({ fault: { kind: "whole" } });
  await blob.readRange(1, 2);
  assert.equal(blob.ignoresRanges, true);
});

test("every request is told as a fact without path, query or secret", async () => {
  await using it = await withBlob({ redirect: { lifetimeMs: 60_000 } });
  const facts: Record<string, unknown>[] = [];
  const end = listen("registry:request", (fact) => facts.push(fact));
  await it.blob.readRange(0, 1234);
  end();
  assert.deepEqual(
    facts.filter((fact) => fact.kind !== "probe").map(({ ms, error, ...fact }) => fact),
    [
      { host: it.fake.host, method: "GET", kind: "range", status: 307, bytes: 0 },
      { host: it.fake.storageHost, method: "GET", kind: "range", status: 206, bytes: 1234 },
    ],
  );
  assert.ok(!JSON.stringify(facts).includes("Signature"));
});
