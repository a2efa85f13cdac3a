/** Every case, one line a file. */

import type { BenchCase } from "./case.ts";
import { EAGER_CASES } from "./e2e/eager.ts";
import { EBS_CASES } from "./e2e/ebs.ts";
import { MEMORY_CASES } from "./e2e/memory.ts";
import { NYDUS_START_CASES } from "./e2e/nydus-start.ts";
import { START_CASES } from "./e2e/start.ts";
import { VOLUME_CASES } from "./e2e/volume.ts";
import { EROFS_CASES } from "./micro/erofs-write.ts";
import { EXT4_CASES } from "./micro/ext4-write.ts";
import { FAULT_CASES } from "./micro/fault.ts";
import { INDEX_CASES } from "./micro/index-build.ts";
import { NYDUS_CASES } from "./micro/nydus-convert.ts";

export const CASES: readonly BenchCase[] = [
  ...EROFS_CASES,
  ...EXT4_CASES,
  ...INDEX_CASES,
  ...NYDUS_CASES,
  ...FAULT_CASES,
  ...START_CASES,
  ...NYDUS_START_CASES,
  ...EAGER_CASES,
  ...MEMORY_CASES,
  ...EBS_CASES,
  ...VOLUME_CASES,
];
