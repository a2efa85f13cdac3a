/** A layout with an image index as BuildKit makes it: the images of another layout and an attestation of the first. */

import { mkdirSync } from "node:fs";
import { type Digest, sha256 } from "../../src/base/digest.ts";
import { Copier } from "../../src/convert/copy.ts";
import { LayoutWriter } from "../../src/oci/layout.ts";
import { parseIndex } from "../../src/oci/manifest.ts";
import { MEDIA_TYPES } from "../../src/oci/media-types.ts";
import { openSource } from "../../src/oci/open.ts";

/** Copies the index `digest` of `from` to `to`, with an attestation of its first image; the attestation's digest. */
export async function writeAttested(from: string, digest: Digest, to: string): Promise<Digest> {
  mkdirSync(to, { recursive: true });
  await using source = await openSource({ kind: "layout", directory: from, digest });
  const destination = new LayoutWriter(to, undefined, to);
  const copier = new Copier(source, destination);
  const index = parseIndex(await source.readManifest(digest), "index");
  for (const entry of index.manifests) await copier.child(entry);
  const config = Buffer.from(
    '{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":[]}}',
  );
  const statement = Buffer.from('{"_type":"https://in-toto.io/Statement/v0.1"}');
  const describe = (bytes: Uint8Array, mediaType: string) => ({
    mediaType,
    digest: sha256(bytes),
    size: bytes.byteLength,
  });
  const layer = describe(statement, "application/vnd.in-toto+json");
  await copier.bytes(describe(config, MEDIA_TYPES.ociConfig), config);
  await copier.bytes(layer, statement);
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociManifest,
      config: describe(config, MEDIA_TYPES.ociConfig),
      layers: [layer],
    }),
  );
  const attestation = await copier.manifest(manifest, MEDIA_TYPES.ociManifest);
  const document = {
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociIndex,
    manifests: [
      ...index.manifests,
      {
        ...attestation,
        annotations: {
          "vnd.docker.reference.digest": index.manifests[0]!.digest,
          "vnd.docker.reference.type": "attestation-manifest",
        },
        platform: { architecture: "unknown", os: "unknown" },
      },
    ],
  };
  await copier.manifest(Buffer.from(JSON.stringify(document)), MEDIA_TYPES.ociIndex);
  await destination.finish();
  return attestation.digest;
}
