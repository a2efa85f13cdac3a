/**
 * Which of the manifests pushed to a layout get an entry in index.json: those with a tag, and those that nothing else names (the
 * root of an untagged push, referrers). Children of a pushed index are reached through it.
 */

import { type Digest, sha256 } from "../base/digest.ts";
import { type Descriptor, isImageEntry } from "./descriptor.ts";
import { defined } from "./json.ts";
import { artifactTypeOf } from "./local.ts";
import { parseIndex, parseManifest } from "./manifest.ts";
import { isIndexType } from "./media-types.ts";

const REF_NAME = "org.opencontainers.image.ref.name";

export class ManifestLedger {
  readonly #entries = new Map<Digest, { descriptor: Descriptor; tags: Set<string> }>();
  readonly #children = new Set<Digest>();

  /** Throws HS_MANIFEST when the bytes are not what the media type says. */
  add(bytes: Uint8Array, mediaType: string, tag: string | undefined): Descriptor {
    const digest = sha256(bytes);
    let artifactType: string | undefined;
    if (isIndexType(mediaType)) {
      const index = parseIndex(bytes, `index ${digest}`);
      for (const child of index.manifests) this.#children.add(child.digest);
      artifactType = index.artifactType;
    } else {
      artifactType = artifactTypeOf(parseManifest(bytes, `manifest ${digest}`));
    }
    const descriptor = { mediaType, digest, size: bytes.byteLength };
    const entry = this.#entries.get(digest) ?? {
      descriptor: defined<Descriptor>({ ...descriptor, artifactType }),
      tags: new Set<string>(),
    };
    if (tag !== undefined) entry.tags.add(tag);
    this.#entries.set(digest, entry);
    return descriptor;
  }

  /** `before` with our entries in place of those that they replace. Images first, so that no reader takes an artifact for one. */
  merge(before: readonly Descriptor[]): Descriptor[] {
    const added: Descriptor[] = [];
    for (const { descriptor, tags } of this.#entries.values()) {
      for (const tag of tags) added.push({ ...descriptor, annotations: { [REF_NAME]: tag } });
      if (tags.size === 0 && !this.#children.has(descriptor.digest)) added.push(descriptor);
    }
    const names = new Set(added.map((entry) => entry.annotations?.[REF_NAME]));
    const digests = new Set(added.map((entry) => entry.digest));
    const kept = before.filter((entry) => {
      const name = entry.annotations?.[REF_NAME];
      return name === undefined ? !digests.has(entry.digest) : !names.has(name);
    });
    const all = [...kept, ...added];
    return [...all.filter(isImageEntry), ...all.filter((entry) => !isImageEntry(entry))];
  }
}
