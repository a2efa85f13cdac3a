/** Options and progress that `convert --to soci` and `index create` share: flags as users of SOCI know them. */

import { readFileSync } from "node:fs";
import { type Command, Option } from "commander";
import { HeadstartError } from "../base/errors.ts";
import type { PlatformChoice } from "../convert/choose-images.ts";
import type { OnProgress } from "../convert/progress.ts";
import { parsePlatform } from "../oci/platform.ts";
import { openProgress } from "./progress.ts";
import { formatBytes, formatPercent } from "./table.ts";

export interface SociCliOptions {
  readonly spanSize?: string;
  readonly minLayerSize?: string;
  readonly platform?: readonly string[];
  readonly allPlatforms?: boolean;
  readonly prefetchFile?: readonly string[];
  readonly prefetchFilesJson?: string;
  readonly optimizations?: readonly string[];
  readonly buildToolIdentifier?: string;
  readonly force?: boolean;
}

const collect = (value: string, before: readonly string[] | undefined) => [...(before ?? []), value];

/** `group`: a heading of the help, where other options stand beside. */
export function addSociOptions(command: Command, { group }: { readonly group?: string } = {}): Command {
  const own = [
    new Option("--span-size <BYTES>", "uncompressed bytes that can be fetched and decoded alone (default 4194304)"),
    new Option("--min-layer-size <BYTES>", "layers of fewer compressed bytes get no zTOC (default 10485760)"),
    new Option("--prefetch-file <PATH>", "a file of the image that a start needs first, may be repeated").argParser(
      collect,
    ),
    new Option("--prefetch-files-json <FILE>", "the same, as a JSON array of paths"),
    new Option("--optimizations <NAME>", "xattr: mark layers without extended attributes").argParser(collect),
    new Option(
      "--build-tool-identifier <TEXT>",
      "what the artifacts say made them; with SOCI's own text they are byte-identical to its",
    ),
    new Option("--force", "build zTOCs anew that the source has already"),
  ];
  for (const option of own) command.addOption(group === undefined ? option : option.helpGroup(group));
  return command
    .option("--platform <OS/ARCH[/VARIANT]>", "may be repeated (default: this machine's)", collect)
    .option("--all-platforms", "every platform of the image");
}

/** Throws HS_USAGE. */
export function platformChoice(options: Pick<SociCliOptions, "platform" | "allPlatforms">): PlatformChoice {
  if (options.allPlatforms && options.platform)
    throw new HeadstartError("HS_USAGE", { what: "--all-platforms and --platform exclude each other" });
  return options.allPlatforms ? "all" : options.platform?.map((text) => parsePlatform(text));
}

/** Throws HS_USAGE. */
export function sociOptions(options: SociCliOptions) {
  const platforms = platformChoice(options);
  const optimizations = options.optimizations ?? [];
  const unknown = optimizations.find((name) => name !== "xattr");
  if (unknown !== undefined)
    throw new HeadstartError("HS_USAGE", { what: `--optimizations ${unknown}: there is only xattr` });
  const prefetchFiles = [...(options.prefetchFile ?? []), ...readPathList(options.prefetchFilesJson)];
  return {
    ...(platforms === undefined ? {} : { platforms }),
    ...(options.spanSize === undefined ? {} : { spanSize: bytes("--span-size", options.spanSize) }),
    ...(options.minLayerSize === undefined ? {} : { minLayerSize: bytes("--min-layer-size", options.minLayerSize) }),
    ...(options.buildToolIdentifier === undefined ? {} : { buildToolIdentifier: options.buildToolIdentifier }),
    ...(prefetchFiles.length === 0 ? {} : { prefetchFiles }),
    ...(optimizations.length === 0 ? {} : { optimizations: ["xattr" as const] }),
    ...(options.force ? { force: true } : {}),
  };
}

function bytes(flag: string, text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value))
    throw new HeadstartError("HS_USAGE", { what: `${flag} ${text}: a whole number of bytes is wanted` });
  return value;
}

function readPathList(file: string | undefined): string[] {
  if (file === undefined) return [];
  const wrong = (cause?: unknown) =>
    new HeadstartError("HS_USAGE", { what: `--prefetch-files-json ${file}: a JSON array of paths is wanted`, cause });
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(file, "utf8"));
  } catch (cause) {
    throw wrong(cause);
  }
  if (!Array.isArray(value) || !value.every((path) => typeof path === "string")) throw wrong();
  return value as string[];
}

/** One line that moves on a terminal, notes for what a user should know. */
export function showProgress(quiet: boolean): { event: OnProgress; note: (text: string) => void; done: () => void } {
  const progress = openProgress({ quiet });
  const read = new Map<string, { bytes: number; size: number }>();
  return {
    event(event) {
      if (event.t === "reading") {
        read.set(event.layer, { bytes: event.bytes, size: event.size });
        const sum = (key: "bytes" | "size") => [...read.values()].reduce((total, layer) => total + layer[key], 0);
        progress.update(
          `reading ${read.size} layers: ${formatBytes(sum("bytes"))} of ${formatBytes(sum("size"))}, ${formatPercent(sum("bytes"), sum("size"))}`,
        );
      } else if (event.t === "prefetch-not-found") progress.note(`${event.file}: no layer with a zTOC has it`);
      else if (event.t === "pushed")
        progress.update(`pushed ${event.digest.slice(0, 19)} (${formatBytes(event.size)})`);
    },
    note: (text) => progress.note(text),
    done: () => progress.done(),
  };
}
