/** Every case, one line a file. */

import type { BenchCase } from "./case.ts";
import { EAGER_CASES } from "./e2e/eager.ts";
import { MEMORY_CASES } from "./e2e/memory.ts";
import { START_CASES } from "./e2e/start.ts";
import { EROFS_CASES } from "./micro/erofs-write.ts";
import { EXT4_CASES } from "./micro/ext4-write.ts";
import { FAULT_CASES } from "./micro/fault.ts";
import { INDEX_CASES } from "./micro/index-build.ts";

export const CASES: readonly BenchCase[] = [
  ...EROFS_CASES,
  ...EXT4_CASES,
  ...INDEX_CASES,
  ...FAULT_CASES,
  ...START_CASES,
  ...EAGER_CASES,
  ...MEMORY_CASES,
];
