import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeRegistry } from "../../../../test/fakes/registry.ts";
import type { AuthOptions } from "../../../../test/fakes/registry-auth.ts";
import { type Clock, systemClock } from "../../../base/clock.ts";
import { type ErrorCode, isHeadstartError } from "../../../base/errors.ts";
import { Secret } from "../../../base/secret.ts";
import { descriptorOf, openFake, openReference, patterned, scratch } from "../testing.ts";
import { type Credential, type CredentialSource, fixedCredential } from "./credentials.ts";

const USERS = { ann: "correct horse" };
const code = (wanted: ErrorCode) => (error: unknown) => isHeadstartError(error, wanted);
const password = (text: string): Credential => ({ kind: "password", username: "ann", password: new Secret(text) });

async function withAuth(
  auth: AuthOptions,
  sources: (host: string) => CredentialSource[],
  options: { redirect?: { lifetimeMs: number }; clock?: Clock } = {},
) {
  const fake = await FakeRegistry.start({ auth, ...options });
  const descriptor = descriptorOf(fake.putBlob("team/app", patterned(5000)));
  const client = await openFake(fake.host, "team/app", {
    credentials: sources(fake.host),
    ...(options.clock === undefined ? {} : { clock: options.clock }),
  });
  return {
    fake,
    ...client,
    descriptor,
    blob: client.repo.openBlob(descriptor),
    async [Symbol.asyncDispose]() {
      await client[Symbol.asyncDispose]();
      await fake[Symbol.asyncDispose]();
    },
  };
}

test("basic: the credential goes out once it is asked for, and at once from then on", async () => {
  await using it = await withAuth({ kind: "basic", users: USERS }, (host) => [
    fixedCredential(password("correct horse"), host, "x"),
  ]);
  await it.blob.readRange(0, 10);
  await it.blob.readRange(10, 20);
  assert.deepEqual(
    it.fake.log.map((one) => one.headers.authorization !== undefined),
    [false, true, true],
  );
});

test("bearer: a token is fetched once for many requests at once", async () => {
  await using it = await withAuth({ kind: "bearer", users: USERS }, (host) => [
    fixedCredential(password("correct horse"), host, "x"),
  ]);
  await Promise.all(Array.from({ length: 8 }, (_, index) => it.blob.readRange(index, index + 10)));
  const { log } = it.fake.auth!;
  assert.deepEqual(
    log.filter((one) => one.status === 200).map((one) => one.scopes),
    [["repository:team/app:pull"]],
  );
});

test("a source is asked once by requests that begin together, and one token serves them", async () => {
  let asked = 0;
  const slow: CredentialSource = {
    name: "slow",
    get: async () => {
      asked++;
      await systemClock.sleep(20);
      return password("correct horse");
    },
  };
  await using it = await withAuth({ kind: "bearer", users: USERS }, () => [slow]);
  await Promise.all(Array.from({ length: 8 }, (_, index) => it.blob.readRange(index, index + 10)));
  assert.equal(asked, 1);
  assert.equal(it.fake.auth!.log.filter((one) => one.status === 200).length, 1);
});

test("bearer: OAuth's POST is tried first, the older GET serves where there is none", async () => {
  const sources = (host: string) => [fixedCredential(password("correct horse"), host, "x")];
  await using oauth = await withAuth({ kind: "bearer", users: USERS, oauth: true }, sources);
  await oauth.blob.readRange(0, 10);
  assert.deepEqual(
    oauth.fake.auth!.log.map(({ method, status }) => [method, status]),
    [["POST", 200]],
  );
  await using old = await withAuth({ kind: "bearer", users: USERS }, sources);
  await old.blob.readRange(0, 10);
  assert.deepEqual(
    old.fake.auth!.log.map(({ method, status }) => [method, status]),
    [
      ["POST", 404],
      ["GET", 200],
    ],
  );
});

