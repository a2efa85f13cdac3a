import assert from "node:assert/strict";
import { chmodSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { systemClock } from "../../../base/clock.ts";
import { isHeadstartError } from "../../../base/errors.ts";
import { scratch } from "../testing.ts";
import type { Credential } from "./credentials.ts";
import { dockerConfigPaths, dockerConfigSource } from "./docker-config.ts";
import { kubeletSource, matchImage, parseProviders } from "./kubelet.ts";

const auth = (text: string) => ({ auth: Buffer.from(text).toString("base64") });
const shown = (credential: Credential | undefined) => {
  if (credential === undefined) return undefined;
  if (credential.kind === "password") return `${credential.username}:${credential.password.reveal()}`;
  return `${credential.kind}:${credential.token.reveal()}`;
};

async function fromConfig(
  config: object | string,
  host: string,
  repository = "a/b",
  helpers: Record<string, string> = {},
) {
  using folder = await scratch({
    "config.json": typeof config === "string" ? config : JSON.stringify(config),
    ...Object.fromEntries(Object.entries(helpers).map(([name, text]) => [`bin/docker-credential-${name}`, text])),
  });
  const env = { PATH: `${folder.path}/bin:/usr/bin:/bin` };
  return shown(await dockerConfigSource(join(folder.path, "config.json"), env).get({ host, repository }));
}

test("auths are found by host, by old URL keys, and by the longest path", async () => {
  const config = {
    auths: {
      "https://index.docker.io/v1/": auth("hub:1"),
      "ghcr.io": auth("g:with:colon"),
      "ghcr.io/a": auth("ga:1"),
      "ghcr.io/a/b": auth("gab:1"),
      "https://old.example/v2/": { username: "u", password: "p" },
      "id.example": { ...auth("x:y"), identitytoken: "idt" },
      "tok.example": { registrytoken: "rt" },
      "empty.example": {},
    },
  };
  assert.equal(await fromConfig(config, "registry-1.docker.io"), "hub:1");
  assert.equal(await fromConfig(config, "ghcr.io"), "gab:1");
  assert.equal(await fromConfig(config, "ghcr.io", "a/bc"), "ga:1");
  assert.equal(await fromConfig(config, "ghcr.io", "other"), "g:with:colon");
  assert.equal(await fromConfig(config, "old.example"), "u:p");
  assert.equal(await fromConfig(config, "id.example"), "identity-token:idt");
  assert.equal(await fromConfig(config, "tok.example"), "registry-token:rt");
  assert.equal(await fromConfig(config, "empty.example"), undefined);
  assert.equal(await fromConfig(config, "ghcr.io:5000"), undefined);
});

const HELPER = `#!/bin/sh
read -r server
case "$1:$server" in
get:h.example) echo '{"ServerURL":"h.example","Username":"u","Secret":"s"}' ;;
get:t.example) echo '{"Username":"<token>","Secret":"idt"}' ;;
get:broken.example) echo 'no json, and a secret'; ;;
get:angry.example) echo 'keychain locked' >&2; exit 7 ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
`;

test("helpers are asked for their host, the store for all others, auths when they have nothing", async () => {
  const config = { credHelpers: { "h.example": "one" }, credsStore: "two", auths: { "a.example": auth("a:b") } };
  const helpers = { one: HELPER, two: HELPER };
  assert.equal(await fromConfig(config, "h.example", "a", helpers), "u:s");
  assert.equal(await fromConfig(config, "t.example", "a", helpers), "identity-token:idt");
  assert.equal(await fromConfig(config, "a.example", "a", helpers), "a:b");
  assert.equal(await fromConfig(config, "none.example", "a", helpers), undefined);
});

test("a broken helper or file is an error that quotes no secret", async () => {
  const config = { credsStore: "one" };
  for (const host of ["broken.example", "angry.example"]) {
    await assert.rejects(fromConfig(config, host, "a", { one: HELPER }), (error) => {
      return isHeadstartError(error, "HS_CREDENTIALS") && !error.message.includes("a secret");
    });
  }
  await assert.rejects(fromConfig(config, "x.example"), /HS_CREDENTIALS.*cannot be run/);
  await assert.rejects(fromConfig({ credsStore: "../../evil" }, "x.example"), /no name of a credential helper/);
  await assert.rejects(fromConfig('{"auths":{"a":{"auth":"c2VjcmV0', "x.example"), (error) => {
    return isHeadstartError(error, "HS_CREDENTIALS") && !error.message.includes("c2VjcmV0");
  });
});

test("a missing file has no credentials", async () => {
  const source = dockerConfigSource("/nowhere/config.json", {});
  assert.equal(await source.get({ host: "a.example", repository: "a" }), undefined);
});

test("docker's and podman's files are looked for where they put them", () => {
  assert.deepEqual(dockerConfigPaths({ HOME: "/h", XDG_RUNTIME_DIR: "/run/u" }), [
    "/h/.docker/config.json",
    "/run/u/containers/auth.json",
    "/h/.config/containers/auth.json",
  ]);
  assert.equal(dockerConfigPaths({ HOME: "/h", DOCKER_CONFIG: "/d" })[0], "/d/config.json");
});

test("images match a provider's patterns as kubelet has it", () => {
  const cases: [string, string, boolean][] = [
    ["*.dkr.ecr.*.amazonaws.com", "123.dkr.ecr.eu-west-1.amazonaws.com/app", true],
    ["*.dkr.ecr.*.amazonaws.com", "123.dkr.ecr.eu-west-1.amazonaws.com.cn/app", false],
    ["*.dkr.ecr.*.amazonaws.com", "a.b.dkr.ecr.eu.amazonaws.com/app", false],
    ["public.ecr.aws", "public.ecr.aws/x/y", true],
    ["registry.io:8080/path", "registry.io:8080/path/img", true],
    ["registry.io:8080", "registry.io/img", false],
    ["registry.io", "registry.io:8080/img", true],
    ["registry.io/path", "registry.io/other", false],
    ["k8s*.io", "k8s-x.io/a", true],
    ["*", "localhost/a", true],
    ["*.*", "docker.io/a", true],
    ["", "docker.io/a", false],
  ];
  for (const [pattern, image, wanted] of cases) assert.equal(matchImage(pattern, image), wanted, `${pattern} ${image}`);
});

const CONFIG = (name: string, more = "") => `apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: pods-only
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ["*"]
  tokenAttributes: {serviceAccountTokenAudience: x, requireServiceAccount: true}
- name: ${name}
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ["*.dkr.ecr.*.amazonaws.com"]
  defaultCacheDuration: 1h
  args: [get-credentials]
  env: [{name: FLAVOUR, value: sweet}]
${more}`;

/** Counts its runs, and answers with what it was asked. */
const PLUGIN = (cacheKey: string, duration: string) => `#!/bin/sh
n=$(cat "$0.count" 2>/dev/null || echo 0); n=$((n+1)); echo $n > "$0.count"
cat > "$0.request"; echo "$1 $FLAVOUR" > "$0.args"
echo '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"${cacheKey}",${duration}
"auth":{"*.dkr.ecr.*.amazonaws.com":{"username":"AWS","password":"short"},"1.dkr.ecr.eu.amazonaws.com/team":{"username":"AWS","password":"team"}}}'
`;

async function withPlugin(plugin: string, config = CONFIG("plug")) {
  const folder = await scratch({ "config.yaml": config, "bin/plug": plugin });
  chmodSync(join(folder.path, "bin/plug"), 0o755);
  let now = 1_000_000;
  const clock = { ...systemClock, now: () => now };
  const places = { configPath: join(folder.path, "config.yaml"), binDir: join(folder.path, "bin") };
  const source = kubeletSource(places, { clock, env: { PATH: "/usr/bin:/bin" } });
  return {
    folder,
    source,
    pass: (ms: number) => {
      now += ms;
    },
    runs: () => Number(readFileSync(join(folder.path, "bin/plug.count"), "utf8")),
    [Symbol.dispose]: () => folder[Symbol.dispose](),
  };
}

const HOST = "1.dkr.ecr.eu.amazonaws.com";

test("a kubelet plugin is run with the image, its answer's longest pattern wins and is kept by registry", async () => {
  using it = await withPlugin(PLUGIN("Registry", '"cacheDuration":"10m0s",'));
  assert.equal(shown(await it.source.get({ host: HOST, repository: "app" })), "AWS:short");
  assert.equal(shown(await it.source.get({ host: HOST, repository: "team/app" })), "AWS:team");
  assert.equal(it.runs(), 1);
  const request = JSON.parse(readFileSync(join(it.folder.path, "bin/plug.request"), "utf8"));
  assert.deepEqual(request, {
    apiVersion: "credentialprovider.kubelet.k8s.io/v1",
    kind: "CredentialProviderRequest",
    image: `${HOST}/app`,
  });
  assert.equal(readFileSync(join(it.folder.path, "bin/plug.args"), "utf8").trim(), "get-credentials sweet");
  it.pass(601_000);
  await it.source.get({ host: HOST, repository: "app" });
  assert.equal(it.runs(), 2);
  it.source.forget!({ host: HOST, repository: "app" });
  await it.source.get({ host: HOST, repository: "app" });
  assert.equal(it.runs(), 3);
  assert.equal(await it.source.get({ host: "ghcr.io", repository: "app" }), undefined);
  assert.equal(it.runs(), 3);
});

test("kept by image, by the default time, or not at all: as the answer says", async () => {
  using image = await withPlugin(PLUGIN("Image", ""));
  await image.source.get({ host: HOST, repository: "a" });
  await image.source.get({ host: HOST, repository: "b" });
  await image.source.get({ host: HOST, repository: "a" });
  assert.equal(image.runs(), 2);
  image.pass(3_601_000);
  await image.source.get({ host: HOST, repository: "a" });
  assert.equal(image.runs(), 3);
  using never = await withPlugin(PLUGIN("Global", '"cacheDuration":"0s",'));
  await never.source.get({ host: HOST, repository: "a" });
  await never.source.get({ host: HOST, repository: "a" });
  assert.equal(never.runs(), 2);
});

test("many who ask at once run a plugin once", async () => {
  using it = await withPlugin(PLUGIN("Image", ""));
  await Promise.all(Array.from({ length: 10 }, () => it.source.get({ host: HOST, repository: "a" })));
  assert.equal(it.runs(), 1);
});

test("a plugin that fails, lies or hangs is an error without its output", async () => {
  for (const plugin of ["#!/bin/sh\nexit 3\n", "#!/bin/sh\necho secret\n", '#!/bin/sh\necho \'{"kind":"Other"}\'\n']) {
    using it = await withPlugin(plugin);
    await assert.rejects(it.source.get({ host: HOST, repository: "a" }), (error) => {
      return isHeadstartError(error, "HS_CREDENTIALS") && !error.message.includes("secret");
    });
  }
  using folder = await scratch({ "config.yaml": CONFIG("plug"), "bin/plug": "#!/bin/sh\nexec sleep 60\n" });
  const places = { configPath: join(folder.path, "config.yaml"), binDir: join(folder.path, "bin") };
  const source = kubeletSource(places, { clock: systemClock, env: { PATH: "/bin" }, deadlineMs: 200 });
  await assert.rejects(source.get({ host: HOST, repository: "a" }), /no answer in time/);
});

test("a directory of configurations is read in the order of names; JSON is YAML", async () => {
  using folder = await scratch({
    "b.yaml": CONFIG("second"),
    "a.json": JSON.stringify({
      kind: "CredentialProviderConfig",
      providers: [{ name: "plug", apiVersion: "credentialprovider.kubelet.k8s.io/v1", matchImages: ["*.io"] }],
    }),
    "c.txt": "not read",
    "bin/plug":
      '#!/bin/sh\necho \'{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","auth":{"*.io":{"username":"u","password":"p"}}}\'\n',
  });
  writeFileSync(join(folder.path, "c.txt"), "x");
  const source = kubeletSource(
    { configPath: folder.path, binDir: join(folder.path, "bin") },
    { clock: systemClock, env: { PATH: "/usr/bin:/bin" } },
  );
  assert.equal(shown(await source.get({ host: "quay.io", repository: "a" })), "u:p");
});

test("a configuration that would run anything else is refused", () => {
  for (const name of ["../evil", "a b", "..", "a/b"]) {
    assert.throws(() => parseProviders(CONFIG(JSON.stringify(name)), "c"), /HS_CREDENTIALS/);
  }
  assert.throws(() => parseProviders("kind: Other", "c"), /HS_CREDENTIALS/);
  assert.throws(() => parseProviders("a: [", "c"), /HS_CREDENTIALS/);
});
