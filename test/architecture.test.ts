/** Holds the import table of docs/architecture.md: dependencies point downwards, neighbours do not import each other, koffi stays in linux/. */

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { test } from "node:test";

const root = dirname(import.meta.dirname);
const source = join(root, "src");

/** Lowest first. Modules of one row are neighbours. */
const ROWS: readonly (readonly string[])[] = [
  ["base"],
  ["linux", "oci", "erofs"],
  ["formats"],
  ["layer"],
  ["fetch"],
  ["image", "fuse"],
  ["mount"],
  ["startup", "convert"],
  ["snapshotter", "cri", "volume"],
  ["daemon"],
  ["sandbox"],
  ["cli"],
];
const LEVEL = new Map(ROWS.flatMap((row, level) => row.map((name) => [name, level] as const)));
/** supervisor stands beside the table: it sees base and linux only. gen is generated code without imports of ours. */
const SUPERVISOR = new Set(["base", "linux", "supervisor"]);

function mayImport(from: string, to: string): boolean {
  if (from === to || to === "gen") return true;
  if (from === "supervisor") return SUPERVISOR.has(to);
  const fromLevel = LEVEL.get(from);
  const toLevel = LEVEL.get(to);
  return fromLevel !== undefined && toLevel !== undefined && toLevel < fromLevel;
}

interface Import {
  readonly file: string;
  readonly specifier: string;
}

function imports(): Import[] {
  const found: Import[] = [];
  for (const entry of readdirSync(source, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile() || !entry.name.endsWith(".ts") || entry.name.endsWith(".test.ts")) continue;
    const file = join(entry.parentPath, entry.name);
    const text = readFileSync(file, "utf8");
    for (const match of text.matchAll(
      /(?:^|\n)\s*(?:import|export)\b[^"';]*?\bfrom\s*"([^"]+)"|\bimport\(\s*"([^"]+)"\s*\)|(?:^|\n)import\s*"([^"]+)"/g,
    )) {
      found.push({ file, specifier: (match[1] ?? match[2] ?? match[3])! });
    }
  }
  return found;
}

test("module dependencies point downwards", () => {
  const wrong: string[] = [];
  for (const { file, specifier } of imports()) {
    if (!specifier.startsWith(".")) continue;
    const from = relative(source, file).split("/")[0]!;
    const to = relative(source, join(dirname(file), specifier)).split("/")[0]!;
    if (!mayImport(from, to)) wrong.push(`${relative(root, file)} imports ${specifier}: ${from} must not know ${to}`);
  }
  assert.deepEqual(wrong, []);
});

test("every folder of src is in the table", () => {
  const folders = readdirSync(source, { withFileTypes: true }).filter((entry) => entry.isDirectory());
  const unknown = folders
    .map((entry) => entry.name)
    .filter((name) => !LEVEL.has(name) && name !== "supervisor" && name !== "gen");
  assert.deepEqual(unknown, []);
});

test("only linux/ffi.ts imports koffi, and only linux/ imports ffi.ts", () => {
  const wrong = imports()
    .filter(({ file, specifier }) => {
      const path = relative(source, file);
      if (specifier === "koffi") return path !== "linux/ffi.ts";
      return specifier.endsWith("/ffi.ts") && !path.startsWith("linux/");
    })
    .map(({ file }) => relative(root, file));
  assert.deepEqual(wrong, []);
});

test("only oci/registry imports an HTTP client, and only snapshotter, daemon and sandbox speak gRPC", () => {
  const wrong = imports()
    .filter(({ file, specifier }) => {
      const path = relative(source, file);
      if (specifier === "undici") return !path.startsWith("oci/registry/");
      return specifier.startsWith("@connectrpc/") && !/^(snapshotter|daemon|sandbox|cri)\//.test(path);
    })
    .map(({ file }) => relative(root, file));
  assert.deepEqual(wrong, []);
});
