/** `--from-cluster`: options that name a cluster, and the images of its pods. */

import { type Command, Option } from "commander";
import { HeadstartError } from "../base/errors.ts";
import { type ClusterImage, clusterImages } from "../volume/cluster/images.ts";
import { readClusterAccess } from "../volume/cluster/kubeconfig.ts";

export interface ClusterFlags {
  readonly fromCluster?: boolean;
  readonly kubeconfig?: string;
  readonly context?: string;
  readonly kubeNamespace?: readonly string[];
}

export function addClusterOptions(command: Command): Command {
  const options: readonly (readonly [string, string])[] = [
    ["--from-cluster", "also the images that the pods of a Kubernetes cluster name"],
    ["--kubeconfig <FILE>", "default: KUBECONFIG, ~/.kube/config, or a pod's own account"],
    ["--context <NAME>", "default: the current one"],
    ["--kube-namespace <NAME...>", "only the pods of these namespaces"],
  ];
  for (const [flags, text] of options) command.addOption(new Option(flags, text).helpGroup("Images of a cluster:"));
  return command;
}

/** Empty without --from-cluster. Throws HS_USAGE, HS_KUBECONFIG, HS_CLUSTER, HS_CREDENTIALS. */
export async function imagesOfCluster(flags: ClusterFlags, signal?: AbortSignal): Promise<ClusterImage[]> {
  const { kubeconfig, context, kubeNamespace } = flags;
  if (flags.fromCluster !== true) {
    if (kubeconfig !== undefined || context !== undefined || kubeNamespace !== undefined)
      throw new HeadstartError("HS_USAGE", {
        what: "--kubeconfig, --context and --kube-namespace go with --from-cluster",
      });
    return [];
  }
  const access = await readClusterAccess({ file: kubeconfig, context, env: process.env });
  const images = await clusterImages(access, { namespaces: kubeNamespace ?? [], env: process.env, signal });
  if (images.length === 0)
    throw new HeadstartError("HS_CLUSTER", {
      what: `${access.server.host} (context ${access.context}): no pod names an image`,
    });
  return images;
}
