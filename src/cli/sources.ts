/** Options and opening of images that every command shares: --platform, --creds, --hosts-dir, containerd's address. */

import { type Command, Option } from "commander";
import { HeadstartError } from "../base/errors.ts";
import { type OpenOptions, openSource } from "../oci/open.ts";
import { hostPlatform, type Platform, parsePlatform } from "../oci/platform.ts";
import { type ImageSource, parseSource } from "../oci/reference.ts";
import { credentialSources } from "../oci/registry/auth/sources.ts";
import { DEFAULT_HOSTS_DIRS } from "../oci/registry/hosts.ts";
import type { RegistryOptions } from "../oci/registry/registry.ts";
import type { ImageReader } from "../oci/store.ts";
import { ContainerdClient } from "../snapshotter/containerd.ts";
import { ecrSource } from "../volume/aws/ecr.ts";

export interface AccessOptions {
  readonly creds?: string | undefined;
  readonly hostsDir?: string;
  readonly containerdAddress?: string;
  readonly containerdRoot?: string;
  readonly namespace?: string;
}

export interface SourceOptions extends AccessOptions {
  readonly platform?: string;
}

export function addSourceOptions(command: Command, options: { platform?: boolean } = {}): Command {
  if (options.platform !== false)
    command.option("--platform <OS/ARCH[/VARIANT]>", "which image of an index (default: this machine's)");
  const more: readonly (readonly [string, string, string?])[] = [
    [
      "--creds <USER:PASSWORD>",
      "for the registry of the source. Others see it in the process list: docker login is better",
    ],
    ["--hosts-dir <DIRS>", "containerd's hosts.toml directories, separated by colons", DEFAULT_HOSTS_DIRS.join(":")],
    ["--containerd-address <SOCK>", "for containerd:REF", "/run/containerd/containerd.sock"],
    ["--containerd-root <DIR>", "for containerd:REF", "/var/lib/containerd"],
    ["--namespace <NAME>", "for containerd:REF", "k8s.io"],
  ];
  for (const [flags, text, fallback] of more)
    command.addOption(new Option(flags, text).default(fallback).helpGroup("Registries and containerd:"));
  return command;
}

/** Throws HS_USAGE. */
export function platformOf(options: { readonly platform?: string }): Platform {
  return options.platform === undefined ? hostPlatform() : parsePlatform(options.platform);
}

/** `creds` hold for the host of `source` alone. */
export function registryOptions(source: ImageSource, options: AccessOptions): RegistryOptions {
  const creds =
    options.creds === undefined || source.kind !== "registry"
      ? {}
      : { creds: { text: options.creds, host: source.reference.host } };
  if (options.creds !== undefined && source.kind !== "registry") {
    throw new HeadstartError("HS_USAGE", { what: "--creds is for a registry" });
  }
  return {
    credentials: credentialSources({ ...creds, last: [ecrSource()] }),
    hostsDirs: (options.hostsDir ?? DEFAULT_HOSTS_DIRS.join(":")).split(":").filter((directory) => directory !== ""),
  };
}

export function openOptions(source: ImageSource, options: AccessOptions): OpenOptions {
  const namespace = options.namespace ?? "k8s.io";
  return {
    registryOptions: registryOptions(source, options),
    ...(source.kind === "containerd" && {
      containerd: {
        root: options.containerdRoot ?? "/var/lib/containerd",
        async target(reference: string, signal?: AbortSignal) {
          using client = new ContainerdClient(options.containerdAddress ?? "/run/containerd/containerd.sock");
          const found = await client.image(reference, { namespace, signal });
          if (found === null)
            throw new HeadstartError("HS_NOT_FOUND", {
              what: `containerd (namespace ${namespace}) has no image ${reference}`,
            });
          return found;
        },
      },
    }),
  };
}

/** Opens what the user named. Throws HS_REFERENCE, HS_NOT_FOUND and what opening throws. */
export async function openNamed(text: string, options: AccessOptions): Promise<ImageReader & AsyncDisposable> {
  const source = parseSource(text);
  return await openSource(source, openOptions(source, options));
}
