import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { FakeRegistry } from "./registry.ts";
import type { Fault } from "./registry-faults.ts";

const BYTES = Buffer.from("0123456789".repeat(100));
const MANIFEST = { schemaVersion: 2, config: {}, layers: [] };

async function start(options: Parameters<typeof FakeRegistry.start>[0] = {}) {
  const fake = await FakeRegistry.start(options);
  const { digest } = fake.putBlob("a/b", BYTES);
  const get = (path: string, init: RequestInit = {}) =>
    fetch(`http://${fake.host}/v2/${path}`, { redirect: "manual", ...init });
  return { fake, digest, blob: `a/b/blobs/${digest}`, get, [Symbol.asyncDispose]: () => fake[Symbol.asyncDispose]() };
}

test("blobs are served whole and by range, with honest headers, and counted", async () => {
  await using it = await start();
  const whole = await it.get(it.blob);
  assert.deepEqual(Buffer.from(await whole.arrayBuffer()), BYTES);
  assert.equal(whole.headers.get("docker-content-digest"), it.digest);
  const part = await it.get(it.blob, { headers: { range: "bytes=5-14" } });
  assert.deepEqual(
    [part.status, part.headers.get("content-range"), await part.text()],
    [206, "bytes 5-14/1000", "5678901234"],
  );
  assert.equal((await it.get(it.blob, { headers: { range: "bytes=1000-1001" } })).status, 416);
  assert.equal((await it.get(it.blob, { method: "HEAD" })).headers.get("content-length"), "1000");
  assert.equal((await it.get(`a/b/blobs/sha256:${"0".repeat(64)}`)).status, 404);
  assert.equal(it.fake.bytesServed, 1010);
  assert.deepEqual(
    it.fake.log.map((one) => one.status),
    [200, 206, 416, 200, 404],
  );
});

test("an upload in pieces must be in order and have its digest", async () => {
  await using it = await start();
  const opened = await it.get("a/b/blobs/uploads/", { method: "POST" });
  assert.equal(opened.status, 202);
  const place = `http://${it.fake.host}${opened.headers.get("location")}`;
  const patch = (range: string, body: string) =>
    fetch(place, { method: "PATCH", headers: { "content-range": range }, body });
  assert.equal((await patch("0-2", "abc")).status, 202);
  assert.equal((await patch("5-7", "def")).status, 416);
  const state = await fetch(place);
  assert.deepEqual([state.status, state.headers.get("range")], [204, "0-2"]);
  const digest = `sha256:${createHash("sha256").update("abcdef").digest("hex")}`;
  assert.equal((await fetch(`${place}&digest=${digest}`, { method: "PUT", body: "xyz" })).status, 400);
  const again = await it.get("a/b/blobs/uploads/", { method: "POST" });
  const whole = `http://${it.fake.host}${again.headers.get("location")}&digest=${digest}`;
  assert.equal((await fetch(whole, { method: "PUT", body: "abcdef" })).status, 201);
  assert.equal((await it.get(`a/b/blobs/uploads/?mount=${digest}&from=a/b`, { method: "POST" })).status, 201);
});

test("a manifest that names blobs which are not there is refused", async () => {
  await using it = await start();
  const put = (document: object) => it.get("a/b/manifests/v1", { method: "PUT", body: JSON.stringify(document) });
  assert.equal((await put({ ...MANIFEST, config: { digest: `sha256:${"0".repeat(64)}` } })).status, 404);
  assert.equal((await put({ ...MANIFEST, config: { digest: it.digest } })).status, 201);
  assert.equal((await it.get("a/b/manifests/v1")).status, 200);
  assert.equal((await it.get("a/b/manifests/v2")).status, 404);
});

test("referrers are listed by page, or the API is not there", async () => {
  await using it = await start({ pageSize: 1 });
  for (const note of ["1", "2"]) {
    it.fake.putManifest("a/b", { ...MANIFEST, subject: { digest: it.digest }, annotations: { note } }, "application/x");
  }
  const first = await it.get(`a/b/referrers/${it.digest}`);
  assert.match(first.headers.get("link")!, /page=1>; rel="next"/);
  assert.equal(((await first.json()) as { manifests: unknown[] }).manifests.length, 1);
  await using old = await start({ referrersApi: false });
  assert.equal((await old.get(`a/b/referrers/${old.digest}`)).status, 404);
});

