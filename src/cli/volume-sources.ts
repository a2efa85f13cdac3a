/** What `volume build` and `volume estimate` are told: sources, their names, layouts; and how both are interrupted. */

import { readFileSync } from "node:fs";
import type { Command } from "commander";
import { HeadstartError } from "../base/errors.ts";
import { formatSource, parseSource } from "../oci/reference.ts";
import { type BuildSource, LAYOUTS, LAYOUTS_LATER, type VolumeLayout } from "../volume/build.ts";
import { addClusterOptions, type ClusterFlags, imagesOfCluster } from "./cluster.ts";
import { type AccessOptions, addSourceOptions, openOptions } from "./sources.ts";

export interface VolumeSourceOptions extends AccessOptions, ClusterFlags {
  readonly name?: readonly string[];
  readonly include?: string;
}

/** The options of VolumeSourceOptions. */
export function addVolumeSources(command: Command): Command {
  command
    .option("--name <REF>", "a further name; with several sources NUMBER=REF, counted from 1", collect)
    .option("--include <FILE>", "more sources: one a line, # begins a comment");
  addClusterOptions(command);
  return addSourceOptions(command, { platform: false });
}

function collect(value: string, before: readonly string[] = []): readonly string[] {
  return [...before, value];
}

/** Those that are named, listed, and run in the cluster, each once. Throws HS_USAGE, HS_REFERENCE, HS_NOT_FOUND, HS_KUBECONFIG, HS_CLUSTER. */
export async function volumeSources(named: readonly string[], options: VolumeSourceOptions): Promise<BuildSource[]> {
  const texts = [...named, ...(options.include === undefined ? [] : readList(options.include))];
  const known = new Set(texts.map((text) => formatSource(parseSource(text))));
  const cluster = (await imagesOfCluster(options)).map(({ reference }) => reference);
  texts.push(...cluster.filter((text) => !known.has(formatSource(parseSource(text)))));
  if (texts.length === 0) throw new HeadstartError("HS_USAGE", { what: "no image is named" });
  const names = texts.map((): string[] => []);
  for (const text of options.name ?? []) {
    const [, number, name] = /^(\d{1,4})=(.+)$/.exec(text) ?? (texts.length === 1 ? [text, "1", text] : []);
    const list = names[Number(number) - 1];
    if (list === undefined || name === undefined) {
      throw new HeadstartError("HS_USAGE", { what: `--name ${text}: with ${texts.length} sources write NUMBER=REF` });
    }
    list.push(name);
  }
  return texts.map((text, index) => {
    const source = parseSource(text);
    const access = source.kind === "registry" ? options : { ...options, creds: undefined };
    return { source, names: names[index]!, open: openOptions(source, access) };
  });
}

function readList(file: string): string[] {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    throw new HeadstartError("HS_NOT_FOUND", { what: `--include ${file}`, cause });
  }
  return text
    .split("\n")
    .map((line) => line.replace(/(^|\s)#.*$/, "").trim())
    .filter((line) => line !== "");
}

/** Throws HS_USAGE. */
export function parseLayout(text: string): VolumeLayout {
  const found = LAYOUTS.find((layout) => layout === text);
  if (found !== undefined) return found;
  const later = LAYOUTS_LATER.some((layout) => layout === text);
  throw new HeadstartError("HS_USAGE", {
    what: later
      ? `--layout ${text} is not in this version, which writes: ${LAYOUTS.join(", ")}`
      : `--layout ${text}: no such layout`,
  });
}

export function parseBlobs(text: string): boolean {
  if (text === "keep" || text === "drop") return text === "keep";
  throw new HeadstartError("HS_USAGE", { what: `--blobs ${text}: keep or drop` });
}
