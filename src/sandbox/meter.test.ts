import assert from "node:assert/strict";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { Meter, type MeterOptions } from "./meter.ts";

const DIGEST = `sha256:${"a".repeat(64)}`;
const BLOB = Buffer.alloc(400_000, "blob");

/** A registry of one blob behind a meter. */
async function metered(options: MeterOptions = {}) {
  const stack = new AsyncDisposableStack();
  const server = createServer((request, answer) => {
    const [, start, end] = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "") ?? [];
    if (request.method === "PATCH") request.pipe(answer);
    else if (start === undefined) answer.end(request.method === "HEAD" ? undefined : BLOB);
    else answer.writeHead(206).end(BLOB.subarray(Number(start), Number(end) + 1));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  stack.defer(() => {
    server.closeAllConnections();
    server.close();
  });
  const meter = stack.use(await Meter.start(`127.0.0.1:${(server.address() as AddressInfo).port}`, options));
  const get = (range?: string) =>
    fetch(`http://${meter.host}/v2/x/blobs/${DIGEST}`, range === undefined ? {} : { headers: { range } });
  return { meter, get, [Symbol.asyncDispose]: () => stack.disposeAsync() };
}

test("requests and bytes are counted by blob, ranges by what they brought", async () => {
  await using it = await metered();
  await (await it.get()).arrayBuffer();
  const mark = it.meter.mark();
  const part = Buffer.from(await (await it.get("bytes=10-109")).arrayBuffer());
  assert.deepEqual(part, BLOB.subarray(10, 110));
  await fetch(`http://${it.meter.host}/v2/x/manifests/latest`, { method: "HEAD" });
  const counted = it.meter.since(mark);
  assert.equal(counted.requests, 2);
  assert.deepEqual(counted.blobs, new Map([[DIGEST, { requests: 1, bytes: 100 }]]));
  assert.deepEqual(
    counted.list.map(({ method, kind, target, range, status }) => [method, kind, target, range, status]),
    [
      ["GET", "blob", DIGEST, "bytes=10-109", 206],
      ["HEAD", "manifest", "latest", undefined, 200],
    ],
  );
});

test("the cap holds for all connections together", async () => {
  await using it = await metered({ bytesPerSecond: 1_600_000 });
  const start = performance.now();
  const bodies = await Promise.all([0, 1].map(async () => (await it.get()).arrayBuffer()));
  const seconds = (performance.now() - start) / 1000;
  for (const body of bodies) assert.ok(Buffer.from(body).equals(BLOB));
  assert.ok(seconds > 0.45, `800 kB at 1.6 MB/s took ${seconds} s`);
});

test("what an older request brings after the mark counts as bytes, not as a request", async () => {
  await using it = await metered({ bytesPerSecond: 1_000_000 });
  const answer = await it.get();
  const reader = answer.body!.getReader();
  await reader.read();
  const mark = it.meter.mark();
  while (!(await reader.read()).done);
  const counted = it.meter.since(mark);
  assert.equal(counted.requests, 0);
  assert.ok(counted.blobBytes > 0 && counted.blobBytes < BLOB.byteLength, `${counted.blobBytes} bytes`);
});

test("what a client does not wait for is not counted as fetched", async () => {
  await using it = await metered({ bytesPerSecond: 200_000 });
  const controller = new AbortController();
  const answer = await fetch(`http://${it.meter.host}/v2/x/blobs/${DIGEST}`, { signal: controller.signal });
  await answer.body!.getReader().read();
  controller.abort();
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.ok(it.meter.since({ requests: 0, bytesBefore: new Map() }).bytes < BLOB.byteLength / 2);
});

test("uploads pass through unchanged", async () => {
  await using it = await metered();
  const answer = await fetch(`http://${it.meter.host}/v2/x/blobs/uploads/1`, { method: "PATCH", body: BLOB });
  assert.ok(Buffer.from(await answer.arrayBuffer()).equals(BLOB));
});