test("redirects lead to a URL that ends, and that refuses our credentials", async () => {
  await using it = await start({ redirect: { lifetimeMs: 60_000 } });
  const { headers } = await it.get(it.blob);
  const signed = headers.get("location")!;
  assert.ok(signed.startsWith(`http://${it.fake.storageHost}/`));
  assert.deepEqual(Buffer.from(await (await fetch(signed)).arrayBuffer()), BYTES);
  assert.equal((await fetch(signed, { headers: { authorization: "Basic x" } })).status, 400);
  it.fake.expireSignedUrls();
  assert.equal((await fetch(signed)).status, 403);
});

test("basic and bearer are asked for, and checked", async () => {
  await using basic = await start({ auth: { kind: "basic", users: { u: "p" } } });
  const login = { headers: { authorization: `Basic ${Buffer.from("u:p").toString("base64")}` } };
  assert.equal((await basic.get(basic.blob)).headers.get("www-authenticate"), 'Basic realm="fake"');
  assert.equal((await basic.get(basic.blob, login)).status, 200);
  await using bearer = await start({ auth: { kind: "bearer", users: { u: "p" } } });
  const challenge = (await bearer.get(bearer.blob)).headers.get("www-authenticate")!;
  const realm = /realm="([^"]+)"/.exec(challenge)![1]!;
  assert.match(challenge, /scope="repository:a\/b:pull"/);
  const token = async (init: RequestInit) => {
    const answer = await fetch(`${realm}?service=fake&scope=repository:a/b:pull`, init);
    return answer.ok ? ((await answer.json()) as { token: string }).token : answer.status;
  };
  assert.equal(await token({ headers: { authorization: "Basic eDp5" } }), 401);
  const good = { headers: { authorization: `Bearer ${await token(login)}` } };
  assert.equal((await bearer.get(bearer.blob, good)).status, 200);
  const anonymous = { headers: { authorization: `Bearer ${await token({})}` } };
  assert.equal((await bearer.get(bearer.blob, anonymous)).status, 401);
});

test("every fault does what it is called, once", async () => {
  await using it = await start();
  const ranged = { headers: { range: "bytes=0-9" } };
  const ask = async (fault: Fault, init: RequestInit = ranged) => {
    it.fake.inject({ match: "/blobs/", fault });
    const answer = await it.get(it.blob, init);
    return [answer.status, answer.headers.get("content-range"), await answer.text()];
  };
  assert.deepEqual((await ask({ kind: "status", status: 418, body: "tea" }))[2], "tea");
  assert.deepEqual(await ask({ kind: "shift", by: 2 }), [206, "bytes 2-11/1000", "2345678901"]);
  assert.deepEqual(await ask({ kind: "content-range", value: "x" }), [206, "x", "0123456789"]);
  assert.deepEqual((await ask({ kind: "whole" }))[0], 200);
  assert.deepEqual(await ask({ kind: "flip", at: 0 }), [206, "bytes 0-9/1000", "1123456789"]);
  assert.deepEqual((await ask({ kind: "short", by: 4 }))[2], "012345");
  assert.equal((await ask({ kind: "gzip" }))[2], "0123456789"); // fetch undoes it
  await assert.rejects(ask({ kind: "break", after: 5 }));
  await assert.rejects(ask({ kind: "reset" }));
  await assert.rejects(ask({ kind: "stall", after: 5 }, { ...ranged, signal: AbortSignal.timeout(100) }));
  assert.deepEqual((await it.get(it.blob, ranged)).status, 206);
});

test("the rate is kept, over all connections together", async () => {
  await using it = await start({ bytesPerSecond: 20_000 });
  const started = performance.now();
  await Promise.all([1, 2, 3, 4].map(async () => (await it.get(it.blob)).arrayBuffer()));
  const ms = performance.now() - started;
  assert.ok(ms > 150, `${ms} ms for 4000 bytes at 20 kB/s`);
});
