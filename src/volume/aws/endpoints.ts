/** Where AWS's services are: by region, or as AWS_ENDPOINT_URL and AWS_ENDPOINT_URL_<SERVICE> say. And which region. */

import { HeadstartError } from "../../base/errors.ts";
import type { AwsService } from "./client.ts";
import { instanceRegion } from "./metadata.ts";
import { type Environment, readProfile } from "./profile.ts";

const HOSTS: Readonly<Record<AwsService, string>> = { ebs: "ebs", ec2: "ec2", ssm: "ssm", sts: "sts", ecr: "api.ecr" };

/** `ebs` is `--endpoint`, which is for the EBS direct API alone. The function throws HS_USAGE for what is no URL. */
export function awsEndpoints(region: string, env: Environment, ebs?: string): (service: AwsService) => URL {
  const suffix = region.startsWith("cn-") ? "amazonaws.com.cn" : "amazonaws.com";
  return (service) => {
    const named =
      (service === "ebs" ? ebs : undefined) || env[`AWS_ENDPOINT_URL_${service.toUpperCase()}`] || env.AWS_ENDPOINT_URL;
    const url = URL.parse(named || `https://${HOSTS[service]}.${region}.${suffix}`);
    if (url === null || !/^https?:$/.test(url.protocol) || url.username !== "" || url.search !== "") {
      throw new HeadstartError("HS_USAGE", { what: `the endpoint for ${service} is no URL: ${named}` });
    }
    return url;
  };
}

/** `--region`, the environment, the profile, the instance. Throws HS_USAGE. */
export async function awsRegion(options: {
  readonly region?: string | undefined;
  readonly profile?: string | undefined;
  readonly env: Environment;
}): Promise<string> {
  const { env } = options;
  const profile = options.profile ?? (env.AWS_PROFILE || env.AWS_DEFAULT_PROFILE || "default");
  const region =
    options.region ||
    env.AWS_REGION ||
    env.AWS_DEFAULT_REGION ||
    readProfile(profile, env)?.get("region") ||
    (await instanceRegion(env));
  if (region === undefined)
    throw new HeadstartError("HS_USAGE", { what: "which region? Give --region, AWS_REGION or a profile that has one" });
  if (!/^[a-z]{2,4}(?:-[a-z0-9]{1,20}){1,4}$/.test(region))
    throw new HeadstartError("HS_USAGE", { what: `--region ${region}: no such name` });
  return region;
}
