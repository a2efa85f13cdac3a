/** Every source of credentials, against the AWS of the tests: who is found, in which order, and what is said when a source is broken. */

import assert from "node:assert/strict";
import { chmodSync, writeFileSync } from "node:fs";
import { test } from "node:test";
import { type Clock, systemClock } from "../../src/base/clock.ts";
import { type HeadstartError, isHeadstartError } from "../../src/base/errors.ts";
import { type ConnectOptions, connectAws } from "../../src/volume/aws/connect.ts";
import { ecrSource } from "../../src/volume/aws/ecr.ts";
import { describeSnapshot } from "../../src/volume/ebs/snapshots.ts";
import { Scratch } from "../../src/volume/ebs/testing.ts";
import { AwsServer } from "./server.ts";

const ROLE = "arn:aws:iam::111122223333:role/ci";

/** A signed call that all credentials of the server's world may make. */
async function call(env: Record<string, string>, options: ConnectOptions = {}): Promise<void> {
  await using aws = await connectAws({ env, backoff: { baseMs: 1, maxMs: 5 }, ...options });
  assert.equal(await describeSnapshot(aws.client, "snap-0123"), undefined);
}

async function failure(promise: Promise<unknown>): Promise<HeadstartError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  assert.ok(isHeadstartError(error), `an error of ours is wanted: ${String(error)}`);
  return error;
}

class Files implements Disposable {
  readonly scratch = new Scratch();
  readonly config = this.scratch.path("config");
  readonly credentials = this.scratch.path("credentials");

  environment(server: AwsServer, config: string, credentials = ""): Record<string, string> {
    writeFileSync(this.config, config);
    writeFileSync(this.credentials, credentials);
    const { AWS_REGION: _region, AWS_DEFAULT_REGION: _default, ...endpoints } = server.endpoints();
    return { ...endpoints, AWS_CONFIG_FILE: this.config, AWS_SHARED_CREDENTIALS_FILE: this.credentials };
  }

  [Symbol.dispose](): void {
    this.scratch[Symbol.dispose]();
  }
}

test("keys of the environment, with and without a session token", async () => {
  await using server = await AwsServer.start();
  await call(server.environment(server.world.addKey()));
  await call(server.environment(server.world.addKey({ temporary: true, lifeMs: 60_000 })));
});

test("a web identity, as GitLab and EKS give it; one that the issuer did not sign is told without the token", async () => {
  await using server = await AwsServer.start();
  using files = new Files();
  const file = files.scratch.path("token");
  writeFileSync(file, `${server.world.webIdentityToken}\n`);
  const env = { ...server.endpoints(), AWS_ROLE_ARN: ROLE, AWS_WEB_IDENTITY_TOKEN_FILE: file };
  await call(env);
  assert.equal(server.count("AssumeRoleWithWebIdentity"), 1);
  writeFileSync(file, "header.wrong.signature");
  const error = await failure(call(env));
  assert.equal(error.code, "HS_AWS_CREDENTIALS");
  assert.match(error.message, /AssumeRoleWithWebIdentity arn:aws:iam::111122223333:role\/ci: InvalidIdentityToken$/);
  assert.match((await failure(call({ ...env, AWS_WEB_IDENTITY_TOKEN_FILE: "/nowhere" }))).message, /\/nowhere/);
});

