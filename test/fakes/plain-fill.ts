/** A process that makes a plain layer, lazily or eagerly, until a failpoint kills it. Arguments: root, boot id, "lazy" or "eager". */

import { setTimeout } from "node:timers/promises";
import { Decoders } from "../../src/layer/decoders.ts";
import { LayerStore } from "../../src/layer/store.ts";
import { MemoryFetcher, makePlainLayer, noise } from "./plain-layer.ts";

const [root, bootId, how] = process.argv.slice(2) as [string, string, string];
const sizes = [0, 1, 511, 512, 4095, 4096, 4097, 300_000, 65_536, 70_000, 17, 4096, 1_000_000, 3, 8192];
const plain = makePlainLayer(
  sizes.map((size, index) => ({ name: `file-${String(index).padStart(2, "0")}`, data: noise(size, index + 1) })),
);
const store = await LayerStore.open(root, {
  fetcher: new MemoryFetcher(plain.blob),
  decoders: new Decoders({ threads: 1, entry: new URL("./plain-decode.worker.ts", import.meta.url) }),
  bootId,
  openLazy: () => plain.lazy,
});
if (how === "eager") {
  const identity = { ...plain.identity, mediaType: "application/vnd.oci.image.layer.v1.tar" };
  const blob = {
    digest: identity.digest,
    size: identity.size,
    async *stream(offset: number) {
      yield plain.blob.subarray(offset);
    },
  };
  const { layer, done } = await store.createEager({ identity, role: "lowest", blob, source: {} });
  await done;
  while (layer.state.t !== "sealed") await setTimeout(5);
} else {
  const layer = await store.createLazy({
    identity: plain.identity,
    role: "lowest",
    format: "plain",
    lazy: plain.lazy,
    indexBytes: plain.indexBytes,
    source: {},
  });
  layer.startBackground();
  await layer.whenComplete();
}
