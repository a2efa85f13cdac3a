/** STS: a role for a token that an issuer signed (GitHub, GitLab, EKS), or for credentials that may assume it. */

import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { Secret } from "../../base/secret.ts";
import type { AwsClient } from "./client.ts";
import { query } from "./query.ts";
import type { AwsCredentials } from "./signature.ts";
import { descendants, textOf, type XmlElement } from "./xml.ts";

export interface RoleRequest {
  readonly roleArn: string;
  readonly sessionName: string;
  readonly durationSeconds?: string | undefined;
  readonly externalId?: string | undefined;
}

/** `client` signs with the credentials that assume the role. Throws HS_AWS_CREDENTIALS. */
export function assumeRole(client: AwsClient, role: RoleRequest): Promise<AwsCredentials> {
  return ask(client, "AssumeRole", role, { ExternalId: role.externalId });
}

/** `client` does not sign. Throws HS_AWS_CREDENTIALS. */
export function assumeRoleWithWebIdentity(
  client: AwsClient,
  role: RoleRequest,
  token: Secret,
): Promise<AwsCredentials> {
  return ask(client, "AssumeRoleWithWebIdentity", role, { WebIdentityToken: token.reveal() });
}

async function ask(
  client: AwsClient,
  action: string,
  role: RoleRequest,
  fields: Readonly<Record<string, string | undefined>>,
): Promise<AwsCredentials> {
  let root: XmlElement;
  try {
    root = await query(client, "sts", action, {
      RoleArn: role.roleArn,
      RoleSessionName: role.sessionName,
      DurationSeconds: role.durationSeconds,
      ...fields,
    });
  } catch (cause) {
    if (!isHeadstartError(cause)) throw cause;
    // the answer may quote the token, so what it says is not passed on
    const why = cause.details.fault === undefined ? cause.message : `${String(cause.details.fault)}`;
    throw new HeadstartError("HS_AWS_CREDENTIALS", { what: `${action} ${role.roleArn}: ${why}` });
  }
  const [found] = descendants(root, "Credentials");
  const text = (name: string) => (found === undefined ? undefined : textOf(found, name));
  const [id, secret, token, expiration] = ["AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration"].map(text);
  const expiresAt = Date.parse(expiration ?? "");
  if (!id || !secret || !token || Number.isNaN(expiresAt)) {
    throw new HeadstartError("HS_AWS_CREDENTIALS", {
      what: `${action} ${role.roleArn}: the answer has no credentials`,
    });
  }
  return { accessKeyId: id, secretAccessKey: new Secret(secret), sessionToken: new Secret(token), expiresAt };
}