test("a profile: keys, region, a role by another profile, by itself, by a token, by a program", async () => {
  await using server = await AwsServer.start();
  using files = new Files();
  const key = server.world.addKey();
  const keys = `aws_access_key_id = ${key.id}\naws_secret_access_key = ${key.secret}\n`;
  const region = `region = ${server.world.region}\n`;
  const token = files.scratch.path("token");
  writeFileSync(token, server.world.webIdentityToken);
  const program = files.scratch.path("program");
  const answer = { Version: 1, AccessKeyId: key.id, SecretAccessKey: key.secret };
  writeFileSync(program, `#!/bin/sh\n[ "$1" = "a b" ] || exit 7\necho '${JSON.stringify(answer)}'\n`);
  chmodSync(program, 0o755);
  const config = `[default]\n${region}[profile role]\n${region}role_arn = ${ROLE}\nsource_profile = base\n[profile self]\n${region}${keys}role_arn = ${ROLE}\nsource_profile = self
[profile token]\n${region}role_arn = ${ROLE}\nweb_identity_token_file = ${token}\n[profile program]\n${region}credential_process = ${program} "a b"\n[profile loop]\n${region}role_arn = ${ROLE}\nsource_profile = noone
[profile empty]\n${region}[profile sso]\n${region}sso_session = x\n[profile mfa]\n${region}role_arn = ${ROLE}\nmfa_serial = y\n[profile broken]\n${region}credential_process = ${program} c\n`;
  const env = files.environment(server, config, `[default]\n${keys}[base]\n${keys}`);
  await call(env);
  for (const profile of ["role", "self", "token", "program"]) {
    await call(env, { profile });
    await call({ ...env, AWS_PROFILE: profile, AWS_ACCESS_KEY_ID: "AKIANOBODYNOBODY", AWS_SECRET_ACCESS_KEY: "x" });
  }
  assert.equal(server.count("AssumeRole"), 4);
  assert.equal(server.count("AssumeRoleWithWebIdentity"), 2);
  for (const [profile, message] of [
    ["nobody", /profile nobody: no such profile/],
    ["loop", /source_profile noone: no such profile/],
    ["empty", /no credentials, role or program in it/],
    ["sso", /aws configure export-credentials/],
    ["mfa", /mfa_serial/],
    ["broken", /credential_process of profile broken: exit 7/],
  ] as const) {
    const error = await failure(call(env, { profile, region: server.world.region }));
    assert.equal(error.code, "HS_AWS_CREDENTIALS");
    assert.match(error.message, message);
  }
});

test("an instance's role, and its region", async () => {
  await using server = await AwsServer.start();
  const { AWS_REGION: _region, AWS_DEFAULT_REGION: _default, ...env } = server.endpoints();
  await call(env);
  assert.equal(server.count("GET /latest/meta-data/placement/region"), 1);
  const error = await failure(call({ ...env, AWS_EC2_METADATA_DISABLED: "true" }));
  assert.equal(error.code, "HS_USAGE");
  assert.match(error.message, /which region/);
});

test("a container's credentials; a full URI may not lead elsewhere", async () => {
  await using server = await AwsServer.start();
  using files = new Files();
  const file = files.scratch.path("authorization");
  writeFileSync(file, server.world.containerToken);
  const uri = { AWS_CONTAINER_CREDENTIALS_FULL_URI: `${server.url}/container-credentials` };
  await call({ ...server.endpoints(), ...uri, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: file });
  assert.match((await failure(call({ ...server.endpoints(), ...uri }))).message, /HTTP 403/);
  const elsewhere = { AWS_CONTAINER_CREDENTIALS_FULL_URI: "http://credentials.example/x" };
  assert.match((await failure(call({ ...server.endpoints(), ...elsewhere }))).message, /no host that may be asked/);
});

test("a clock that is wrong is set by AWS's", async () => {
  await using server = await AwsServer.start();
  server.world.advance(3 * 3_600_000);
  // AWS's date is the server's own here: the machine's, which is three hours behind its world
  const slow: Clock = { ...systemClock, now: () => Date.now() };
  const env = server.environment(server.world.addKey());
  const error = await failure(call(env, { clock: slow }));
  assert.equal(error.code, "HS_AWS_CREDENTIALS");
  server.world.advance(-3 * 3_600_000);
  const wrong: Clock = { ...systemClock, now: () => Date.now() - 3 * 3_600_000 };
  await call(env, { clock: wrong });
});

test("a private ECR registry gets its password from the chain, other hosts get nothing", async () => {
  await using server = await AwsServer.start();
  const env = server.environment(server.world.addKey());
  const source = ecrSource({ env });
  const host = `111122223333.dkr.ecr.${server.world.region}.amazonaws.com`;
  const query = { host, repository: "app" };
  const credential = await source.get(query);
  assert.ok(credential?.kind === "password");
  assert.deepEqual([credential.username, credential.password.reveal()], ["AWS", server.world.registryPassword]);
  await source.get(query);
  assert.equal(server.count("GetAuthorizationToken"), 1);
  source.forget?.(query);
  await source.get(query);
  assert.equal(server.count("GetAuthorizationToken"), 2);
  for (const other of ["registry.example", `${host}.example`, "public.ecr.aws"]) {
    assert.equal(await source.get({ host: other, repository: "app" }), undefined);
  }
  const nobody = ecrSource({ env: { ...server.endpoints(), AWS_EC2_METADATA_DISABLED: "true" } });
  assert.equal(await nobody.get(query), undefined);
  const stranger = ecrSource({ env: { ...env, AWS_SECRET_ACCESS_KEY: "x" } });
  assert.equal((await failure(stranger.get(query))).code, "HS_CREDENTIALS");
});
