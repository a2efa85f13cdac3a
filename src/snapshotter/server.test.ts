import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { type ClientHttp2Session, connect as connectHttp2, type IncomingHttpHeaders } from "node:http2";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { toBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { EmptySchema } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import { type ServedSnapshotter, startSnapshotter } from "../../test/fakes/snapshots-client.ts";
import { list, rejects } from "../../test/suites/snapshotter.ts";
import { sha256 } from "../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { Kind } from "../gen/github.com/containerd/containerd/api/services/snapshots/v1/snapshots_pb.ts";
import { serveSnapshotter } from "./server.ts";

function temporary(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), "snapshotter-server-"));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

async function start(t: TestContext): Promise<ServedSnapshotter> {
  const served = await startSnapshotter(join(temporary(t), "root"), { quietMs: 0 });
  t.after(() => served.close());
  return served;
}

/** One gRPC call by hand: what a client library would not send. Resolves with the grpc-status. */
async function rawCall(
  address: string,
  headers: Record<string, string>,
  message: Uint8Array,
): Promise<{ status: string; http: number }> {
  const session: ClientHttp2Session = connectHttp2("http://localhost", { createConnection: () => connect(address) });
  try {
    const request = session.request({
      ":method": "POST",
      "content-type": "application/grpc",
      te: "trailers",
      ...headers,
    });
    const frame = Buffer.alloc(5 + message.byteLength);
    frame.writeUInt32BE(message.byteLength, 1);
    frame.set(message, 5);
    request.end(frame);
    return await new Promise((resolve, reject) => {
      let http = 0;
      let status = "";
      const note = (got: IncomingHttpHeaders) => {
        status = String(got["grpc-status"] ?? status);
      };
      request.on("response", (got) => {
        http = Number(got[":status"]);
        note(got);
      });
      request.on("trailers", note);
      request.on("error", reject);
      request.on("end", () => resolve({ status, http }));
      request.resume();
    });
  } finally {
    session.destroy();
  }
}

const SERVICE = "/containerd.services.snapshots.v1.Snapshots";
const target = sha256(Buffer.from("target"));

test("every error code of the service reaches the client", async (t) => {
  const { client } = await start(t);
  await client.prepare({ key: "a" });
  await client.view({ key: "v" });
  await client.prepare({ key: "c-a" });
  await client.commit({ name: "c", key: "c-a" });
  await client.prepare({ key: "child", parent: "c" });
  await rejects(client.prepare({ key: "a" }), Code.AlreadyExists);
  await rejects(client.prepare({ key: "x", parent: "none" }), Code.NotFound);
  await rejects(client.prepare({ key: "x", parent: "a" }), Code.InvalidArgument);
  await rejects(client.prepare({ key: "" }), Code.InvalidArgument);
  await rejects(client.prepare({ key: "x", labels: { l: "x".repeat(4096) } }), Code.InvalidArgument);
  await rejects(client.view({ key: "a" }), Code.AlreadyExists);
  await rejects(client.view({ key: "x", parent: "none" }), Code.NotFound);
  await rejects(client.view({ key: "x", parent: "v" }), Code.InvalidArgument);
  await rejects(client.mounts({ key: "none" }), Code.NotFound);
  await rejects(client.mounts({ key: "c" }), Code.FailedPrecondition);
  await rejects(client.commit({ name: "c", key: "a" }), Code.AlreadyExists);
  await rejects(client.commit({ name: "d", key: "none" }), Code.NotFound);
  await rejects(client.commit({ name: "d", key: "v" }), Code.FailedPrecondition);
  await rejects(client.remove({ key: "none" }), Code.NotFound);
  await rejects(client.remove({ key: "c" }), Code.FailedPrecondition, /remove/);
  await rejects(client.stat({ key: "none" }), Code.NotFound);
  await rejects(client.update({ info: { name: "none" } }), Code.NotFound);
  await rejects(client.update({ info: { name: "a" }, updateMask: { paths: ["kind"] } }), Code.InvalidArgument);
  await rejects(client.update({}), Code.NotFound);
  await rejects(list(client, ["kind="]), Code.InvalidArgument);
  await rejects(client.usage({ key: "none" }), Code.NotFound);
  assert.deepEqual(toBinary(EmptySchema, await client.cleanup({})), new Uint8Array());
});

