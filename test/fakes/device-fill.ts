/** A process that makes an image over a part of a golden Nydus image and completes it, then one over the whole, until a failpoint kills it. Arguments: root, boot id. */

import { LayerStore } from "../../src/layer/store.ts";
import { filesOf, GoldenFetcher, imageKey, mergedGolden, partOf } from "../suites/nydus-merged.ts";

const [root, bootId] = process.argv.slice(2) as [string, string];
const store = await LayerStore.open(root, { fetcher: new GoldenFetcher(), bootId });
const whole = mergedGolden("v6-zstd-1m-batch");
const inodes = filesOf(whole.tree).map(({ inode }) => inode);
for (const [name, merged] of [
  ["part", partOf(whole, inodes.slice(0, 200))],
  ["whole", whole],
] as const) {
  const image = await store.createImage({ key: imageKey(name), merged, source: {}, dataSource: () => ({}) });
  image.startBackground();
  await image.whenComplete();
  await Promise.all(image.devices.map(({ layer }) => layer.whenIdle()));
}
