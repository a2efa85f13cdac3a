import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { fixtureDirectory, goldenPath } from "../../test/suites/golden-soci.ts";
import type { Digest } from "../base/digest.ts";
import { ZtocBuilders } from "../formats/soci/build.ts";
import { SOCI_BUILD_TOOL } from "../formats/soci/ondisk.ts";
import { openDestination, openSource } from "../oci/open.ts";
import { parsePlatform } from "../oci/platform.ts";
import { parseSource } from "../oci/reference.ts";
import { type ConvertedToSoci, type ConvertToSociOptions, convertToSoci } from "./to-soci.ts";

const root = mkdtempSync(join(tmpdir(), "convert-soci-"));
after(() => rmSync(root, { recursive: true, force: true }));
const builders = new ZtocBuilders(2);
after(() => builders[Symbol.asyncDispose]());
let folders = 0;

async function convert(from: string, options: Partial<ConvertToSociOptions> = {}, kind = "oci") {
  const directory = join(root, String(folders++));
  await using source = await openSource(parseSource(from));
  await using destination = await openDestination(parseSource(`${kind}:${directory}:out`));
  const result = await convertToSoci({
    source,
    destination,
    tag: destination.tag,
    builders,
    minLayerSize: 0,
    buildToolIdentifier: SOCI_BUILD_TOOL,
    platforms: [parsePlatform("linux/amd64")],
    ...options,
  });
  return {
    directory,
    result,
    blob: (digest: Digest) => readFileSync(join(directory, "blobs/sha256", digest.slice(7)), "utf8"),
  };
}

function fixture(variant: string): string {
  return `oci:${fixtureDirectory}:${variant}`;
}

function compare(
  made: { result: ConvertedToSoci; blob: (digest: Digest) => string },
  folder: string,
  platform = "amd64",
): void {
  const image = made.result.images[0]!;
  const golden = (name: string) => readFileSync(join(folder, name), "utf8");
  assert.equal(made.blob(image.index!), golden(`soci-index-v2.${platform}.json`), folder);
  assert.equal(made.blob(image.manifest), golden(`image-manifest.${platform}.json`), folder);
  assert.equal(made.blob(made.result.root.digest), golden("oci-index.json"), folder);
}

test("converted images of all variants and span sizes are the real tool's, byte for byte", async () => {
  for (const variant of ["tar", "gogz", "pigz", "multigz", "fnamegz", "dotgz", "dockergz"]) {
    for (const spanSize of [65_536, 262_144, 4_194_304]) {
      compare(await convert(fixture(variant), { spanSize }), goldenPath(variant, `span-${spanSize}`));
    }
  }
});

test("odd layers, options and a choice of platforms give the real tool's results", async () => {
  for (const variant of ["odd-dup-link", "odd-gnu", "odd-names", "odd-no-end", "odd-trailing"]) {
    compare(await convert(fixture(variant), { spanSize: 262_144 }), goldenPath("options", variant));
  }
  const cases: [string, string, Partial<ConvertToSociOptions>][] = [
    [
      "prefetch",
      "gogz",
      { spanSize: 65_536, prefetchFiles: ["/data/text-1m-plus-1", "etc/keep", "/data/many-spans", "/no/such/file"] },
    ],
    ["prefetch-dot-names", "dotgz", { spanSize: 65_536, prefetchFiles: ["/data/text-1m-plus-1", "./etc/keep"] }],
    ["xattr", "gogz", { spanSize: 262_144, optimizations: ["xattr"] }],
    ["min-layer-size-sparse", "gogz", { spanSize: 262_144, minLayerSize: 20_000 }],
    ["span-size-0", "gogz", { spanSize: 0 }],
  ];
  for (const [name, variant, options] of cases)
    compare(await convert(fixture(variant), options), goldenPath("options", name));
  const arm = await convert(fixture("index"), { spanSize: 262_144, platforms: [parsePlatform("linux/arm64")] });
  compare(arm, goldenPath("options/host-platform-only"), "arm64");
});

