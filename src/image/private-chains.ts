/**
 * May containers upon a chain have something else than its layers? containerd shares snapshots between all images whose layers have the same diffIDs, and says nothing of the image when a
 * container is made. So what one image's index, manifest or repository names is used only while every image with this chain that containerd has is that image: nobody who pulled the same layers by
 * another name is given what somebody else says they hold.
 */

import { type ChainID, chainIDs, type Digest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { parseConfig, parseIndex, parseManifest } from "../oci/manifest.ts";
import { isConfigType, isIndexType, isManifestType } from "../oci/media-types.ts";
import { parseReference } from "../oci/reference.ts";
import type { ManifestSource } from "./open.ts";
import type { Owner } from "./source.ts";

/** containerd's image records; snapshotter/containerd.ts asks them. */
export interface ImageNames {
  /** Every image of a namespace. Throws when containerd does not answer. */
  images(options: {
    namespace: string;
    signal?: AbortSignal | undefined;
  }): Promise<readonly { readonly name: string; readonly target: Descriptor }[]>;
}

export interface OtherImage {
  readonly name: string;
  readonly manifest: Digest;
}

type CallOptions = { namespace: string; signal?: AbortSignal | undefined };

/** Chains and their manifests by what an image's name stands for: digests, so never stale. */
const REMEMBERED_MAX = 1024;

export class PrivateChains {
  readonly #names: ImageNames;
  readonly #manifests: ManifestSource;
  readonly #chains = new Map<Digest, ReadonlyMap<ChainID, Digest>>();

  constructor(options: { names: ImageNames; manifests: ManifestSource }) {
    this.#names = options.names;
    this.#manifests = options.manifests;
  }

  /** An image of that chain that is not the owner's (null: any); null when there is none. Throws when containerd or its content cannot be read, HS_NOT_FOUND without a namespace. */
  async otherImage(
    chain: ChainID,
    owner: Owner | null,
    options: { namespace: string | null; signal?: AbortSignal | undefined },
  ): Promise<OtherImage | null> {
    const { namespace, signal } = options;
    if (namespace === null) throw new HeadstartError("HS_NOT_FOUND", { what: "containerd's namespace is not known" });
    for (const { name, target } of await this.#names.images({ namespace, signal })) {
      // CRI's second name of an image that has a proper one
      if (name.startsWith("sha256:") || isOwners(name, target.digest, owner)) continue;
      const manifest = (await this.#chainsOf(target, { namespace, signal })).get(chain);
      if (manifest !== undefined && !isOwners(name, manifest, owner)) return { name, manifest };
    }
    return null;
  }

  async #chainsOf(target: Descriptor, options: CallOptions): Promise<ReadonlyMap<ChainID, Digest>> {
    const known = this.#chains.get(target.digest);
    if (known !== undefined) return known;
    const found = new Map<ChainID, Digest>();
    const bytes = await this.#manifests.read(target.digest, options);
    if (bytes === null)
      throw new HeadstartError("HS_NOT_FOUND", { what: `${target.digest} in containerd's content store` });
    const entries = isIndexType(target.mediaType) ? parseIndex(bytes, `index ${target.digest}`).manifests : [target];
    for (const entry of entries) {
      const chain = isManifestType(entry.mediaType) ? await this.#chainOf(entry, options) : null;
      if (chain !== null) found.set(chain, entry.digest);
    }
    // what is not here may yet be pulled
    if (found.size > 0) this.#chains.set(target.digest, found);
    if (this.#chains.size > REMEMBERED_MAX) this.#chains.delete(this.#chains.keys().next().value!);
    return found;
  }

  /** Null for what was not pulled (another platform), and for what is no image. */
  async #chainOf(manifest: Descriptor, options: CallOptions): Promise<ChainID | null> {
    const bytes = await this.#manifests.read(manifest.digest, options);
    if (bytes === null) return null;
    const { config } = parseManifest(bytes, `manifest ${manifest.digest}`);
    if (!isConfigType(config.mediaType)) return null;
    const document = await this.#manifests.read(config.digest, options);
    if (document === null) return null;
    return chainIDs(parseConfig(document, `configuration ${config.digest}`).diffIDs).at(-1) ?? null;
  }
}

/** `digest`: of what the name stands for, or of the manifest behind it. */
function isOwners(name: string, digest: Digest, owner: Owner | null): boolean {
  if (owner === null) return false;
  return owner.by === "repository" ? repositoryOf(name) === repositoryOf(owner.reference) : digest === owner.digest;
}

function repositoryOf(name: string): string {
  try {
    const { host, repository } = parseReference(name);
    return `${host}/${repository}`;
  } catch {
    return name;
  }
}