test("a claimed target is ALREADY_EXISTS, and found by containerd's own filter", async (t) => {
  const { client, provider } = await start(t);
  const layer = provider.addLayer();
  provider.decide = () => ({ kind: "lazy", layer });
  const labels = { "containerd.io/snapshot.ref": target };
  await rejects(client.prepare({ key: `ns/1/extract-1 ${target}`, labels }), Code.AlreadyExists);
  const [info] = await list(client, [`labels."containerd.io/snapshot.ref"==${target},parent==""`]);
  assert.deepEqual(
    [info!.kind, info!.parent, info!.labels["containerd.io/snapshot.ref"]],
    [Kind.COMMITTED, "", target],
  );
  await rejects(client.stat({ key: `ns/1/extract-1 ${target}` }), Code.NotFound);
  assert.equal((await client.stat({ key: info!.name })).info!.name, info!.name);
  provider.beforeLowers = () => Promise.reject(new HeadstartError("HS_REGISTRY_UNAVAILABLE", { what: "away" }));
  await rejects(client.prepare({ key: "k", parent: info!.name }), Code.Unavailable, /HS_REGISTRY_UNAVAILABLE/);
});

test("a client that cancels ends the provider's wait", async (t) => {
  const { client, provider } = await start(t);
  const layer = provider.addLayer();
  provider.decide = () => ({ kind: "lazy", layer });
  const labels = { "containerd.io/snapshot.ref": target };
  await rejects(client.prepare({ key: "e", labels }), Code.AlreadyExists);
  const [info] = await list(client);
  const begun = Promise.withResolvers<void>();
  const ended = Promise.withResolvers<void>();
  provider.beforeLowers = (_, signal) =>
    new Promise((_, reject) => {
      begun.resolve();
      signal!.addEventListener("abort", () => {
        ended.resolve();
        reject(signal!.reason);
      });
    });
  const caller = new AbortController();
  const prepared = client.prepare({ key: "k", parent: info!.name }, { signal: caller.signal });
  await begun.promise;
  caller.abort();
  await rejects(prepared, Code.Canceled);
  await ended.promise;
  // the row goes once the provider has let go
  for (const deadline = Date.now() + 60_000; (await list(client)).length > 1; await sleep(5))
    assert.ok(Date.now() < deadline, "the snapshot is still there");
  await rejects(client.stat({ key: "k" }), Code.NotFound);
  await rejects(client.prepare({ key: "k", parent: info!.name }, { timeoutMs: 50 }), Code.DeadlineExceeded);
});

test("a list comes in batches of 100, and stat works between them", async (t) => {
  const { client } = await start(t);
  for (let index = 0; index < 205; index++) await client.view({ key: `v${index}` });
  const sizes: number[] = [];
  for await (const { info } of client.list({})) {
    sizes.push(info.length);
    await client.stat({ key: info[0]!.name });
    await client.remove({ key: info.at(-1)!.name });
  }
  assert.deepEqual(sizes, [100, 100, 5]);
});

test("times are exact to the microsecond and lie between the client's", async (t) => {
  const { client } = await start(t);
  const begun = Date.now();
  await client.prepare({ key: "a" });
  const { createdAt } = (await client.stat({ key: "a" })).info!;
  const us = Number(createdAt!.seconds) * 1e6 + createdAt!.nanos / 1000;
  assert.ok(Number.isInteger(us) && us >= begun * 1000 && us <= (Date.now() + 1) * 1000);
});

test("a message of 15 MiB is taken, one beyond 16 MiB is refused", async (t) => {
  const { client } = await start(t);
  const labels = Object.fromEntries(Array.from({ length: 3900 }, (_, i) => [`l${i}`, "x".repeat(4000)]));
  await client.prepare({ key: "large", labels });
  assert.equal(Object.keys((await client.stat({ key: "large" })).info!.labels).length, 3900);
  const tooLarge = {
    ...labels,
    ...Object.fromEntries(Array.from({ length: 400 }, (_, i) => [`m${i}`, "x".repeat(4000)])),
  };
  // the server stops reading: RESOURCE_EXHAUSTED, or the stream's end (ENHANCE_YOUR_CALM, which gRPC libraries take for the same)
  await assert.rejects(client.prepare({ key: "larger", labels: tooLarge }), /exhausted|ENHANCE_YOUR_CALM/);
  await client.stat({ key: "large" });
});

