import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { test } from "node:test";
import { FakeRegistry } from "../../../test/fakes/registry.ts";
import { type Digest, sha256 } from "../../base/digest.ts";
import { type ErrorCode, isHeadstartError } from "../../base/errors.ts";
import { parseIndex } from "../manifest.ts";
import { MEDIA_TYPES } from "../media-types.ts";
import { parseNextLink } from "./link.ts";
import { fallbackTag, forgetReferrer } from "./referrers.ts";
import { openFake, openReference, patterned, scratch } from "./testing.ts";

const code = (wanted: ErrorCode) => (error: unknown) => isHeadstartError(error, wanted);
const BYTES = patterned(200_000);
const BLOB = { mediaType: MEDIA_TYPES.octetStream, digest: sha256(BYTES), size: BYTES.byteLength };
const EMPTY = Buffer.from("{}");
const CONFIG = { mediaType: MEDIA_TYPES.ociConfig, digest: sha256(EMPTY), size: 2 };
const json = (value: unknown) => Buffer.from(JSON.stringify(value));
const MANIFEST = json({ schemaVersion: 2, mediaType: MEDIA_TYPES.ociManifest, config: CONFIG, layers: [] });

async function* inPieces(bytes: Uint8Array, size = 7777): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.byteLength; at += size) yield bytes.subarray(at, at + size);
}

test("a tag is resolved to the digest of its bytes, and read without a second request", async () => {
  await using fake = await FakeRegistry.start();
  const stored = fake.putManifest("app", MANIFEST, MEDIA_TYPES.ociManifest, "latest");
  await using it = await openFake(fake.host, "app");
  const descriptor = await it.repo.resolve();
  assert.deepEqual(descriptor, stored);
  assert.deepEqual(Buffer.from(await it.repo.readManifest(descriptor)), MANIFEST);
  assert.equal(fake.log.length, 1);
  assert.match(fake.log[0]!.headers.accept!, /oci\.image\.index.*docker\.distribution\.manifest\.v2/);
});

test("a manifest with wrong bytes is refused, by digest and by Docker-Content-Digest", async () => {
  await using fake = await FakeRegistry.start();
  const { digest } = fake.putManifest("app", MANIFEST, MEDIA_TYPES.ociManifest, "latest");
  await using it = await openFake(fake.host, "app");
  fake.inject({ fault: { kind: "flip", at: 3 } }, { fault: { kind: "flip", at: 3 } });
  await assert.rejects(it.repo.readManifest(digest as Digest), code("HS_DIGEST_MISMATCH"));
  await assert.rejects(it.repo.resolve(), code("HS_DIGEST_MISMATCH"));
});

test("what is not there, and what is too long, are told", async () => {
  await using fake = await FakeRegistry.start();
  await using it = await openFake(fake.host, "app");
  await assert.rejects(it.repo.resolve(), code("HS_NOT_FOUND"));
  fake.putManifest("app", Buffer.alloc(9 * 1024 * 1024, 0x20), MEDIA_TYPES.ociManifest, "latest");
  await assert.rejects(it.repo.resolve(), code("HS_LIMIT"));
  await assert.rejects(it.repo.fetchManifest("no/tag"), code("HS_REFERENCE"));
});

test("a registry that is not there is unavailable, in little time", async () => {
  await using it = await openFake("127.0.0.1:1", "app");
  await assert.rejects(it.repo.resolve(), code("HS_REGISTRY_UNAVAILABLE"));
});

test("tags are listed over all pages", async () => {
  await using fake = await FakeRegistry.start({ pageSize: 3 });
  const tags = Array.from({ length: 10 }, (_, index) => `v${index}`);
  for (const tag of tags) fake.putManifest("app", MANIFEST, MEDIA_TYPES.ociManifest, tag);
  await using it = await openFake(fake.host, "app");
  assert.deepEqual(await it.repo.tags(), tags);
  assert.equal(fake.log.length, 4);
});

test("the Link header's next is found among others", () => {
  assert.equal(parseNextLink('</a?n=1>; rel="prev", </b?n=2>; title="x, y"; rel="next"'), "/b?n=2");
  assert.equal(parseNextLink("</c>; rel=next"), "/c");
  assert.equal(parseNextLink('</c>; rel="first"'), undefined);
  assert.equal(parseNextLink(undefined), undefined);
});

