import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { parse as parseToml } from "smol-toml";
import { FakeRegistry } from "../../../test/fakes/registry.ts";
import { type ErrorCode, HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { parseGoDuration } from "./duration.ts";
import { loadEndpoints, parseHosts, splitHostsDirs } from "./hosts.ts";
import { descriptorOf, openReference, patterned, scratch } from "./testing.ts";

const code = (wanted: ErrorCode) => (error: unknown) => isHeadstartError(error, wanted);
const urls = async (registry: string, directories: readonly string[] = []) =>
  (await loadEndpoints(registry, directories)).map((one) => `${one.scheme}://${one.host}${one.path}`);

test("without a file: the registry itself, by TLS unless it is this machine", async () => {
  assert.deepEqual(await urls("docker.io"), ["https://registry-1.docker.io/v2"]);
  assert.deepEqual(await urls("ghcr.io"), ["https://ghcr.io/v2"]);
  assert.deepEqual(await urls("ghcr.io:8443"), ["https://ghcr.io:8443/v2"]);
  assert.deepEqual(await urls("localhost"), ["https://localhost/v2"]);
  assert.deepEqual(await urls("127.0.0.1:80"), ["http://127.0.0.1:80/v2"]);
  assert.deepEqual(await urls("[::1]:5000"), ["http://[::1]:5000/v2"]);
  const [local] = await loadEndpoints("localhost:5000", []);
  assert.ok(local!.tlsFirst && local!.tls.skipVerify);
  const [remote] = await loadEndpoints("ghcr.io:5000", []);
  assert.ok(!remote!.tlsFirst && !remote!.tls.skipVerify);
});

const FULL = `
server = "https://registry-1.docker.io"
ca = "ca.pem"
dial_timeout = "1m30s"
[host."https://mirror.example/v2/hub"]
  capabilities = ["Pull", "resolve"]
  override_path = true
  ca = ["ca.pem", "/ABS/other.pem"]
  client = [["c.pem", "c.key"], ["both.pem", ""]]
  skip_verify = true
  [host."https://mirror.example/v2/hub".header]
    X-Custom = "v"
    x-list = ["a", "b"]
[host."second.example:5000/deep/"]
  client = "both.pem"
[host."http://third.example"]
`;

test("every field of a hosts.toml is read, hosts in the order of the file, server last", async () => {
  using folder = await scratch({
    "docker.io/ca.pem": "CA",
    "docker.io/c.pem": "CERT",
    "docker.io/c.key": "KEY",
    "docker.io/both.pem": "BOTH",
    "other.pem": "OTHER",
  });
  const text = FULL.replace("/ABS", folder.path);
  const [mirror, second, third, server, ...rest] = await parseHosts(
    parseToml(text),
    "docker.io",
    join(folder.path, "docker.io"),
  );
  assert.deepEqual(rest, []);
  assert.equal(`${mirror!.scheme}://${mirror!.host}${mirror!.path}`, "https://mirror.example/v2/hub");
  assert.deepEqual([...mirror!.capabilities], ["pull", "resolve"]);
  assert.deepEqual(mirror!.tls, {
    ca: ["CA", "OTHER"],
    client: [
      { cert: "CERT", key: "KEY" },
      { cert: "BOTH", key: "BOTH" },
    ],
    skipVerify: true,
  });
  assert.deepEqual({ ...mirror!.headers }, { "x-custom": ["v"], "x-list": ["a", "b"] });
  assert.equal(mirror!.namespace, "docker.io");
  assert.equal(`${second!.scheme}://${second!.host}${second!.path}`, "https://second.example:5000/deep/v2");
  assert.deepEqual(second!.tls.client, [{ cert: "BOTH", key: "BOTH" }]);
  assert.equal([...second!.capabilities].length, 4);
  assert.equal(`${third!.scheme}://${third!.host}${third!.path}`, "http://third.example/v2");
  assert.equal(`${server!.scheme}://${server!.host}${server!.path}`, "https://registry-1.docker.io/v2");
  assert.deepEqual([server!.tls.ca, server!.dialTimeoutMs, server!.namespace], [["CA"], 90_000, undefined]);
});

test("directories are looked for as containerd does: with port, then _default, the first that exists", async () => {
  const toml = (host: string) => `server = "https://${host}"`;
  using folder = await scratch({
    "one/reg.example_5000_/hosts.toml": toml("underscored"),
    "one/reg.example:5000/hosts.toml": toml("colon"),
    "one/only.example/hosts.toml": toml("only"),
    "two/_default/hosts.toml": toml("default"),
    "two/only.example/hosts.toml": toml("never"),
  });
  const dirs = splitHostsDirs(`${folder.path}/none:${folder.path}/one:${folder.path}/two`);
  assert.deepEqual(await urls("reg.example:5000", dirs), ["https://underscored/v2"]);
  assert.deepEqual(await urls("only.example", dirs), ["https://only/v2"]);
  assert.deepEqual(await urls("other.example", dirs), ["https://default/v2"]);
});

test("an empty server is the registry itself, with the file's settings", async () => {
  using folder = await scratch({ "reg.example/hosts.toml": 'skip_verify = true\n[host."m.example"]\n' });
  const [mirror, self] = await loadEndpoints("reg.example", [folder.path]);
  assert.equal(mirror!.host, "m.example");
  assert.deepEqual([self!.host, self!.tls.skipVerify, self!.namespace], ["reg.example", true, undefined]);
});

test("a file that cannot be parsed counts as absent: docker's certificates serve", async () => {
  using folder = await scratch({
    "reg.example/hosts.toml": "this is = = not toml",
    "reg.example/ca.crt": "CA",
    "reg.example/client.cert": "CERT",
    "reg.example/client.key": "KEY",
  });
  const [self] = await loadEndpoints("reg.example", [folder.path]);
  assert.deepEqual(self!.tls, { ca: ["CA"], client: [{ cert: "CERT", key: "KEY" }], skipVerify: false });
});

test("words that mean nothing are errors that name the field", async () => {
  const cases = [
    'capabilities = ["fly"]',
    "skip_verify = 3",
    'dial_timeout = "soon"',
    "ca = 1",
    'ca = "missing.pem"',
    'client = [["a", "b", "c"]]',
    'host = "x"',
    "server = 1",
    'server = "ftp://x"',
    'server = "https://"',
    '[header]\n"x y" = "v"',
    '[header]\nx = "a\\nb"',
  ];
  for (const text of cases) {
    await assert.rejects(parseHosts(parseToml(text), "reg.example", "/nowhere"), code("HS_CONFIG"), text);
  }
});

test("durations are Go's", () => {
  const cases: [string, number | undefined][] = [
    ["1s", 1000],
    ["1h1m1s", 3_661_000],
    ["1.5s", 1500],
    ["100ms", 100],
    ["0", 0],
    ["0s", 0],
    ["", undefined],
    ["5", undefined],
    ["-1s", undefined],
    ["1d", undefined],
  ];
  for (const [text, ms] of cases) assert.equal(parseGoDuration(text), ms, text);
});

test("property: any table gives endpoints or a typed error", async () => {
  const value: fc.Arbitrary<unknown> = fc.oneof(
    fc.string(),
    fc.integer(),
    fc.boolean(),
    fc.array(fc.string(), { maxLength: 3 }),
    fc.constant({}),
  );
  const keys = fc.constantFrom(
    "server",
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "header",
    "dial_timeout",
    "override_path",
    "host",
  );
  const table = fc.dictionary(keys, value);
  const withHosts = fc
    .tuple(table, fc.dictionary(fc.oneof(fc.webUrl(), fc.string()), table))
    .map(([root, host]) => ({ ...root, host }));
  await fc.assert(
    fc.asyncProperty(withHosts, async (root) => {
      try {
        await parseHosts(root as never, "reg.example:5000", "/nowhere");
      } catch (error) {
        assert.ok(error instanceof HeadstartError, String(error));
      }
    }),
    { numRuns: 500 },
  );
});

/** A key and a certificate for 127.0.0.1, by openssl. */
async function selfSigned() {
  const folder = await scratch();
  const [key, cert] = [join(folder.path, "key.pem"), join(folder.path, "cert.pem")];
  execFileSync(
    "openssl",
    [
      "req",
      "-x509",
      "-newkey",
      "ec",
      "-pkeyopt",
      "ec_paramgen_curve:P-256",
      "-nodes",
      "-days",
      "2",
      "-subj",
      "/CN=test",
      "-addext",
      "subjectAltName=IP:127.0.0.1",
      "-keyout",
      key,
      "-out",
      cert,
    ],
    { stdio: "ignore" },
  );
  return {
    folder,
    key,
    cert,
    pem: { key: readFileSync(key, "utf8"), cert: readFileSync(cert, "utf8") },
    [Symbol.dispose]: () => folder[Symbol.dispose](),
  };
}

test("own authorities, skip_verify and client certificates are used, and needed", async () => {
  using pair = await selfSigned();
  await using fake = await FakeRegistry.start({ tls: { ...pair.pem, ca: pair.pem.cert, requestCert: true } });
  const descriptor = descriptorOf(fake.putBlob("app", patterned(1000)));
  const read = async (settings: string) => {
    using folder = await scratch({ [`${fake.host}/hosts.toml`]: `server = "https://${fake.host}"\n${settings}` });
    await using it = await openReference(`${fake.host}/app`, { hostsDirs: [folder.path] });
    return it.repo.openBlob(descriptor).readRange(0, 10);
  };
  const client = `client = [["${pair.cert}", "${pair.key}"]]`;
  assert.equal((await read(`ca = "${pair.cert}"\n${client}`)).byteLength, 10);
  assert.equal((await read(`skip_verify = true\n${client}`)).byteLength, 10);
  await assert.rejects(read(client), code("HS_REGISTRY_UNAVAILABLE"), "an unknown authority");
  await assert.rejects(read(`ca = "${pair.cert}"`), code("HS_REGISTRY_UNAVAILABLE"), "no client certificate");
});

test("a registry on this machine is spoken to by TLS if it can, without verification", async () => {
  using pair = await selfSigned();
  await using fake = await FakeRegistry.start({ tls: pair.pem });
  const descriptor = descriptorOf(fake.putBlob("app", patterned(1000)));
  await using it = await openReference(`${fake.host}/app`);
  assert.equal((await it.repo.openBlob(descriptor).readRange(0, 10)).byteLength, 10);
});

test("a manifest is resolved only where that is allowed; without any such host it is a configuration error", async () => {
  await using origin = await FakeRegistry.start();
  await using mirror = await FakeRegistry.start();
  const type = "application/vnd.oci.image.index.v1+json";
  const document = { schemaVersion: 2, manifests: [] };
  for (const one of [origin, mirror]) one.putManifest("app", document, type, "latest");
  using folder = await scratch({
    [`${origin.host}/hosts.toml`]: `server = "http://${origin.host}"\n[host."http://${mirror.host}"]\ncapabilities = ["pull"]\n`,
  });
  await using it = await openReference(`${origin.host}/app`, { hostsDirs: [folder.path] });
  const { digest } = await it.repo.resolve();
  assert.deepEqual([origin.log.length, mirror.log.length], [1, 0]);
  await it.repo.fetchManifest(digest);
  assert.deepEqual([origin.log.length, mirror.log.length], [1, 1]);
  using none = await scratch({
    [`${origin.host}/hosts.toml`]: `server = "http://${origin.host}"\ncapabilities = ["pull"]\n`,
  });
  await using closed = await openReference(`${origin.host}/app`, { hostsDirs: [none.path] });
  await assert.rejects(closed.repo.resolve(), code("HS_CONFIG"));
});
