/** The table that `run` and `npm start` end with (design: the same figures as --json). */

import type { Figures } from "../sandbox/figures.ts";
import { formatBytes, formatMs, formatPercent, formatTable } from "./table.ts";

export function startsTable(figures: Figures): string {
  const { image, runs } = figures;
  const rows = runs.map((run) => [
    run.mode,
    formatMs(run.readyMs),
    formatMs(run.pullMs),
    formatBytes(run.bytes),
    formatPercent(run.bytes, image.bytes),
    String(run.requests),
    String(run.faults),
  ]);
  const table = formatTable([["start", "ready", "pull", "fetched", "of the image", "requests", "faults"], ...rows]);
  const head = `${image.ref}  ${formatBytes(image.bytes)} in ${image.layers} layers`;
  const ratio = runs.length > 1 ? `\nReady ${figures.ratio} times as fast as by a plain pull.` : "";
  return `${head}\n\n${table}\n${ratio}`;
}
