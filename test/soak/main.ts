/**
 * `npm run soak`: lists the suites that take too long, or too much, for `npm test`. `npm run soak -- NAME [ARG...]` runs one. Each prints what it did, and its figures; exits with 1 when it
 * failed, 2 for a name that there is not.
 */

import { ebsPush } from "./ebs-push.ts";
import { growth } from "./growth.ts";
import { oddVolumes } from "./odd-volumes.ts";
import { volumeHarm } from "./volume-harm.ts";

type Suite = (args: readonly string[]) => Promise<void>;

const SUITES: Readonly<Record<string, { readonly what: string; readonly run: Suite }>> = {
  "ebs-push": { what: "pushes killed at random while EBS misbehaves: [ROUNDS] [FIRST SEED]", run: ebsPush },
  "volume-growth": { what: "built disks grow online under Debian's kernel 6.1 in QEMU (without KVM)", run: growth },
  "volume-odd-layers": { what: "volumes of random odd layers are right: [IMAGES] [FIRST SEED]", run: oddVolumes },
  "volume-harm": { what: "thousands of seeded harms to a disk: [CASES A CLASS] [FIRST SEED]", run: volumeHarm },
};

async function main([name, ...args]: readonly string[]): Promise<number> {
  if (name === undefined) {
    for (const [known, { what }] of Object.entries(SUITES)) console.log(`${known}: ${what}`);
    return 0;
  }
  const suite = SUITES[name];
  if (suite === undefined) {
    console.error(`usage: npm run soak -- NAME [ARG...]; names: ${Object.keys(SUITES).join(", ")}`);
    return 2;
  }
  const start = performance.now();
  await suite.run(args);
  console.log(`${name}: ${((performance.now() - start) / 1000).toFixed(0)} s`);
  return 0;
}

process.exitCode = await main(process.argv.slice(2));
