/** Conversions to Nydus and back through the command line, registry to registry, with what other tools think of the results. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, before, test } from "node:test";
import { Copier } from "../../src/convert/copy.ts";
import { compareTreeLines, type TreeLine } from "../../src/erofs/tree-lines.ts";
import { openDestination, openSource } from "../../src/oci/open.ts";
import { parseSource } from "../../src/oci/reference.ts";
import { Registry } from "../../src/sandbox/registry.ts";
import { buildImage } from "../build-image.ts";
import { FakeRegistry } from "../fakes/registry.ts";
import { headstart } from "./place.ts";

const GOLDEN = join(dirname(import.meta.dirname), "golden/fixture");
const work = mkdtempSync(join(tmpdir(), "headstart-nydus-"));
let registry: Registry;
const expected = readFileSync(join(GOLDEN, "tree/merged.jsonl"), "utf8")
  .trim()
  .split("\n")
  .map((line) => JSON.parse(line) as TreeLine);

interface Converted {
  readonly digest: string;
  readonly images: readonly {
    readonly before: string;
    readonly manifest: string;
    readonly how?: string;
    readonly layers: readonly { readonly layer: string; readonly blobSize: number; readonly diffID?: string }[];
    readonly dictionary?: readonly string[];
  }[];
}

before(async () => {
  registry = await Registry.start(join(work, "registry"));
  for (const name of ["gogz", "zstd", "multigz", "index"]) {
    await using source = await openSource(parseSource(`oci:${GOLDEN}/oci:${name}`));
    await using destination = await openDestination(parseSource(ref("src", name)));
    await new Copier(source, destination).tree(await source.resolve(), name);
  }
});
after(async () => {
  await registry[Symbol.asyncDispose]();
  rmSync(work, { recursive: true });
});

const ref = (repository: string, tag: string) => `docker://${registry.host}/${repository}:${tag}`;

async function convert(from: string, to: string, ...options: readonly string[]): Promise<Converted> {
  const { stdout } = await headstart(["convert", from, to, "--platform", "linux/amd64", "--json", ...options]);
  return JSON.parse(stdout) as Converted;
}

async function assertTree(place: string): Promise<void> {
  const { stdout } = await headstart(["image", "tree", place, "--platform", "linux/amd64", "--json"]);
  const lines = stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as TreeLine);
  assert.deepEqual(compareTreeLines(expected, lines), []);
}

function skopeo(...args: readonly string[]): string {
  return execFileSync("skopeo", args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
}

for (const [tag, options] of [
  ["native", ["--to", "nydus"]],
  ["ref", ["--to", "nydus-ref"]],
] as const) {
  test(`an image in a registry becomes a Nydus image there, the same each time, and back (${tag})`, async () => {
    const from = ref("src", "multigz");
    const made = await convert(from, ref("app", tag), ...options);
    assert.equal((await convert(from, ref("other", tag), ...options)).digest, made.digest);
    await assertTree(ref("app", tag));
    // mounted too, against the OCI image: that of a ref is its subject
    const against = tag === "ref" ? [] : ["--against", from];
    const { stdout } = await headstart(["check", ref("app", tag), "--json", ...against]);
    const { equal, nydus, bytes } = JSON.parse(stdout) as {
      equal: boolean;
      nydus: { checked: string[]; findings: unknown[] };
      bytes: number;
    };
    assert.deepEqual([equal, nydus.findings], [true, []]);
    assert.deepEqual(nydus.checked, ["manifest", "config", "bootstrap", "data", "tree"]);
    assert.ok(bytes > 4_000_000);
    const back = await convert(ref("app", tag), ref("back", tag), "--to", "oci");
    await using source = await openSource(parseSource(from));
    const before = await source.resolve();
    if (tag === "ref") assert.deepEqual([back.images[0]!.how, back.digest], ["original", before.digest]);
    else {
      assert.equal(back.images[0]!.how, "exact");
      const { rootfs } = JSON.parse(skopeo("inspect", "--tls-verify=false", "--config", from)) as {
        rootfs: { diff_ids: string[] };
      };
      assert.deepEqual(
        back.images[0]!.layers.map(({ diffID }) => diffID),
        rootfs.diff_ids,
      );
    }
    await assertTree(ref("back", tag));
  });
}

test("a merged index serves OCI tools as before, and other tools read and copy what we write", {
  skip: existsSync("/usr/bin/skopeo") ? false : "no skopeo",
}, async () => {
  const to = ref("merged", "1");
  const made = await convert(ref("src", "index"), to, "--to", "nydus", "--merge-index");
  const index = JSON.parse(skopeo("inspect", "--tls-verify=false", "--raw", to)) as {
    manifests: { digest: string; artifactType?: string }[];
  };
  assert.equal(index.manifests.at(-1)!.digest, made.images[0]!.manifest);
  // what skopeo chooses for a platform is the OCI image as it was
  const args = ["--tls-verify=false", "--override-os=linux", "--override-arch=amd64"];
  assert.equal(
    skopeo("inspect", ...args.slice(0, 1), ...["--config", to]),
    skopeo("inspect", ...args.slice(0, 1), ...["--config", ref("src", "index")]),
  );
  await assertTree(to);
  for (const tag of ["native", "ref"])
    skopeo(
      "copy",
      "--insecure-policy",
      "-q",
      "--src-tls-verify=false",
      ref("app", tag),
      `dir:${join(work, `dir-${tag}`)}`,
    );
  skopeo("copy", "--insecure-policy", "-q", "--all", "--src-tls-verify=false", to, `dir:${join(work, "dir-all")}`);
  const back = await convert(to, ref("merged", "oci"), "--to", "oci");
  assert.deepEqual([back.images[0]!.how, back.digest], ["original", made.images[0]!.before]);
});

test("a chunk dictionary makes an image that shares data smaller, by reference and by bootstrap", async () => {
  const from = ref("src", "gogz");
  const options = ["--to", "nydus", "--compressor", "none"];
  const plain = await convert(from, ref("dict", "base"), ...options);
  const again = await convert(from, ref("dict", "again"), ...options, "--chunk-dict", ref("dict", "base"));
  const size = ({ images }: Converted) => images[0]!.layers.reduce((sum, { blobSize }) => sum + blobSize, 0);
  assert.ok(size(again) < size(plain) / 10, `${size(again)} of ${size(plain)} bytes`);
  assert.ok(again.images[0]!.dictionary!.length > 0);
  await assertTree(ref("dict", "again"));
  const back = await convert(ref("dict", "again"), ref("dict", "back"), "--to", "oci");
  assert.equal(back.images[0]!.how, "exact");
});

test("what cannot be is refused in two lines: zstd layers as a ref, a Nydus image again", async () => {
  const zstd = await headstart(["convert", ref("src", "zstd"), ref("bad", "1"), "--to", "nydus-ref"], { accept: [3] });
  assert.match(zstd.stderr, /HS_FORMAT_UNSUPPORTED.*sha256:[0-9a-f]{64}/);
  const twice = await headstart(["convert", ref("app", "native"), ref("bad", "1"), "--to", "nydus"], { accept: [2] });
  assert.match(twice.stderr, /a Nydus image already/);
  await using reader = await openSource(parseSource(ref("bad", "1")));
  await assert.rejects(reader.resolve(), /HS_NOT_FOUND/);
});

test("a registry that fails in the middle leaves no tag", async () => {
  const layout = join(work, "layout");
  // more than one piece of a chunked upload
  const data = Buffer.concat(
    Array.from({ length: 20 * 32 }, (_, index) =>
      createHash("shake256", { outputLength: 32_768 }).update(String(index)).digest(),
    ),
  );
  await buildImage(layout, "large", [[{ path: "large", data }]]);
  const from = `oci:${layout}:large`;
  const whole = await FakeRegistry.start();
  try {
    const to = `docker://${whole.host}/app:1`;
    await headstart(["convert", from, to, "--to", "nydus"]);
    assert.ok(whole.stored("app").tags.has("1"));
    assert.ok(whole.log.some(({ method }) => method === "PATCH"));
    const before = whole.log.length;
    await headstart(["convert", from, to, "--to", "nydus-ref"]);
    // the layer goes there once, under its own digest
    await headstart(["convert", from, to, "--to", "nydus-ref"]);
    const puts = whole.log.slice(before).filter(({ method, path }) => method === "PUT" && path.includes("/blobs/"));
    assert.equal(new Set(puts.map(({ query }) => /sha256%3A[0-9a-f]+/.exec(query)![0])).size, puts.length);
  } finally {
    await whole[Symbol.asyncDispose]();
  }
  for (const [match, status] of [
    [/^PATCH /, 403],
    [/^PUT .*\/blobs\/uploads\//, 403],
    [/^PUT .*\/manifests\//, 400],
  ] as const) {
    await using fake = await FakeRegistry.start();
    fake.inject({ match, times: 1000, fault: { kind: "status", status } });
    const to = `docker://${fake.host}/app:1`;
    const { stderr } = await headstart(["convert", from, to, "--to", "nydus"], { accept: [3] });
    assert.match(stderr, /HS_REGISTRY_/);
    assert.equal(fake.stored("app").tags.size, 0);
  }
});
