/** Runs one case and sends its figures to bench/main.ts, or prints them when it is started by hand (under a profiler, say): `node bench/run-case.ts NAME`. */

import { CASES } from "./all.ts";
import type { Figure } from "./case.ts";

const wanted = CASES.find((each) => each.name === process.argv[2]);
if (wanted === undefined)
  throw new Error(`no case ${process.argv[2]}; there are: ${CASES.map((each) => each.name).join(", ")}`);
await wanted.run((name, value, unit) => {
  const figure: Figure = { name, value, unit };
  if (process.send) process.send(figure);
  else process.stdout.write(`${JSON.stringify(figure)}\n`);
});
process.disconnect?.();
