import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { after, test } from "node:test";
import { load, open, Places, withStreams } from "../../test/suites/converted.ts";
import { fixtureDirectory } from "../../test/suites/golden-soci.ts";
import { openDestination } from "../oci/open.ts";
import { parseSource } from "../oci/reference.ts";
import { Copier } from "./copy.ts";
import { copyPassing } from "./copy-passing.ts";

const places = new Places();
after(() => places[Symbol.dispose]());

async function setUp() {
  const source = await open(`oci:${fixtureDirectory}:tar`);
  const layer = (await load(source)).layers[0]!;
  const destination = await openDestination(parseSource(places.place()));
  return { source, destination, layer };
}

async function hash(chunks: AsyncIterable<Uint8Array>): Promise<string> {
  const sum = createHash("sha256");
  for await (const chunk of chunks) sum.update(chunk);
  return `sha256:${sum.digest("hex")}`;
}

test("the blob is read while it is copied, and from the source alone once it is there", async () => {
  const { source, destination, layer } = await setUp();
  for (let round = 0; round < 2; round++) {
    assert.equal(await copyPassing(new Copier(source, destination), layer, hash), layer.digest);
    assert.ok(await destination.hasBlob(layer));
  }
});

test("of two that read the same blob at once each gets all of it", async () => {
  const { source, destination, layer } = await setUp();
  const copier = new Copier(source, destination);
  const both = [copyPassing(copier, layer, hash), copyPassing(copier, layer, hash)];
  assert.deepEqual(await Promise.all(both), [layer.digest, layer.digest]);
});

test("what its reader refuses is not copied to its end, and the reader's reason is told", async () => {
  const { source, destination, layer } = await setUp();
  let given = 0;
  const endless = {
    ...withStreams(source, () => null),
    openBlob() {
      const blob = source.openBlob(layer);
      const stream = async function* () {
        for (; given < 1000; given++) yield new Uint8Array(1024 * 1024);
      };
      return { ...blob, descriptor: layer, what: "endless", sourceCount: 1, stream, readAll: blob.readAll.bind(blob) };
    },
  };
  const refusing = async (chunks: AsyncIterable<Uint8Array>) => {
    for await (const _ of chunks) throw new Error("no such layer");
  };
  await assert.rejects(
    copyPassing(new Copier(endless, destination), { ...layer, size: 2 ** 30 }, refusing),
    /no such layer/,
  );
  assert.ok(given < 100, `${given} MiB were read`);
  assert.equal(await destination.hasBlob(layer), false);
});

test("a reader gets the whole blob where the upload had to begin anew", async () => {
  const { source, destination, layer } = await setUp();
  let opened = 0;
  const breaking = {
    ...withStreams(source, () => null),
    openBlob() {
      const blob = source.openBlob(layer);
      const stream: typeof blob.stream = (offset, options) => {
        if (++opened > 1) return blob.stream(offset, options);
        return (async function* () {
          yield new Uint8Array(10);
          throw new Error("connection lost");
        })();
      };
      return { ...blob, descriptor: layer, what: "breaking", sourceCount: 1, stream, readAll: blob.readAll.bind(blob) };
    },
  };
  // as a registry does it: once more from the start
  const again = Object.assign(Object.create(null) as typeof destination, {
    what: destination.what,
    hasBlob: () => Promise.resolve(false),
    async pushBlob(...args: Parameters<typeof destination.pushBlob>) {
      await assert.rejects(destination.pushBlob(...args), /connection lost/);
      await destination.pushBlob(...args);
    },
  });
  assert.equal(await copyPassing(new Copier(breaking, again), layer, hash), layer.digest);
  assert.equal(opened, 3);
});
