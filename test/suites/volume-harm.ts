/** 200 seeded corruptions of a volume, 25 a class, half of them repaired so that e2fsck finds nothing: what `volume verify` has to notice, by itself and each time. */

import { readFileSync, writeFileSync } from "node:fs";
import { verifyVolume } from "../../src/volume/verify/verify.ts";
import { fsckExt4 } from "../tools/ext4-image.ts";
import { Ext4Patcher } from "../tools/ext4-patcher.ts";
import { HARM_CLASSES, type HarmClass, harm } from "../tools/volume-harm.ts";

export const CASES_PER_CLASS = 25;

export interface HarmCase {
  readonly kind: HarmClass;
  readonly repaired: boolean;
  readonly seed: number;
}

export function harmCases(perClass = CASES_PER_CLASS, from = 1): HarmCase[] {
  return HARM_CLASSES.flatMap((kind, index) =>
    Array.from({ length: perClass }, (_, each) => ({
      kind,
      repaired: each % 2 === 0,
      seed: from + index * 1000 + each,
    })),
  );
}

export interface HarmOutcome extends HarmCase {
  readonly done: string;
  readonly found: boolean;
  /** The first difference. */
  readonly first: string;
}

/** Takes the digests out of PATH.json: they would find everything at once. What is left says which images, names and numbers there should be. */
export function dropDigests(volume: string): void {
  const { predicate } = JSON.parse(readFileSync(`${volume}.json`, "utf8")) as {
    predicate: { headstart_volume: Record<string, unknown> };
  };
  const { blocks: _blocks, ...manifest } = predicate.headstart_volume;
  writeFileSync(`${volume}.json`, JSON.stringify(manifest));
}

/** Each harm is done, looked for, and undone. `base`: first byte of the file system. Throws when repaired harm is not clean to e2fsck, or the volume is not right in the end. */
export async function* runHarm(volume: string, cases: readonly HarmCase[], base = 0): AsyncGenerator<HarmOutcome> {
  const { signal } = new AbortController();
  const verify = () => verifyVolume({ path: volume, sources: [], signal });
  using patcher = new Ext4Patcher(volume, base);
  for (const each of cases) {
    const done = harm(patcher, each.kind, each.repaired, each.seed);
    if (each.repaired) fsckExt4(`${volume}?offset=${base}`);
    const { ok, differences } = await verify();
    const [first] = differences;
    yield {
      ...each,
      done,
      found: !ok,
      first: first === undefined ? "" : `${first.place}: ${first.rule}: ${first.message}`,
    };
    patcher.undo();
  }
  const { ok, differences } = await verify();
  if (!ok) throw new Error(`the volume is not right again: ${JSON.stringify(differences)}`);
}