test("bearer: identity tokens and registry tokens", async () => {
  const auth = { kind: "bearer", users: USERS, oauth: true, identityTokens: { idt: "ann" } } as const;
  await using identity = await withAuth(auth, (host) => [
    fixedCredential({ kind: "identity-token", token: new Secret("idt") }, host, "x"),
  ]);
  await identity.blob.readRange(0, 10);
  await using wrong = await withAuth(auth, (host) => [
    fixedCredential({ kind: "registry-token", token: new Secret("made-up") }, host, "x"),
  ]);
  await assert.rejects(wrong.blob.readRange(0, 10), code("HS_REGISTRY_AUTH"));
  assert.equal(wrong.fake.log[1]!.headers.authorization, "Bearer made-up");
});

test("bearer: without any credential an anonymous token is used", async () => {
  await using it = await withAuth({ kind: "bearer", users: USERS, anonymousPull: true }, () => []);
  await it.blob.readRange(0, 10);
  assert.deepEqual(
    it.fake.auth!.log.map((one) => one.authorization),
    [undefined],
  );
});

test("wrong credentials are a clear error after few requests", async () => {
  for (const kind of ["basic", "bearer"] as const) {
    await using it = await withAuth({ kind, users: USERS }, (host) => [fixedCredential(password("wrong"), host, "x")]);
    await assert.rejects(it.blob.readRange(0, 10), code("HS_REGISTRY_AUTH"));
    assert.ok(it.fake.log.length <= 4, `${kind}: ${it.fake.log.length} requests`);
    assert.ok((it.fake.auth?.log.length ?? 0) <= 6, `${kind}: ${it.fake.auth?.log.length} tokens`);
  }
});

for (const refusal of [undefined, 403] as const) {
  test(`a source whose credential is refused with ${refusal ?? 401} gives way to the next one`, async () => {
    const auth: AuthOptions = { kind: "basic", users: USERS, ...(refusal === undefined ? {} : { refusal }) };
    await using it = await withAuth(auth, (host) => [
      { name: "nothing", get: async () => undefined },
      {
        name: "broken",
        get: async () => {
          throw new Error("broken");
        },
      },
      fixedCredential(password("wrong"), host, "wrong"),
      fixedCredential(password("correct horse"), host, "right"),
    ]);
    await it.blob.readRange(0, 10);
    const sent = it.fake.log.length;
    await it.blob.readRange(10, 20);
    assert.equal(it.fake.log.length, sent + 1, "and is remembered");
  });

  test(`a credential that ends (${refusal ?? 401}) is asked for again at its source, past its cache`, async () => {
    let current = "correct horse";
    let forgotten = 0;
    const users: Record<string, string> = { ann: current };
    const auth: AuthOptions = { kind: "basic", users, ...(refusal === undefined ? {} : { refusal }) };
    await using it = await withAuth(auth, () => [
      {
        name: "plugin",
        get: async () => password(current),
        forget: () => {
          forgotten++;
        },
      },
    ]);
    await it.blob.readRange(0, 10);
    users.ann = current = "new battery";
    await it.blob.readRange(10, 20);
    assert.equal(forgotten, 1);
  });
}

test("a token that is revoked is fetched again", async () => {
  await using it = await withAuth({ kind: "bearer", users: USERS }, (host) => [
    fixedCredential(password("correct horse"), host, "x"),
  ]);
  for (let round = 0; round < 4; round++) {
    await it.blob.readRange(round, round + 10);
    it.fake.auth!.revokeAll();
  }
});

test("a token is renewed in the background before it ends", async () => {
  let now = Date.now();
  const clock: Clock = { ...systemClock, now: () => now };
  await using it = await withAuth(
    { kind: "bearer", users: USERS, tokenSeconds: 100 },
    (host) => [fixedCredential(password("correct horse"), host, "x")],
    { clock },
  );
  const tokens = () => it.fake.auth!.log.filter((one) => one.status === 200).length;
  await it.blob.readRange(0, 10);
  now += 50_000;
  await it.blob.readRange(0, 10);
  assert.equal(tokens(), 1);
  now += 30_000; // the last quarter
  await it.blob.readRange(0, 10);
  for (let wait = 0; tokens() < 2 && wait < 6000; wait++) await systemClock.sleep(5);
  assert.equal(tokens(), 2);
  now += 95_000; // the last tenth of the new one
  await it.blob.readRange(0, 10);
  assert.equal(tokens(), 3);
});

