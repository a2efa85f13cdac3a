import assert from "node:assert/strict";
import { test } from "node:test";
import { awsEndpoints } from "./endpoints.ts";

const FIPS = { AWS_USE_FIPS_ENDPOINT: "true" };
const DUAL = { AWS_USE_DUALSTACK_ENDPOINT: "TRUE" };
const SERVICES = ["ebs", "ec2", "ssm", "sts", "ecr"] as const;

/** What botocore 1.43.11 resolves for ebs, ec2, ssm, sts (regional) and ecr. */
const HOSTS: readonly (readonly [region: string, env: Record<string, string>, hosts: string])[] = [
  [
    "eu-central-1",
    {},
    "ebs.R.amazonaws.com ec2.R.amazonaws.com ssm.R.amazonaws.com sts.R.amazonaws.com api.ecr.R.amazonaws.com",
  ],
  [
    "us-east-1",
    FIPS,
    "ebs-fips.R.amazonaws.com ec2-fips.R.amazonaws.com ssm-fips.R.amazonaws.com sts-fips.R.amazonaws.com api.ecr-fips.R.amazonaws.com",
  ],
  ["eu-central-1", DUAL, "ebs.R.api.aws ec2.R.api.aws ssm.R.api.aws sts.R.api.aws ecr.R.api.aws"],
  [
    "us-east-1",
    { ...FIPS, ...DUAL },
    "ebs-fips.R.api.aws ec2-fips.R.api.aws ssm-fips.R.api.aws sts-fips.R.api.aws ecr-fips.R.api.aws",
  ],
  [
    "cn-north-1",
    {},
    "ebs.R.amazonaws.com.cn ec2.R.amazonaws.com.cn ssm.R.amazonaws.com.cn sts.R.amazonaws.com.cn api.ecr.R.amazonaws.com.cn",
  ],
  [
    "cn-north-1",
    DUAL,
    "ebs.R.api.amazonwebservices.com.cn ec2.R.api.amazonwebservices.com.cn ssm.R.api.amazonwebservices.com.cn sts.R.api.amazonwebservices.com.cn ecr.R.api.amazonwebservices.com.cn",
  ],
  [
    "us-gov-west-1",
    {},
    "ebs.R.amazonaws.com ec2.R.amazonaws.com ssm.R.amazonaws.com sts.R.amazonaws.com api.ecr.R.amazonaws.com",
  ],
  [
    "us-gov-west-1",
    FIPS,
    "ebs-fips.R.amazonaws.com ec2.R.amazonaws.com ssm.R.amazonaws.com sts.R.amazonaws.com api.ecr-fips.R.amazonaws.com",
  ],
  [
    "us-gov-west-1",
    { ...FIPS, ...DUAL },
    "ebs-fips.R.api.aws ec2-fips.R.api.aws ssm-fips.R.api.aws sts-fips.R.api.aws ecr-fips.R.api.aws",
  ],
  ["us-iso-east-1", {}, "ebs.R.c2s.ic.gov ec2.R.c2s.ic.gov ssm.R.c2s.ic.gov sts.R.c2s.ic.gov api.ecr.R.c2s.ic.gov"],
  [
    "us-isob-east-1",
    {},
    "ebs.R.sc2s.sgov.gov ec2.R.sc2s.sgov.gov ssm.R.sc2s.sgov.gov sts.R.sc2s.sgov.gov api.ecr.R.sc2s.sgov.gov",
  ],
  [
    "eu-isoe-west-1",
    FIPS,
    "ebs-fips.R.cloud.adc-e.uk ec2-fips.R.cloud.adc-e.uk ssm-fips.R.cloud.adc-e.uk sts-fips.R.cloud.adc-e.uk api.ecr-fips.R.cloud.adc-e.uk",
  ],
  [
    "eusc-de-east-1",
    DUAL,
    "ebs.R.api.amazonwebservices.eu ec2.R.api.amazonwebservices.eu ssm.R.api.amazonwebservices.eu sts.R.api.amazonwebservices.eu ecr.R.api.amazonwebservices.eu",
  ],
];

test("endpoints are those of the AWS SDKs in every partition, with FIPS and IPv6 where the environment wants them", () => {
  for (const [region, env, hosts] of HOSTS) {
    const endpoint = awsEndpoints(region, env);
    assert.equal(SERVICES.map((service) => endpoint(service).host).join(" "), hosts.replaceAll("R.", `${region}.`));
  }
});

test("an endpoint that is named wins, that of a service over that of all", () => {
  const env = { ...FIPS, AWS_ENDPOINT_URL: "http://all.example:1", AWS_ENDPOINT_URL_EC2: "http://ec2.example:2" };
  const endpoint = awsEndpoints("eu-central-1", env, "http://ebs.example:3");
  assert.deepEqual(
    (["ebs", "ec2", "ssm"] as const).map((service) => endpoint(service).host),
    ["ebs.example:3", "ec2.example:2", "all.example:1"],
  );
});

test("a partition without IPv6 endpoints, and what is no URL, are wrong usage", () => {
  assert.throws(() => awsEndpoints("us-isof-south-1", DUAL)("ebs"), { code: "HS_USAGE" });
  for (const url of ["ebs.example", "ftp://ebs.example", "http://key@ebs.example", "http://ebs.example?x=1"])
    assert.throws(() => awsEndpoints("eu-central-1", {}, url)("ebs"), { code: "HS_USAGE" });
});
