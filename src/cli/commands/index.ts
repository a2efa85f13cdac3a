/** `headstart index create|push|ls|rm`: SOCI v1 indexes beside an unmodified image. */

import type { Command } from "commander";
import { isDigest } from "../../base/digest.ts";
import { HeadstartError } from "../../base/errors.ts";
import { createIndex, listIndexes, pushIndex, registryRemover, removeIndex } from "../../convert/index.ts";
import { openDestination } from "../../oci/open.ts";
import { formatPlatform, parsePlatform } from "../../oci/platform.ts";
import { parseSource } from "../../oci/reference.ts";
import { Registry } from "../../oci/registry/registry.ts";
import { addSociOptions, type SociCliOptions, showProgress, sociOptions } from "../soci.ts";
import {
  type AccessOptions,
  addSourceOptions,
  openNamed,
  openOptions,
  registryOptions,
  type SourceOptions,
} from "../sources.ts";
import { formatBytes, formatTable } from "../table.ts";

interface IndexOptions extends SourceOptions {
  readonly json?: boolean;
}

interface CreateOptions extends AccessOptions, SociCliOptions {
  readonly output?: string;
  readonly json?: boolean;
}

export function registerIndex(program: Command): void {
  const index = program
    .command("index")
    .summary("SOCI v1 indexes beside an unmodified image")
    .description("SOCI v1 indexes: artifacts beside an unmodified image, found through the registry's referrers.")
    .addHelpText(
      "after",
      `
The daemon uses such an index only with the trust policy "referrers": anybody who may push
to the repository can attach one. \`headstart convert --to soci\` binds an index to the
image instead.

Examples:
  headstart index create docker://HOST/REPO:1
  headstart index ls HOST/REPO:1
  headstart index rm docker://HOST/REPO:1 --dry-run
`,
    );
  registerCreate(index);
  registerPush(index);

  addSourceOptions(
    index
      .command("ls <image>")
      .summary("list the indexes of an image")
      .description("List the SOCI indexes of an image: bound (v2) and referring (v1).")
      .option("--json", "one object a line"),
  )
    .addHelpText(
      "after",
      "\nExamples:\n  headstart index ls HOST/REPO:1\n  headstart index ls oci:./layout:v1 --json\n",
    )
    .action(async (image: string, options: IndexOptions) => {
      await using source = await openNamed(image, options);
      const found = await listIndexes({
        source,
        ...(options.platform === undefined ? {} : { platforms: [parsePlatform(options.platform)] }),
      });
      if (options.json) {
        for (const { content: _content, ...entry } of found) process.stdout.write(`${JSON.stringify(entry)}\n`);
        return;
      }
      if (found.length === 0) process.stdout.write("No SOCI index.\n");
      else {
        const rows = found.map((entry) => [
          entry.index.digest,
          `v${entry.version}`,
          formatPlatform(entry.platform),
          String(entry.ztocs),
          entry.buildTool ?? "",
          entry.reason ?? "",
        ]);
        process.stdout.write(
          `${formatTable([["index", "version", "platform", "ztocs", "made by", "reason"], ...rows])}\n`,
        );
      }
    });

  addSourceOptions(
    index
      .command("rm <image>")
      .summary("remove indexes from a registry")
      .description("Remove SOCI v1 indexes of an image from its registry. A v2 index is part of its image and stays.")
      .option("--index <DIGEST>", "only this one (default: every one of the image)")
      .option("--dry-run", "say what would be removed")
      .option("--json", "one object {removed, dryRun}"),
  )
    .addHelpText(
      "after",
      "\nExamples:\n  headstart index rm HOST/REPO:1 --dry-run\n  headstart index rm HOST/REPO:1 --index sha256:…\n",
    )
    .action(async (image: string, options: IndexOptions & { index?: string; dryRun?: boolean }) => {
      const source = parseSource(image);
      if (source.kind !== "registry")
        throw new HeadstartError("HS_USAGE", { what: `${image}: only a registry has referrers to remove` });
      if (options.index !== undefined && !isDigest(options.index))
        throw new HeadstartError("HS_USAGE", { what: `--index ${options.index} is no digest` });
      await using registry = new Registry(registryOptions(source, options));
      const repository = await registry.repository(source.reference);
      const platforms = options.platform === undefined ? {} : { platforms: [parsePlatform(options.platform)] };
      const wanted = options.index as Parameters<typeof removeIndex>[0]["index"];
      const removed = options.dryRun
        ? (await listIndexes({ source: repository, ...platforms }))
            .filter((entry) => entry.version === 1 && (wanted === undefined || entry.index.digest === wanted))
            .map((entry) => entry.index.digest)
        : await removeIndex({ source: repository, remover: registryRemover(repository), index: wanted, ...platforms });
      if (options.json) process.stdout.write(`${JSON.stringify({ removed, dryRun: options.dryRun === true })}\n`);
      else
        for (const digest of removed)
          process.stdout.write(`${options.dryRun ? "would remove" : "removed"} ${digest}\n`);
    });
}

