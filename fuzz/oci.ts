/** Fuzzers of oci/ and of what containerd sends: documents, headers and texts of other people are values or typed errors. */

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { parseConfig, parseIndex, parseManifest, sniffManifestType } from "../src/oci/manifest.ts";
import { parsePlatform } from "../src/oci/platform.ts";
import { formatSource, parseSource } from "../src/oci/reference.ts";
import { parseChallenges } from "../src/oci/registry/auth/challenge.ts";
import { parseContentRange } from "../src/oci/registry/content-range.ts";
import { parseFaults } from "../src/oci/registry/errcode.ts";
import { parseNextLink } from "../src/oci/registry/link.ts";
import { parseFilters } from "../src/snapshotter/filters.ts";
import { type Fuzzer, mutate, type Random, tolerated } from "./fuzzer.ts";

const layout = join(dirname(import.meta.dirname), "test/golden/fixture/oci");

interface Described {
  readonly mediaType: string;
  readonly digest: string;
  readonly config?: Described;
  readonly manifests?: readonly Described[];
}

const blob = (digest: string) => readFileSync(join(layout, "blobs", digest.replace(":", "/")));

/** Index, manifests and configurations of the fixture. */
let documents: readonly Uint8Array[] | null = null;

function someDocument(random: Random): Uint8Array {
  if (documents === null) {
    const index = readFileSync(join(layout, "index.json"));
    const { manifests = [] } = JSON.parse(index.toString()) as Described;
    const found: Uint8Array[] = [index];
    for (const { digest } of manifests) {
      const bytes = blob(digest);
      found.push(bytes);
      const { config } = JSON.parse(bytes.toString()) as Described;
      if (config !== undefined) found.push(blob(config.digest));
    }
    documents = found;
  }
  return random.pick(documents);
}

/** Text with a few characters of another one, or odd ones. */
function garble(text: string, random: Random): string {
  const bytes = mutate(Buffer.from(text), random);
  return Buffer.from(bytes).toString(random.below(2) === 0 ? "latin1" : "utf8");
}

const TEXTS = [
  'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push"',
  'Basic realm="x", Bearer realm="y",error="insufficient_scope"',
  "bytes 0-1023/146515",
  '</v2/a/b/referrers/sha256:0?n=2&last=b>; rel="next"',
  '{"errors":[{"code":"DENIED","message":"no","detail":{"a":[1]}}]}',
  'kind==committed,labels."containerd.io/snapshot.ref"~=^sha256',
  "docker://registry.example:5000/a/b:tag@sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b",
  "oci-archive:/tmp/a:b",
  "linux/arm64/v8",
] as const;

export const OCI_FUZZERS: { readonly [name: string]: Fuzzer } = {
  "oci.documents": {
    round(random) {
      const bytes = mutate(someDocument(random), random);
      for (const parse of [parseManifest, parseIndex, parseConfig, sniffManifestType])
        tolerated(() => parse(bytes, "fuzz"));
    },
  },
  "oci.texts": {
    round(random) {
      const text = garble(random.pick(TEXTS), random);
      tolerated(() => parseChallenges(text));
      tolerated(() => parseContentRange(text));
      tolerated(() => parseNextLink(text));
      tolerated(() => parseFaults(text));
      tolerated(() => parsePlatform(text));
      const source = tolerated(() => parseSource(text));
      // what is printed of it is read as the same
      if (source !== null && formatSource(parseSource(formatSource(source))) !== formatSource(source))
        throw new Error(`${text}: read as ${formatSource(source)}, and that as another`);
      tolerated(() => parseFilters([text]));
    },
  },
};