test("whatever :authority says, or nothing, calls are served", async (t) => {
  const { address, client } = await start(t);
  await client.prepare({ key: "a" });
  const message = new BinaryWriter().tag(2, WireType.LengthDelimited).string("a").finish();
  for (const authority of ["localhost", "%2Frun%2Fheadstart.sock", "pipe", "[", "a:b:c", "unix"]) {
    const headers = { ":path": `${SERVICE}/Stat`, ":authority": authority };
    assert.deepEqual(await rawCall(address, headers, message), { status: "0", http: 200 }, authority);
  }
});

test("an unknown service, method or path is UNIMPLEMENTED and harms nobody", async (t) => {
  const { address, client } = await start(t);
  for (const path of [`${SERVICE}/Nothing`, "/other.Service/Method", "/", "//", "/a/b/c", "/%zz/x"]) {
    const { status } = await rawCall(address, { ":path": path }, new Uint8Array());
    assert.equal(status, "12", path);
  }
  assert.deepEqual(await list(client), []);
});

test("garbage instead of a message is an error of that call alone", async (t) => {
  const { address, client } = await start(t);
  const { status } = await rawCall(
    address,
    { ":path": `${SERVICE}/Prepare` },
    Buffer.from("\xff\xff\xff\xff", "latin1"),
  );
  assert.notEqual(status, "0");
  assert.deepEqual(await list(client), []);
});

test("Commit understands the parent that newer containerd sends", async (t) => {
  const { address, client } = await start(t);
  await client.prepare({ key: "p-a" });
  await client.commit({ name: "p", key: "p-a" });
  await client.prepare({ key: "a" });
  const commit = (parent: string) => {
    const writer = new BinaryWriter();
    for (const [field, value] of [
      [2, "n"],
      [3, "a"],
      [5, parent],
    ] as const)
      writer.tag(field, WireType.LengthDelimited).string(value);
    return rawCall(address, { ":path": `${SERVICE}/Commit` }, writer.finish());
  };
  assert.equal((await commit("none")).status, String(Code.NotFound));
  assert.equal((await commit("p")).status, "0");
  assert.equal((await client.stat({ key: "n" })).info!.parent, "p");
});

test("the socket is root's alone, replaces a dead one, and goes with the server", async (t) => {
  const directory = temporary(t);
  const served = await startSnapshotter(join(directory, "root"));
  t.after(() => served.close());
  const address = join(directory, "run/h.sock");
  const server = await serveSnapshotter({ snapshotter: served.snapshotter, address });
  assert.equal(statSync(join(directory, "run")).mode & 0o777, 0o700);
  assert.equal(statSync(address).mode & 0o777, 0o600);
  await assert.rejects(serveSnapshotter({ snapshotter: served.snapshotter, address }), (error) =>
    isHeadstartError(error, "HS_STATE_BUSY"),
  );
  await server[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
  assert.ok(!existsSync(address));
  // what a killed daemon leaves: a socket that nobody listens on
  const dead = createServer().listen(address);
  await new Promise((resolve) => dead.once("listening", resolve));
  chmodSync(address, 0o777);
  const inode = statSync(address).ino;
  await new Promise((resolve) => dead.close(resolve));
  writeFileSync(address, "");
  const again = await serveSnapshotter({ snapshotter: served.snapshotter, address });
  assert.notEqual(statSync(address).ino, inode);
  assert.equal(statSync(address).mode & 0o777, 0o600);
  await again[Symbol.asyncDispose]();
});

test("an address that is relative or too long is refused in words", async (t) => {
  const { snapshotter, root } = await start(t);
  for (const address of ["h.sock", join(root, "x".repeat(120))]) {
    await assert.rejects(serveSnapshotter({ snapshotter, address }), (error) => isHeadstartError(error, "HS_CONFIG"));
  }
});

test("paths that no service has go to the fallback as they are", async (t) => {
  const { snapshotter, root } = await start(t);
  const address = join(root, "f.sock");
  const seen: string[] = [];
  const server = await serveSnapshotter({
    snapshotter,
    address,
    fallback: (request, response) => {
      seen.push(request.url);
      response.writeHead(200, { "content-type": "application/grpc", "grpc-status": "0" });
      response.end();
    },
  });
  t.after(() => server[Symbol.asyncDispose]());
  const path = "/runtime.v1.ImageService/StreamImages";
  assert.equal((await rawCall(address, { ":path": path }, new Uint8Array())).status, "0");
  assert.deepEqual(seen, [path]);
});
