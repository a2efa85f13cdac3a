/** Connections to AWS for one command: transport, identity, region and endpoints put together. Whoever opens one closes it. */

import { type Clock, systemClock } from "../../base/clock.ts";
import { credentialChain } from "./chain.ts";
import { AwsClient } from "./client.ts";
import { awsEndpoints, awsRegion } from "./endpoints.ts";
import { Http } from "./http.ts";
import { Identity } from "./identity.ts";
import type { Environment } from "./profile.ts";

export interface ConnectOptions {
  readonly region?: string | undefined;
  readonly profile?: string | undefined;
  /** Of the EBS direct API. */
  readonly endpoint?: string | undefined;
  /** The most requests at once to one host. */
  readonly connections?: number;
  readonly env?: Environment;
  /** The longest silence of a connection. */
  readonly stallMs?: number;
  readonly clock?: Clock;
  readonly random?: () => number;
  readonly backoff?: { readonly baseMs: number; readonly maxMs: number };
}

export interface AwsConnection extends AsyncDisposable {
  readonly client: AwsClient;
}

/** Throws HS_USAGE when no region is known. Credentials are asked for with the first call. */
export async function connectAws(options: ConnectOptions = {}): Promise<AwsConnection> {
  const { env = process.env, clock = systemClock, random = Math.random, profile, connections = 32, backoff } = options;
  const region = await awsRegion({ region: options.region, profile, env });
  const http = new Http({ connections, env, stallMs: options.stallMs });
  const identity = new Identity(credentialChain({ http, clock, random, env, region, profile }), clock);
  const endpoint = awsEndpoints(region, env, options.endpoint);
  const client = new AwsClient({
    http,
    identity,
    region,
    endpoint,
    clock,
    random,
    ...(backoff !== undefined && { backoff }),
  });
  return { client, [Symbol.asyncDispose]: () => http[Symbol.asyncDispose]() };
}
