import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";
import fc from "fast-check";
import { cpuMs } from "../../../../test/tools/cpu-time.ts";
import { parseChallenges, pickChallenge } from "./challenge.ts";
import { staticCredentials } from "./credentials.ts";
import { mergeScopes, repositoryScope } from "./scope.ts";

test("a bearer challenge is read with all its parameters", () => {
  const header =
    'Bearer realm="https://auth.example/token",service="reg, the \\"one\\"",scope="repository:a/b:pull,push"';
  assert.deepEqual(parseChallenges(header), [
    {
      scheme: "bearer",
      parameters: {
        realm: "https://auth.example/token",
        service: 'reg, the "one"',
        scope: "repository:a/b:pull,push",
      },
    },
  ]);
});

test("several challenges in one header are told apart, bearer is preferred", () => {
  const all = parseChallenges(
    'Basic realm="x", Negotiate YIIabc==, BEARER realm=https://t/token , service = s,, Digest qop="auth"',
  );
  assert.deepEqual(
    all.map((one) => one.scheme),
    ["basic", "negotiate", "bearer", "digest"],
  );
  assert.equal(pickChallenge(all)?.parameters.realm, "https://t/token");
  assert.equal(pickChallenge(all)?.parameters.service, "s");
  assert.equal(pickChallenge(parseChallenges('Basic realm="x"'))?.scheme, "basic");
  assert.equal(pickChallenge(parseChallenges("Bearer")), undefined);
  assert.equal(pickChallenge(parseChallenges(undefined)), undefined);
});

test("property: any header is read in no time, without an error", () => {
  const part = fc.oneof(
    fc.constantFrom("Bearer ", "realm=", '"', "\\", ",", " ", "=", "a"),
    fc.string({ maxLength: 5 }),
  );
  fc.assert(
    fc.property(fc.array(part, { maxLength: 60 }), (parts) => {
      for (const { scheme } of parseChallenges(parts.join(""))) assert.equal(scheme, scheme.toLowerCase());
    }),
    { numRuns: 2000 },
  );
  const ms = cpuMs(() => {
    for (const evil of ['"', "a=", "a ", "=", "\\", 'Bearer a="']) parseChallenges(`Bearer x=${evil.repeat(3000)}`);
  });
  assert.ok(ms < 500, `${ms} ms`);
});

test("property: a written challenge is read back", () => {
  const token = fc.stringMatching(/^[a-z][a-z0-9-]{0,8}$/);
  fc.assert(
    fc.property(token, fc.dictionary(token, fc.string(), { minKeys: 1 }), (scheme, parameters) => {
      const list = Object.entries(parameters).map(([name, value]) => `${name}="${value.replace(/["\\]/g, "\\$&")}"`);
      const [first, ...rest] = parseChallenges(`${scheme} ${list.join(", ")}`);
      assert.deepEqual(first, { scheme, parameters: { ...parameters } });
      assert.equal(rest.length, 0);
    }),
  );
});

test("scopes of one resource become one, equal sets equal texts", () => {
  assert.deepEqual(mergeScopes(["repository:a:push", "repository:a:pull"], ["repository:b/c:pull repository:a:pull"]), [
    "repository:a:pull,push",
    "repository:b/c:pull",
  ]);
  assert.deepEqual(mergeScopes(["repository:a:*"], [repositoryScope("a", "pull")]), ["repository:a:*"]);
  assert.deepEqual(mergeScopes(["odd", ""]), ["odd"]);
});

test("--creds is a user and a password, for one host, and does not print", async () => {
  const source = staticCredentials("user:pass:word", "docker.io");
  const found = await source.get({ host: "registry-1.docker.io", repository: "library/a" });
  assert.ok(found?.kind === "password");
  assert.equal(found.password.reveal(), "pass:word");
  assert.ok(!inspect(found, { depth: 9 }).includes("pass:word"));
  assert.ok(!JSON.stringify(found).includes("pass:word"));
  assert.equal(await source.get({ host: "ghcr.io", repository: "a" }), undefined);
  assert.throws(() => staticCredentials("user", "docker.io"), /HS_USAGE/);
});