for (const [what, source] of [
  ["bytes", BYTES],
  ["a stream", inPieces(BYTES)],
  ["a function", () => inPieces(BYTES)],
] as const) {
  test(`a blob is pushed from ${what} in one piece, and not again when it is there`, async () => {
    await using fake = await FakeRegistry.start();
    await using it = await openFake(fake.host, "app");
    await it.repo.pushBlob(BLOB, source);
    assert.deepEqual(Buffer.from(fake.stored("app").blobs.get(BLOB.digest)!), Buffer.from(BYTES));
    assert.deepEqual(
      fake.log.map((one) => one.method),
      ["HEAD", "POST", "PUT"],
    );
    await it.repo.pushBlob(BLOB, source);
    assert.equal(fake.log.length, 4);
  });
}

test("a blob is pushed in chunks, whose size the registry may raise", async () => {
  await using fake = await FakeRegistry.start({ chunkBytesMin: 65_536 });
  await using it = await openFake(fake.host, "app", { upload: { mode: "chunked", chunkBytes: 10_000 } });
  await it.repo.pushBlob(BLOB, inPieces(BYTES));
  assert.ok(fake.stored("app").blobs.has(BLOB.digest));
  const patches = fake.log.filter((one) => one.method === "PATCH").map((one) => one.headers["content-range"]);
  assert.deepEqual(patches, ["0-65535", "65536-131071", "131072-196607", "196608-199999"]);
});

for (const status of [500, 416]) {
  test(`a chunk that is answered by ${status} is sent again from where the registry is`, async () => {
    await using fake = await FakeRegistry.start();
    await using it = await openFake(fake.host, "app", { upload: { mode: "chunked", chunkBytes: 50_000 } });
    fake.inject(
      { match: "PATCH", fault: { kind: "status", status }, times: 2 },
      { match: "PATCH", fault: { kind: "reset" } },
    );
    await it.repo.pushBlob(BLOB, inPieces(BYTES));
    assert.ok(fake.stored("app").blobs.has(BLOB.digest));
  });
}

test("a broken upload begins anew when its source can be opened again, and fails clearly when not", async () => {
  await using fake = await FakeRegistry.start();
  await using it = await openFake(fake.host, "app");
  fake.inject({ match: "PUT", fault: { kind: "reset" }, times: 2 });
  await it.repo.pushBlob(BLOB, () => inPieces(BYTES));
  assert.ok(fake.stored("app").blobs.has(BLOB.digest));
  fake.stored("app").blobs.clear();
  fake.inject({ match: "PUT", fault: { kind: "status", status: 503 } });
  await assert.rejects(it.repo.pushBlob(BLOB, inPieces(BYTES)), code("HS_REGISTRY_UNAVAILABLE"));
});

test("a proxy that limits bodies gets chunks", async () => {
  await using fake = await FakeRegistry.start({ bodyBytesMax: 100_000 });
  await using it = await openFake(fake.host, "app", { upload: { chunkBytes: 60_000 } });
  await it.repo.pushBlob(BLOB, () => inPieces(BYTES));
  assert.ok(fake.stored("app").blobs.has(BLOB.digest));
});

test("the size of a blob is found by its digest alone", async () => {
  await using fake = await FakeRegistry.start();
  fake.putBlob("app", BYTES);
  await using it = await openFake(fake.host, "app");
  assert.equal(await it.repo.blobSize(BLOB.digest), BLOB.size);
  assert.equal(await it.repo.blobSize(sha256(EMPTY)), undefined);
});

test("a stream of unknown length is pushed in chunks under the digest that it turns out to have", async () => {
  await using fake = await FakeRegistry.start();
  await using it = await openFake(fake.host, "app", { upload: { chunkBytes: 60_000 } });
  fake.inject({ match: "PATCH", fault: { kind: "status", status: 500 } }, { match: "PATCH", fault: { kind: "reset" } });
  assert.deepEqual(await it.repo.pushStream(inPieces(BYTES)), { digest: BLOB.digest, size: BLOB.size });
  assert.deepEqual(Buffer.from(fake.stored("app").blobs.get(BLOB.digest)!), Buffer.from(BYTES));
});

