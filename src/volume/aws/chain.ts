/**
 * The AWS provider chain: environment, web identity (GitHub, GitLab, EKS), profile, container, instance; the first that has credentials is taken and stays. A profile may hold keys, run a program,
 * or assume a role by another profile. A profile that is named (--profile, AWS_PROFILE) is asked before the environment's keys and must have credentials.
 */

import { readFileSync } from "node:fs";
import type { Clock } from "../../base/clock.ts";
import { HeadstartError } from "../../base/errors.ts";
import { Secret } from "../../base/secret.ts";
import { runCredentialProgram } from "../../oci/registry/auth/exec.ts";
import { AwsClient } from "./client.ts";
import { awsEndpoints } from "./endpoints.ts";
import type { Http } from "./http.ts";
import { type CredentialProvider, Identity } from "./identity.ts";
import { containerProvider, instanceProvider, parseCredentials } from "./metadata.ts";
import { type Environment, type Profile, readProfile } from "./profile.ts";
import type { AwsCredentials } from "./signature.ts";
import { assumeRole, assumeRoleWithWebIdentity, type RoleRequest } from "./sts.ts";

export interface ChainParts {
  readonly http: Http;
  readonly clock: Clock;
  readonly random: () => number;
  readonly env: Environment;
  readonly region: string;
  /** `--profile`. */
  readonly profile?: string | undefined;
}

/** Roles that lead to roles. */
const DEPTH_MAX = 8;
const SESSION_NAME = "headstart";

export function credentialChain(parts: ChainParts): CredentialProvider[] {
  const { env } = parts;
  const explicit = parts.profile ?? (env.AWS_PROFILE || undefined);
  if (explicit !== undefined) return [profileProvider(parts, explicit, true)];
  return [
    environmentProvider(env),
    webIdentityProvider(parts),
    profileProvider(parts, env.AWS_DEFAULT_PROFILE || "default", false),
    containerProvider(env),
    instanceProvider(env),
  ];
}

function environmentProvider(env: Environment): CredentialProvider {
  return {
    name: "environment",
    fixed: true,
    async get() {
      const { AWS_ACCESS_KEY_ID: id, AWS_SECRET_ACCESS_KEY: secret, AWS_SESSION_TOKEN: token } = env;
      return id && secret ? keys(id, secret, token) : undefined;
    },
  };
}

function keys(id: string, secret: string, token: string | undefined): AwsCredentials {
  return {
    accessKeyId: id,
    secretAccessKey: new Secret(secret),
    sessionToken: token ? new Secret(token) : undefined,
    expiresAt: undefined,
  };
}

function webIdentityProvider(parts: ChainParts): CredentialProvider {
  const { AWS_ROLE_ARN: roleArn, AWS_WEB_IDENTITY_TOKEN_FILE: file, AWS_ROLE_SESSION_NAME: name } = parts.env;
  return {
    name: "web identity",
    get: async () =>
      roleArn && file ? await webIdentity(parts, file, { roleArn, sessionName: name || SESSION_NAME }) : undefined,
  };
}

/** The file is read anew each time: its owner renews it. */
async function webIdentity(parts: ChainParts, file: string, role: RoleRequest): Promise<AwsCredentials> {
  let token: Secret;
  try {
    token = new Secret(readFileSync(file, "utf8").trim());
  } catch (cause) {
    throw new HeadstartError("HS_AWS_CREDENTIALS", { what: `web identity token ${file}`, cause });
  }
  return await assumeRoleWithWebIdentity(stsClient(parts, undefined), role, token);
}

function stsClient(parts: ChainParts, identity: Identity | undefined): AwsClient {
  const { http, clock, random, region, env } = parts;
  return new AwsClient({ http, identity, region, clock, random, endpoint: awsEndpoints(region, env) });
}

function profileProvider(parts: ChainParts, name: string, wanted: boolean): CredentialProvider {
  return {
    name: `profile ${name}`,
    async get() {
      const profile = readProfile(name, parts.env);
      const found = profile === undefined ? undefined : await profileCredentials(parts, name, profile, []);
      if (found === undefined && wanted) {
        const why = profile === undefined ? "no such profile" : "no credentials, role or program in it";
        throw new HeadstartError("HS_AWS_CREDENTIALS", { what: `profile ${name}: ${why}` });
      }
      return found;
    },
  };
}

async function profileCredentials(
  parts: ChainParts,
  name: string,
  profile: Profile,
  through: readonly string[],
): Promise<AwsCredentials | undefined> {
  const get = (key: string) => profile.get(key) || undefined;
  const wrong = (why: string) => new HeadstartError("HS_AWS_CREDENTIALS", { what: `profile ${name}: ${why}` });
  const roleArn = get("role_arn");
  // a profile may be the source of itself: its keys then, not its role
  if (roleArn !== undefined && !through.includes(name)) {
    if (get("mfa_serial") !== undefined) throw wrong("a role that wants a code (mfa_serial) cannot be assumed here");
    const role: RoleRequest = {
      roleArn,
      sessionName: get("role_session_name") ?? SESSION_NAME,
      durationSeconds: get("duration_seconds"),
      externalId: get("external_id"),
    };
    const file = get("web_identity_token_file");
    if (file !== undefined) return await webIdentity(parts, file, role);
    const source = sourceOf(parts, name, profile, [...through, name]);
    return await assumeRole(stsClient(parts, new Identity([source], parts.clock)), role);
  }
  const [id, secret] = [get("aws_access_key_id"), get("aws_secret_access_key")];
  if (id !== undefined && secret !== undefined) return keys(id, secret, get("aws_session_token"));
  const program = get("credential_process");
  if (program !== undefined) return await processCredentials(program, name, parts.env);
  if (get("sso_session") !== undefined || get("sso_start_url") !== undefined) {
    throw wrong('single sign-on: run `eval "$(aws configure export-credentials --format env)"` first');
  }
  return undefined;
}

function sourceOf(parts: ChainParts, name: string, profile: Profile, through: readonly string[]): CredentialProvider {
  const sourceName = profile.get("source_profile");
  if (sourceName !== undefined) {
    const wrong = (why: string) =>
      new HeadstartError("HS_AWS_CREDENTIALS", { what: `profile ${name}: source_profile ${sourceName}: ${why}` });
    if (through.length > DEPTH_MAX) throw wrong("too many roles in a row");
    return {
      name: `profile ${sourceName}`,
      async get() {
        const source = readProfile(sourceName, parts.env);
        if (source === undefined) throw wrong("no such profile");
        return await profileCredentials(parts, sourceName, source, through);
      },
    };
  }
  switch (profile.get("credential_source")) {
    case "Environment":
      return environmentProvider(parts.env);
    case "EcsContainer":
      return containerProvider(parts.env);
    case "Ec2InstanceMetadata":
      return instanceProvider(parts.env);
    default:
      throw new HeadstartError("HS_AWS_CREDENTIALS", {
        what: `profile ${name}: role_arn needs source_profile, credential_source or web_identity_token_file`,
      });
  }
}

async function processCredentials(program: string, name: string, env: Environment): Promise<AwsCredentials> {
  const what = `credential_process of profile ${name}`;
  const { status, stdout, complaint } = await runCredentialProgram("/bin/sh", ["-c", program], { stdin: "", env });
  if (status !== 0) throw new HeadstartError("HS_AWS_CREDENTIALS", { what: `${what}: exit ${status}: ${complaint}` });
  return parseCredentials(stdout, what);
}
