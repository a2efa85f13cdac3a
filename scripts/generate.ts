/** Generates src/gen from proto/ with buf and protoc-gen-es. Maintainers only: the result is committed. */

import { spawnSync } from "node:child_process";
import { dirname, join } from "node:path";

const root = dirname(import.meta.dirname);
const bin = join(root, "node_modules/.bin");
const result = spawnSync(join(bin, "buf"), ["generate"], {
  cwd: root,
  stdio: "inherit",
  env: { ...process.env, PATH: `${bin}:${dirname(process.execPath)}:${process.env.PATH}` },
});
process.exitCode = result.status ?? 1;