for (const [which, after] of [
  ["the first", 0],
  ["the second", 1],
] as const) {
  test(`where a registry refuses ${which} piece of a stream, the whole is pushed from a file`, async () => {
    await using fake = await FakeRegistry.start();
    await using it = await openFake(fake.host, "app", { upload: { chunkBytes: 60_000 } });
    const spools = () => readdirSync(tmpdir()).filter((name) => name.startsWith("headstart-upload-")).length;
    const before = spools();
    let patches = 0;
    async function* counted() {
      for await (const piece of inPieces(BYTES)) {
        patches = fake.log.filter(({ method }) => method === "PATCH").length;
        if (patches === after) fake.inject({ match: "PATCH", times: 10, fault: { kind: "status", status: 405 } });
        yield piece;
      }
    }
    assert.deepEqual(await it.repo.pushStream(counted()), { digest: BLOB.digest, size: BLOB.size });
    assert.deepEqual(Buffer.from(fake.stored("app").blobs.get(BLOB.digest)!), Buffer.from(BYTES));
    assert.equal(fake.log.filter(({ method }) => method === "PATCH").length, after + 1);
    assert.equal(spools(), before);
  });
}

test("a stream that ends within one chunk is not sent where it is known already", async () => {
  await using fake = await FakeRegistry.start();
  await using it = await openFake(fake.host, "app");
  for (const sent of [3, 4]) {
    assert.deepEqual(await it.repo.pushStream(inPieces(BYTES)), { digest: BLOB.digest, size: BLOB.size });
    assert.equal(fake.log.length, sent);
  }
});

test("a stream that fails leaves no blob, and its error is what the caller sees", async () => {
  await using fake = await FakeRegistry.start();
  await using it = await openFake(fake.host, "app", { upload: { chunkBytes: 60_000 } });
  let closed = false;
  async function* failing() {
    try {
      yield* inPieces(BYTES);
      throw new Error("the source broke");
    } finally {
      closed = true;
    }
  }
  await assert.rejects(it.repo.pushStream(failing()), /the source broke/);
  fake.inject({ match: "PATCH", fault: { kind: "status", status: 403 } });
  closed = false;
  await assert.rejects(it.repo.pushStream(failing()), code("HS_REGISTRY_DENIED"));
  assert.ok(closed, "the stream was left open");
  assert.equal(fake.stored("app").blobs.size, 0);
});

test("wrong bytes are not pushed", async () => {
  await using fake = await FakeRegistry.start();
  for (const mode of ["monolithic", "chunked"] as const) {
    await using it = await openFake(fake.host, "app", { upload: { mode, chunkBytes: 1000 } });
    const wrong = Uint8Array.from(BYTES);
    wrong[77]! ^= 1;
    for (const source of [wrong, () => inPieces(wrong)]) {
      await assert.rejects(it.repo.pushBlob(BLOB, source), code("HS_DIGEST_MISMATCH"));
    }
    await assert.rejects(it.repo.pushBlob(BLOB, inPieces(BYTES.subarray(1))), code("HS_SIZE_MISMATCH"));
  }
  assert.equal(fake.stored("app").blobs.size, 0);
});

test("a blob that another repository has is mounted", async () => {
  await using fake = await FakeRegistry.start();
  fake.putBlob("base", BYTES);
  await using it = await openFake(fake.host, "app");
  await it.repo.pushBlob(BLOB, BYTES, { from: "base" });
  assert.deepEqual(
    fake.log.map((one) => one.method),
    ["HEAD", "POST"],
  );
  // and uploaded where it has not
  const other = Buffer.from("other");
  await it.repo.pushBlob({ ...BLOB, digest: sha256(other), size: 5 }, other, { from: "base" });
  assert.ok(fake.stored("app").blobs.has(sha256(other)));
});

async function pushArtifact(repo: Awaited<ReturnType<typeof openFake>>["repo"], type: string, annotation: string) {
  const config = { mediaType: type, digest: sha256(EMPTY), size: 2 };
  const subject = { mediaType: MEDIA_TYPES.ociManifest, digest: sha256(MANIFEST), size: MANIFEST.byteLength };
  const bytes = json({
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociManifest,
    config,
    layers: [],
    subject,
    annotations: { a: annotation },
  });
  await repo.pushBlob(config, EMPTY);
  return repo.pushManifest(bytes, MEDIA_TYPES.ociManifest);
}

