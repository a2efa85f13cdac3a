/** Against the registry that Debian ships (docker-registry 2.8: no referrers API): what our own fake might have got wrong. */

import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { freePort } from "../../../test/tools/free-port.ts";
import { sha256 } from "../../base/digest.ts";
import { isHeadstartError } from "../../base/errors.ts";
import { openLayout } from "../layout.ts";
import { loadImage } from "../manifest.ts";
import { MEDIA_TYPES } from "../media-types.ts";
import { parsePlatform } from "../platform.ts";
import { staticCredentials } from "./auth/credentials.ts";
import { fallbackTag } from "./referrers.ts";
import { openFake, patterned, scratch } from "./testing.ts";

const BINARY = "/usr/bin/docker-registry";
const skip = existsSync(BINARY) ? false : "docker-registry is not installed";
const FIXTURE = fileURLToPath(new URL("../../../test/golden/fixture/oci", import.meta.url));
/** bcrypt of "secret" for the user "ann". */
const HTPASSWD = "ann:$2b$05$fCBexdj0x1yhHGthQ1ATQupDu7ozS1Bwyl9XTwPR0nl7DV3xbeBJG\n";

let folder: Awaited<ReturnType<typeof scratch>>;
let registry: ChildProcess;
let host = "";

before(async () => {
  if (skip) return;
  folder = await scratch({ htpasswd: HTPASSWD });
  host = `127.0.0.1:${await freePort()}`;
  const config = {
    version: "0.1",
    log: { level: "error" },
    storage: { filesystem: { rootdirectory: join(folder.path, "data") }, delete: { enabled: true } },
    http: { addr: host },
    auth: { htpasswd: { realm: "test", path: join(folder.path, "htpasswd") } },
  };
  writeFileSync(join(folder.path, "config.yml"), JSON.stringify(config));
  registry = spawn(BINARY, ["serve", join(folder.path, "config.yml")], { stdio: "ignore" });
  for (let wait = 0; wait < 1200; wait++) {
    const up = await fetch(`http://${host}/v2/`).then(
      (answer) => answer.status === 401,
      () => false,
    );
    if (up) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error("docker-registry did not start");
});

after(async () => {
  if (skip) return;
  const gone = new Promise((resolve) => registry.once("exit", resolve));
  registry.kill();
  await gone;
  folder[Symbol.dispose]();
});

const login = () => ({ credentials: [staticCredentials("ann:secret", host)] });

test("an image is pushed, resolved, and read by range, stream and whole", { skip }, async () => {
  const layout = await openLayout(FIXTURE, { tag: "dockergz" }, "fixture");
  const image = await loadImage(layout, parsePlatform("linux/amd64"));
  await using to = await openFake(host, "team/app:v1", login());
  for (const blob of [image.configDescriptor, ...image.layers]) {
    await to.repo.pushBlob(blob, () => layout.openBlob(blob).stream(0));
  }
  await to.repo.pushManifest(image.manifestBytes, image.manifestDescriptor.mediaType, "v1");
  await using from = await openFake(host, "team/app:v1", login());
  const back = await loadImage(from.repo, parsePlatform("linux/amd64"));
  assert.equal(back.manifestDescriptor.digest, image.manifestDescriptor.digest);
  const blob = from.repo.openBlob(back.layers[0]!);
  const whole = await blob.readAll();
  assert.deepEqual(Buffer.from(await blob.readRange(1000, 500_000)), Buffer.from(whole.subarray(1000, 500_000)));
  assert.deepEqual(await from.repo.tags(), ["v1"]);
  await assert.rejects(from.repo.fetchManifest("v2"), (error) => isHeadstartError(error, "HS_NOT_FOUND"));
});

test("skopeo reads what we pushed", { skip: skip || (existsSync("/usr/bin/skopeo") ? false : "no skopeo") }, () => {
  const raw = execFileSync("skopeo", [
    "inspect",
    "--raw",
    "--tls-verify=false",
    "--creds",
    "ann:secret",
    `docker://${host}/team/app:v1`,
  ]);
  assert.ok(JSON.parse(raw.toString()).layers.length === 3);
});

test("without a login everything is refused, clearly", { skip }, async () => {
  await using it = await openFake(host, "team/app:v1");
  await assert.rejects(it.repo.resolve(), (error) => isHeadstartError(error, "HS_REGISTRY_AUTH"));
  await using wrong = await openFake(host, "team/app:v1", { credentials: [staticCredentials("ann:guess", host)] });
  await assert.rejects(wrong.repo.resolve(), (error) => isHeadstartError(error, "HS_REGISTRY_AUTH"));
});

test("blobs are pushed in chunks, and mounted from another repository", { skip }, async () => {
  const bytes = patterned(3_000_000);
  const descriptor = { mediaType: MEDIA_TYPES.octetStream, digest: sha256(bytes), size: bytes.byteLength };
  await using it = await openFake(host, "chunked", { ...login(), upload: { mode: "chunked", chunkBytes: 1_000_000 } });
  await it.repo.pushBlob(descriptor, bytes);
  assert.deepEqual(await it.repo.openBlob(descriptor).readAll(), bytes);
  await using other = await openFake(host, "mounted", login());
  await other.repo.pushBlob(
    descriptor,
    (async function* () {
      yield* [];
      throw new Error("nothing is sent when the blob is mounted");
    })(),
    { from: "chunked" },
  );
  assert.equal(await other.repo.hasBlob(descriptor), true);
});

test("referrers are kept under the fallback tag, and deleted", { skip }, async () => {
  await using it = await openFake(host, "team/app:v1", login());
  const subject = await it.repo.resolve();
  const empty = Buffer.from("{}");
  const config = { mediaType: MEDIA_TYPES.sociIndexV1, digest: sha256(empty), size: 2 };
  await it.repo.pushBlob(config, empty);
  const manifest = (note: string) =>
    Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: MEDIA_TYPES.ociManifest,
        config,
        layers: [config],
        subject,
        annotations: { note },
      }),
    );
  const first = await it.repo.pushManifest(manifest("1"), MEDIA_TYPES.ociManifest);
  const second = await it.repo.pushManifest(manifest("2"), MEDIA_TYPES.ociManifest);
  const found = await it.repo.referrers(subject.digest, { artifactType: MEDIA_TYPES.sociIndexV1 });
  assert.deepEqual(
    found.map((one) => one.digest),
    [first.digest, second.digest],
  );
  assert.ok((await it.repo.tags()).includes(fallbackTag(subject.digest)));
  await it.repo.deleteManifest(second.digest);
  await assert.rejects(it.repo.fetchManifest(second.digest), (error) => isHeadstartError(error, "HS_NOT_FOUND"));
});