test("pushing asks for a token that may push", async () => {
  await using it = await withAuth({ kind: "bearer", users: USERS, anonymousPull: true }, (host) => [
    fixedCredential(password("correct horse"), host, "x"),
  ]);
  const bytes = Buffer.from("new");
  const descriptor = descriptorOf({
    ...it.descriptor,
    digest: "sha256:11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437",
    size: 3,
  });
  await it.repo.pushBlob(descriptor, bytes);
  assert.ok(it.fake.stored("team/app").blobs.has(descriptor.digest));
});

test("no credential, and no header of hosts.toml, ever reaches another host or port", async () => {
  const users = USERS;
  for (const kind of ["basic", "bearer"] as const) {
    await using fake = await FakeRegistry.start({ auth: { kind, users }, redirect: { lifetimeMs: 60_000 } });
    const descriptor = descriptorOf(fake.putBlob("app", patterned(5000)));
    using hosts = await scratch({
      [`${fake.host}/hosts.toml`]: `server = "http://${fake.host}"\n[header]\nx-internal = "pssst"\n`,
    });
    await using it = await openReference(`${fake.host}/app`, {
      hostsDirs: [hosts.path],
      credentials: [fixedCredential(password("correct horse"), fake.host, "x")],
    });
    const blob = it.repo.openBlob(descriptor);
    await blob.readRange(0, 10);
    // the storage host asks for our password
    const phish = { "www-authenticate": 'Basic realm="give"' };
    fake.inject({ at: "storage", fault: { kind: "status", status: 401, headers: phish } });
    await blob.readRange(10, 20);
    fake.expireSignedUrls();
    await blob.readAll();
    assert.ok(fake.log.some((one) => one.headers.authorization !== undefined));
    assert.ok(fake.log.every((one) => one.headers["x-internal"] === "pssst"));
    assert.ok(fake.storageLog.length >= 4);
    for (const { headers } of fake.storageLog) {
      assert.equal(headers.authorization, undefined);
      assert.equal(headers["x-internal"], undefined);
      assert.equal(headers.cookie, undefined);
    }
  }
});

test("a redirect, a Location of an upload or a Link to another port gets no credential", async () => {
  await using thief = await FakeRegistry.start();
  await using it = await withAuth({ kind: "basic", users: USERS }, (host) => [
    fixedCredential(password("correct horse"), host, "x"),
  ]);
  const evil = `http://ann:horse@${thief.host}/v2/team/app/blobs/uploads/x`;
  await it.blob.readRange(0, 10); // logged in from here on
  const inject = (match: string, status: number, headers: Record<string, string>, body = "") =>
    it.fake.inject({ match, fault: { kind: "status", status, headers, body } });
  inject("GET /v2/team/app/manifests", 307, { location: evil });
  await assert.rejects(it.repo.fetchManifest("latest"));
  inject("POST", 202, { location: evil });
  const bytes = Buffer.from("new");
  const descriptor = descriptorOf({
    ...it.descriptor,
    digest: "sha256:11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437",
    size: 3,
  });
  await assert.rejects(it.repo.pushBlob(descriptor, bytes));
  inject("tags", 200, { link: `<${evil}>; rel="next"` }, '{"tags":["a"]}');
  await assert.rejects(it.repo.tags(), code("HS_REGISTRY_PROTOCOL"));
  assert.ok(thief.log.length >= 2);
  for (const { headers } of thief.log) assert.equal(headers.authorization, undefined);
});

test("credentials of one host are not those of another port of it", async () => {
  await using it = await withAuth({ kind: "basic", users: USERS }, () => [
    fixedCredential(password("correct horse"), "127.0.0.1:1", "x"),
  ]);
  await assert.rejects(it.blob.readRange(0, 10), code("HS_REGISTRY_AUTH"));
  assert.ok(it.fake.log.every((one) => one.headers.authorization === undefined));
});
