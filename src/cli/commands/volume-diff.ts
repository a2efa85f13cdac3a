/** `headstart volume diff`: what two volumes differ in, and what the difference costs. */

import type { Command } from "commander";
import { type BlockDiff, diffVolumes, type VolumeDiff } from "../../volume/diff/diff.ts";
import { Interrupt } from "../interrupt.ts";
import { openProgress } from "../progress.ts";
import { formatBytes, formatPercent, formatTable } from "../table.ts";

export function registerVolumeDiff(volume: Command): void {
  volume
    .command("diff <a> <b>")
    .summary("what two volumes differ in, and what that costs")
    .description(
      "What volume B differs in from volume A: images, layers, and blocks of a snapshot by what lies in them.",
    )
    .option("--json", "one object")
    .addHelpText("after", DIFF_HELP)
    .action(diff);
}

const DIFF_HELP = `
Each is a directory, a disk, or a PATH.json, whose disk need not be here any more. Blocks are
those of 512 KiB that a snapshot of B would have to be given beside one of A as its parent.

Examples:
  headstart volume diff old.img new.img
  headstart volume diff old.img.json new.img.json --json
`;

async function diff(a: string, b: string, options: { readonly json?: boolean }): Promise<void> {
  const progress = openProgress({ quiet: options.json === true });
  using interrupt = new Interrupt();
  const { signal } = interrupt;
  const found = await diffVolumes({
    a,
    b,
    signal,
    onProgress: (bytes) => progress.update(`${formatBytes(bytes)} read`),
  });
  progress.done();
  process.stdout.write(options.json ? `${JSON.stringify(found)}\n` : report(found));
}

function report({ names, layers, blocks }: VolumeDiff): string {
  const short = (digest: string) => digest.slice(0, 19);
  const layer = (sign: string) => (one: VolumeDiff["layers"]["added"][number]) =>
    `${sign} layer ${short(one.diffID)}${one.bytes === null ? "" : ` ${formatBytes(one.bytes)}`}`;
  const lines = [
    ...names.removed.map(({ name, digest }) => `- ${name} ${short(digest)}`),
    ...names.added.map(({ name, digest }) => `+ ${name} ${short(digest)}`),
    ...names.changed.map(({ name, from, to }) => `~ ${name} ${short(from)} -> ${short(to)}`),
    ...layers.removed.map(layer("-")),
    ...layers.added.map(layer("+")),
    ...layers.moved.map(layer("moved")),
    `${layers.kept} layers are the same${blocks === null ? "" : ", on the same blocks"}`,
  ];
  return `${[...lines, ...(blocks === null ? [] : reportBlocks(blocks))].join("\n")}\n`;
}

function reportBlocks({ blockSize, used, changed, causes, put }: BlockDiff): string[] {
  const rows = causes.map(({ cause, digest, blocks }) => [
    digest === null ? cause : `${cause} ${digest.slice(0, 19)}`,
    String(blocks),
    formatBytes(blocks * blockSize),
  ]);
  const cost = `$${put.dollars.toFixed(4)} at $${put.dollarsPer1000} per 1000, which is an example: prices change and differ by region`;
  return [
    "",
    ...(rows.length === 0 ? [] : [formatTable([["what lies in the changed blocks", "blocks", ""], ...rows]), ""]),
    `${changed} blocks changed (${formatPercent(changed, used)} of ${used} that hold data): ${cost}; at least ${put.secondsAtLeast.toFixed(1)} s`,
  ];
}
