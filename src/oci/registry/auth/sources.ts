/**
 * The usual sources of credentials in their order (specs/containerd.md 11): what was given, what CRI captured, kubelet's plugins, docker's and
 * podman's files, what the caller has besides; after the last one a request goes out without.
 */

import { existsSync } from "node:fs";
import { type Clock, systemClock } from "../../../base/clock.ts";
import { type CredentialSource, staticCredentials } from "./credentials.ts";
import { dockerConfigPaths, dockerConfigSource } from "./docker-config.ts";
import { EKS_PROVIDERS, type KubeletProviders, kubeletSource } from "./kubelet.ts";

export interface SourceOptions {
  /** `--creds USER:PASSWORD`, and the host it is for. */
  readonly creds?: { readonly text: string; readonly host: string };
  /** Fresh ones, such as those that a CRI proxy captured. */
  readonly captured?: readonly CredentialSource[];
  /** Asked when no other has anything for a host. */
  readonly last?: readonly CredentialSource[];
  /** Default: those of an EKS node, where there are any. */
  readonly kubelet?: KubeletProviders | false;
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly clock?: Clock;
}

/** Throws HS_USAGE for creds that are none. */
export function credentialSources(options: SourceOptions = {}): CredentialSource[] {
  const env = options.env ?? process.env;
  const clock = options.clock ?? systemClock;
  const sources: CredentialSource[] = [];
  if (options.creds !== undefined) sources.push(staticCredentials(options.creds.text, options.creds.host));
  sources.push(...(options.captured ?? []));
  const kubelet = options.kubelet ?? (existsSync(EKS_PROVIDERS.configPath) ? EKS_PROVIDERS : false);
  if (kubelet !== false) sources.push(kubeletSource(kubelet, { clock, env }));
  for (const path of dockerConfigPaths(env)) sources.push(dockerConfigSource(path, env));
  sources.push(...(options.last ?? []));
  return sources;
}
