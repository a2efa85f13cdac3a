/** Plain text tables and numbers for people. */

import { stripVTControlCharacters } from "node:util";

/** Columns are as wide as their widest cell; cells that look like numbers are right-aligned. The first row is the head. */
export function formatTable(rows: readonly (readonly string[])[]): string {
  const columns = Math.max(0, ...rows.map((row) => row.length));
  const width = (text: string) => stripVTControlCharacters(text).length;
  const widths = Array.from({ length: columns }, (_, column) =>
    Math.max(...rows.map((row) => width(row[column] ?? ""))),
  );
  const right = Array.from({ length: columns }, (_, column) =>
    rows.slice(1).every((row) => /^[\d.,<]*\d/.test(row[column] ?? "0")),
  );
  return rows
    .map((row) =>
      row
        .map((cell, column) => {
          const padding = " ".repeat(widths[column]! - width(cell));
          return right[column] ? padding + cell : cell + padding;
        })
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return unit === 0 ? `${bytes} B` : `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${units[unit]}`;
}

export function formatMs(ms: number): string {
  return ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

export function formatPercent(part: number, whole: number): string {
  return whole === 0 ? "-" : `${((100 * part) / whole).toFixed(1)} %`;
}