for (const api of [true, false]) {
  test(`referrers ${api ? "by the API, over pages" : "by the fallback tag"}: pushed, listed, filtered, removed`, async () => {
    await using fake = await FakeRegistry.start({ referrersApi: api, pageSize: 2 });
    await using it = await openFake(fake.host, "app");
    const subject = sha256(MANIFEST);
    await it.repo.pushBlob(CONFIG, EMPTY);
    await it.repo.pushManifest(MANIFEST, MEDIA_TYPES.ociManifest, "latest");
    assert.deepEqual(await it.repo.referrers(subject), []);
    const pushed = [];
    for (const name of ["1", "2", "3"]) pushed.push(await pushArtifact(it.repo, MEDIA_TYPES.sociIndexV1, name));
    const other = await pushArtifact(it.repo, "application/other", "x");
    assert.equal((await it.repo.referrers(subject)).length, 4);
    const found = await it.repo.referrers(subject, { artifactType: MEDIA_TYPES.sociIndexV1 });
    assert.deepEqual(
      found.map((one) => one.digest),
      pushed.map((one) => one.digest),
    );
    assert.deepEqual({ ...found[0]!.annotations }, { a: "1" });
    assert.equal(fake.stored("app").tags.has(fallbackTag(subject)), !api);
    if (!api) {
      await forgetReferrer(it.repo, subject, other.digest);
      const index = parseIndex(
        fake.stored("app").manifests.get(fake.stored("app").tags.get(fallbackTag(subject))!)!.bytes,
        "i",
      );
      assert.equal(index.manifests.length, 3);
    }
    await it.repo.deleteManifest(other.digest);
    assert.equal((await it.repo.referrers(subject)).length, 3);
  });
}

test("a mirror without the referrers API is passed", async () => {
  await using origin = await FakeRegistry.start();
  await using mirror = await FakeRegistry.start({ referrersApi: false });
  const subject = sha256(MANIFEST);
  const document = { schemaVersion: 2, config: { mediaType: "a/b" }, subject: { digest: subject } };
  origin.putManifest("app", document, MEDIA_TYPES.ociManifest);
  using folder = await scratch({
    [`${origin.host}/hosts.toml`]: `server = "http://${origin.host}"\n[host."http://${mirror.host}"]\n`,
  });
  await using it = await openReference(`${origin.host}/app`, { hostsDirs: [folder.path] });
  assert.equal((await it.repo.referrers(subject)).length, 1);
});

test("a list of referrers that never ends is cut off, one that leads elsewhere is refused", async () => {
  await using fake = await FakeRegistry.start();
  await using it = await openFake(fake.host, "app");
  const subject = sha256(MANIFEST);
  const page = JSON.stringify({ schemaVersion: 2, manifests: [] });
  const type = MEDIA_TYPES.ociIndex;
  for (let index = 0; index < 100; index++) {
    const link = `</v2/app/referrers/${subject}?page=${index}>; rel="next"`;
    fake.inject({
      match: "referrers",
      fault: { kind: "status", status: 200, headers: { "content-type": type, link }, body: page },
    });
  }
  assert.deepEqual(await it.repo.referrers(subject), []);
  assert.ok(fake.log.length <= 20);
  fake.faults.length = 0;
  const link = `<http://127.0.0.1:1/x>; rel="next"`;
  fake.inject({ fault: { kind: "status", status: 200, headers: { "content-type": type, link }, body: page } });
  await assert.rejects(it.repo.referrers(subject), code("HS_REGISTRY_PROTOCOL"));
});

test("a web page in place of the referrers API is no API", async () => {
  await using fake = await FakeRegistry.start();
  await using it = await openFake(fake.host, "app");
  fake.inject({
    match: "referrers",
    fault: { kind: "status", status: 200, headers: { "content-type": "text/html" }, body: "<html>" },
  });
  assert.deepEqual(await it.repo.referrers(sha256(MANIFEST)), []);
});