test("all platforms of an index give the real tool's layout, and converting that again changes nothing and reads no layer", async () => {
  const made = await convert(fixture("index"), { spanSize: 262_144, platforms: "all" });
  const layout = goldenPath("two-platform-layout");
  const index = JSON.parse(readFileSync(join(layout, "index.json"), "utf8"));
  assert.equal(made.result.root.digest, index.manifests[0].digest);
  for (const digest of readdirSync(join(made.directory, "blobs/sha256"))) {
    assert.ok(
      readFileSync(join(made.directory, "blobs/sha256", digest)).equals(
        readFileSync(join(layout, "blobs/sha256", digest)),
      ),
    );
  }
  const again = await convert(`oci:${made.directory}:out`, { spanSize: 262_144, platforms: "all" });
  assert.equal(again.result.root.digest, made.result.root.digest);
  assert.ok(again.result.images.every((image) => image.layers.every((layer) => layer.ztoc?.reused)));
  const forced = await convert(`oci:${made.directory}:out`, { spanSize: 262_144, platforms: "all", force: true });
  assert.equal(forced.result.root.digest, made.result.root.digest);
  assert.ok(forced.result.images.every((image) => image.layers.every((layer) => !layer.ztoc?.reused)));
  const other = await convert(`oci:${made.directory}:out`, { spanSize: 65_536, platforms: "all" });
  assert.notEqual(other.result.root.digest, made.result.root.digest);
  assert.equal(JSON.parse(other.blob(other.result.root.digest)).manifests.length, 4);
});

test("a single image becomes an index with its own platform; the result has its name and all its blobs", async () => {
  const { directory, result } = await convert(fixture("gogz"), { platforms: undefined });
  await using reader = await openSource(parseSource(`oci:${directory}:out`));
  assert.deepEqual((await reader.resolve()).digest, result.root.digest);
  const again = await convert(`oci:${directory}:out`, {}, "oci-archive");
  assert.equal(again.result.root.digest, result.root.digest);
  await using archive = await openSource(parseSource(`oci-archive:${again.directory}:out`));
  assert.equal((await archive.resolve()).digest, result.root.digest);
});

test("attestations are kept and name the new manifest; other images and indexes are carried along", async () => {
  const first = await convert(fixture("index"), { platforms: "all" });
  const { writeAttested } = await import("../../test/suites/attested-layout.ts");
  const attested = await writeAttested(first.directory, first.result.root.digest, join(root, "attested"));
  const made = await convert(`oci:${join(root, "attested")}`, {
    platforms: [parsePlatform("linux/amd64")],
    spanSize: 65_536,
  });
  const { manifests } = JSON.parse(made.blob(made.result.root.digest)) as {
    manifests: { digest: Digest; annotations?: Record<string, string>; artifactType?: string }[];
  };
  const attestation = manifests.find(
    (entry) => entry.annotations?.["vnd.docker.reference.type"] === "attestation-manifest",
  )!;
  assert.equal(attestation.digest, attested);
  assert.equal(attestation.annotations!["vnd.docker.reference.digest"], made.result.images[0]!.manifest);
  assert.equal(manifests.filter((entry) => entry.artifactType !== undefined).length, 2);
  for (const entry of manifests) assert.ok(made.blob(entry.digest).length > 0);
});

test("nothing to index is an error that says why, and leaves nothing named", async () => {
  await assert.rejects(
    convert(fixture("zstd"), { spanSize: 262_144 }),
    (error: Error & { details: { reasons: string[] } }) => {
      assert.match(
        error.message,
        /HS_NOTHING_TO_INDEX.*no ztocs created, all layers either skipped or produced errors/,
      );
      assert.match(error.details.reasons[0]!, /zstd/);
      return true;
    },
  );
  assert.ok(!existsSync(join(root, String(folders - 1), "index.json")));
  for (const variant of ["odd-pax-global", "odd-contiguous"])
    await assert.rejects(convert(fixture(variant)), { code: "HS_NOTHING_TO_INDEX" });
  await assert.rejects(convert(fixture("gogz"), { minLayerSize: 10_485_760 }), { code: "HS_NOTHING_TO_INDEX" });
  await assert.rejects(convert(fixture("index"), { platforms: [parsePlatform("linux/s390x")] }), {
    code: "HS_PLATFORM",
  });
  await assert.rejects(convert(fixture("gogz"), { platforms: [parsePlatform("linux/s390x")] }), {
    code: "HS_PLATFORM",
  });
  for (const wrong of [{ spanSize: -1 }, { minLayerSize: -1 }, { spanSize: 0.5 }])
    await assert.rejects(convert(fixture("gogz"), wrong), { code: "HS_USAGE" });
});