function registerCreate(index: Command): void {
  const create = index
    .command("create <image>")
    .summary("build an index and push it")
    .description("Build zTOCs and an index for an image and push them beside it (or into --output).");
  addSociOptions(create);
  addSourceOptions(create, { platform: false })
    .option("--output <DESTINATION>", "oci:DIR or another repository instead of the image's own")
    .option("--json", "one object a line: {platform, manifest, index, layers}")
    .addHelpText(
      "after",
      "\nExamples:\n  headstart index create docker://HOST/REPO:1\n  headstart index create oci:./layout:v1 --min-layer-size 0 --span-size 1048576\n",
    )
    .action(async (image: string, options: CreateOptions) => {
      const target = parseSource(options.output ?? image);
      await using source = await openNamed(image, options);
      await using destination = await openDestination(target, openOptions(target, options));
      const progress = showProgress(options.json === true);
      const created = await createIndex({ source, destination, ...sociOptions(options), onProgress: progress.event });
      progress.done();
      for (const entry of created) {
        if (options.json) process.stdout.write(`${JSON.stringify(entry)}\n`);
        else {
          process.stdout.write(
            `${formatPlatform(entry.platform)}  ${entry.index?.digest ?? "no layer can be indexed"}\n`,
          );
          for (const layer of entry.layers) {
            process.stdout.write(
              `  layer ${layer.layer} -> ${layer.ztoc === null ? layer.reason : `ztoc ${layer.ztoc.digest} (${formatBytes(layer.ztoc.size)})`}\n`,
            );
          }
        }
      }
    });
}

function registerPush(index: Command): void {
  addSourceOptions(
    index
      .command("push <source> <image>")
      .summary("push an index from a layout")
      .description("Push the newest SOCI v1 index of an image in a layout to the repository that has the image.")
      .option("--existing-index <POLICY>", "when the image has one there: warn, skip or allow", "warn")
      .option("--json", "one object a line"),
  )
    .addHelpText(
      "after",
      "\nExamples:\n  headstart index create oci:./layout:v1 --min-layer-size 0\n  headstart index push oci:./layout:v1 docker://HOST/REPO:1 --existing-index skip\n",
    )
    .action(async (from: string, image: string, options: IndexOptions & { existingIndex: string }) => {
      const policy = options.existingIndex;
      if (policy !== "warn" && policy !== "skip" && policy !== "allow")
        throw new HeadstartError("HS_USAGE", { what: `--existing-index ${policy}: warn, skip or allow` });
      const target = parseSource(image);
      await using source = await openNamed(from, { ...options, creds: undefined });
      await using destination = await openDestination(target, openOptions(target, options));
      await using reader = await openNamed(image, options);
      const progress = showProgress(options.json === true);
      const pushed = await pushIndex({
        source,
        destination,
        existing: { reader, policy },
        ...(options.platform === undefined ? {} : { platforms: [parsePlatform(options.platform)] }),
        onProgress: progress.event,
      });
      progress.done();
      for (const entry of pushed) {
        if (policy === "warn" && entry.existing.length > 0)
          process.stderr.write(`headstart: ${entry.manifest} had ${entry.existing.length} index(es) already\n`);
        if (options.json) process.stdout.write(`${JSON.stringify(entry)}\n`);
        else
          process.stdout.write(
            `${formatPlatform(entry.platform)}  ${entry.pushed === null ? entry.reason : `pushed ${entry.pushed.digest}`}\n`,
          );
      }
    });
}
