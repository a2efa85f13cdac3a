/** Fuzzers of erofs/: images with something wrong in them are read or refused, soon; what `checkErofs` accepts can be read whole. */

import { checkErofs } from "../src/erofs/check.ts";
import { openErofs } from "../src/erofs/read.ts";
import { bytesSource } from "../src/erofs/source.ts";
import { layoutDevices, layoutLazy } from "../src/erofs/write.ts";
import { deviceTree } from "../test/tools/device-tree.ts";
import { imageBytes, mendChecksum, UUID } from "../test/tools/erofs-bytes.ts";
import { randomTree } from "../test/tools/random-tree.ts";
import { type Fuzzer, mutate, tolerated } from "./fuzzer.ts";

export const EROFS_FUZZERS: { readonly [name: string]: Fuzzer } = {
  "erofs.read": {
    round(random) {
      const tree = randomTree(random.below(2 ** 31), { entries: 1 + random.below(60) });
      const image = mutate(imageBytes(layoutLazy(tree, { uuid: UUID })), random);
      // half of them with a superblock checksum that fits: the rest shall be reached
      if (random.below(2) === 0 && image.byteLength >= 4096) mendChecksum(image);
      const sound = tolerated(() => {
        const reader = openErofs(bytesSource(image));
        checkErofs(reader);
        return reader;
      });
      tolerated(() => openErofs(bytesSource(image)).toFileTree());
      if (sound !== null) sound.toFileTree();
    },
  },
  "erofs.devices": {
    round(random) {
      const { tree, devices } = deviceTree(random.below(2 ** 31), { entries: 1 + random.below(60) });
      const image = mutate(imageBytes(layoutDevices(tree, devices, { uuid: UUID })), random);
      if (random.below(2) === 0 && image.byteLength >= 4096) mendChecksum(image);
      tolerated(() => {
        const reader = openErofs(bytesSource(image));
        checkErofs(reader);
        reader.toFileTree();
      });
    },
  },
};
