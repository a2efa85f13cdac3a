/** Every fuzzer, one line a module. */

import { EROFS_FUZZERS } from "./erofs.ts";
import type { Fuzzer } from "./fuzzer.ts";
import { NYDUS_FUZZERS } from "./nydus.ts";
import { NYDUS_WRITE_FUZZERS } from "./nydus-write.ts";
import { OCI_FUZZERS } from "./oci.ts";
import { SOCI_FUZZERS } from "./soci.ts";
import { TAR_FUZZERS } from "./tar.ts";
import { VOLUME_FUZZERS } from "./volume.ts";
import { VOLUME_VERIFY_FUZZERS } from "./volume-verify.ts";

/** Proves that a failure is seen: fails within a few rounds. */
const CANARY: Fuzzer = {
  round(random) {
    if (random.below(5) === 0) throw new Error("the canary fails, as it should");
  },
};

export const FUZZERS: { readonly [name: string]: Fuzzer } = {
  ...SOCI_FUZZERS,
  ...NYDUS_FUZZERS,
  ...NYDUS_WRITE_FUZZERS,
  ...TAR_FUZZERS,
  ...EROFS_FUZZERS,
  ...OCI_FUZZERS,
  ...VOLUME_FUZZERS,
  ...VOLUME_VERIFY_FUZZERS,
  canary: CANARY,
};
