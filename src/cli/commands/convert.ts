/** `headstart convert`: lazy formats from any image. */

import type { Command } from "commander";
import { HeadstartError } from "../../base/errors.ts";
import { convertToSoci } from "../../convert/to-soci.ts";
import { openDestination, openSource } from "../../oci/open.ts";
import { formatPlatform } from "../../oci/platform.ts";
import { formatSource, parseSource } from "../../oci/reference.ts";
import { addSociOptions, type SociCliOptions, showProgress, sociOptions } from "../soci.ts";
import { type AccessOptions, addSourceOptions, openOptions } from "../sources.ts";
import { formatBytes } from "../table.ts";

interface ConvertOptions extends AccessOptions, SociCliOptions {
  readonly destCreds?: string;
  readonly to?: string;
  readonly json?: boolean;
}

export function registerConvert(program: Command): void {
  const command = program
    .command("convert <source> <destination>")
    .summary("make a lazily loadable image of any image")
    .description(
      "Make a lazily loadable image of any image. Registry to registry without a daemon; layers are streamed, never held.",
    )
    .requiredOption(
      "--to <FORMAT>",
      "soci: unmodified layers with an index that the manifest names by digest (SOCI v2)",
    );
  addSociOptions(command);
  addSourceOptions(command, { platform: false })
    .option("--dest-creds <USER:PASSWORD>", "for the registry of the destination")
    .option("--json", "one object")
    .addHelpText(
      "after",
      `
The layers stay as they are, byte for byte. Converting a converted image changes nothing.
Attestations stay and are made to name the new manifest; signatures must be made anew,
since the image's digest changes. --json prints {destination, digest, images}.

Examples:
  headstart convert docker://HOST/REPO:1 docker://HOST/REPO:1-soci --to soci
  headstart convert oci:./layout:v1 oci-archive:out.tar:v1 --to soci --all-platforms
`,
    )
    .action(async (from: string, to: string, options: ConvertOptions) => {
      if (options.to !== "soci")
        throw new HeadstartError("HS_USAGE", { what: `--to ${options.to}: this version knows soci` });
      const source = parseSource(from);
      const target = parseSource(to);
      await using reader = await openSource(source, openOptions(source, options));
      await using writer = await openDestination(target, openOptions(target, { ...options, creds: options.destCreds }));
      const progress = showProgress(options.json === true);
      const result = await convertToSoci({
        source: reader,
        destination: writer,
        tag: writer.tag,
        ...sociOptions(options),
        onProgress: progress.event,
      });
      progress.done();
      if (options.json) {
        process.stdout.write(
          `${JSON.stringify({ destination: formatSource(target), digest: result.root.digest, images: result.images })}\n`,
        );
        return;
      }
      for (const image of result.images) {
        process.stdout.write(
          `${formatPlatform(image.platform)}  ${image.index === null ? "no layer can be indexed: left as it is" : `${image.manifest}, index ${image.index}`}\n`,
        );
        for (const layer of image.layers) {
          process.stdout.write(
            `  layer ${layer.layer} -> ${layer.ztoc === null ? layer.reason : `ztoc ${layer.ztoc.digest} (${formatBytes(layer.ztoc.size)})`}\n`,
          );
        }
      }
      process.stdout.write(`${formatSource(target)}  ${result.root.digest}\n`);
    });
}
