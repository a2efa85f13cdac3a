/**
 * Where AWS's services are: by region, or as AWS_ENDPOINT_URL and AWS_ENDPOINT_URL_<SERVICE> say. And which region. Hosts are those of the AWS SDKs' own endpoint rules (botocore 1.43),
 * AWS_USE_FIPS_ENDPOINT and AWS_USE_DUALSTACK_ENDPOINT among them.
 */

import { HeadstartError } from "../../base/errors.ts";
import type { AwsService } from "./client.ts";
import { instanceRegion } from "./metadata.ts";
import { type Environment, readProfile } from "./profile.ts";

const HOSTS: Readonly<Record<AwsService, string>> = { ebs: "ebs", ec2: "ec2", ssm: "ssm", sts: "sts", ecr: "api.ecr" };

/** AWS's separate worlds by the beginning of their regions' names: the domain of each, and that of endpoints with IPv6. */
const PARTITIONS: readonly {
  readonly regions: string;
  readonly domain: string;
  readonly dualStack: string | undefined;
}[] = [
  { regions: "cn-", domain: "amazonaws.com.cn", dualStack: "api.amazonwebservices.com.cn" },
  { regions: "eusc-", domain: "amazonaws.eu", dualStack: "api.amazonwebservices.eu" },
  { regions: "us-iso-", domain: "c2s.ic.gov", dualStack: "api.aws.ic.gov" },
  { regions: "us-isob-", domain: "sc2s.sgov.gov", dualStack: "api.aws.scloud" },
  { regions: "eu-isoe-", domain: "cloud.adc-e.uk", dualStack: undefined },
  { regions: "us-isof-", domain: "csp.hci.ic.gov", dualStack: undefined },
  { regions: "", domain: "amazonaws.com", dualStack: "api.aws" },
];
/** GovCloud's ordinary endpoints of these are the validated ones. */
const GOV_PLAIN: ReadonlySet<AwsService> = new Set(["ec2", "ssm", "sts"]);

/** Throws HS_USAGE where there is none. */
function hostOf(service: AwsService, region: string, env: Environment): string {
  const isOn = (name: string) => env[name]?.toLowerCase() === "true";
  const fips = isOn("AWS_USE_FIPS_ENDPOINT");
  const { domain, dualStack } = PARTITIONS.find(({ regions }) => region.startsWith(regions))!;
  if (isOn("AWS_USE_DUALSTACK_ENDPOINT")) {
    if (dualStack === undefined)
      throw new HeadstartError("HS_USAGE", { what: `AWS_USE_DUALSTACK_ENDPOINT: ${region} has no such endpoints` });
    return `${service}${fips ? "-fips" : ""}.${region}.${dualStack}`;
  }
  const isPlain = !fips || (region.startsWith("us-gov-") && GOV_PLAIN.has(service));
  return `${HOSTS[service]}${isPlain ? "" : "-fips"}.${region}.${domain}`;
}

/** `ebs` is `--endpoint`, which is for the EBS direct API alone. The function throws HS_USAGE for what is no URL. */
export function awsEndpoints(region: string, env: Environment, ebs?: string): (service: AwsService) => URL {
  return (service) => {
    const named =
      (service === "ebs" ? ebs : undefined) || env[`AWS_ENDPOINT_URL_${service.toUpperCase()}`] || env.AWS_ENDPOINT_URL;
    const url = URL.parse(named || `https://${hostOf(service, region, env)}`);
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
