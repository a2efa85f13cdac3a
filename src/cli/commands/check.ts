/** `headstart check`: does an image show, served by headstart, exactly what containerd's own unpack shows? And is its Nydus form sound? */

import { mkdir } from "node:fs/promises";
import type { Command } from "commander";
import { HeadstartError } from "../../base/errors.ts";
import { sourceLayerOf } from "../../convert/nydus-manifest.ts";
import { isNydusManifest } from "../../formats/nydus/manifest.ts";
import { checkNydusForm, checkRafs, type NydusFormCheck, type NydusRule } from "../../image/check-nydus.ts";
import { loadImage } from "../../oci/manifest.ts";
import { openSource } from "../../oci/open.ts";
import { type ImageSource, parseSource, sourceAt } from "../../oci/reference.ts";
import { checkImage } from "../../sandbox/check.ts";
import { type Comparison, formatDifference } from "../../sandbox/compare.ts";
import { SandboxNode } from "../../sandbox/node.ts";
import { debianPackages } from "../../sandbox/packages.ts";
import { Session } from "../../sandbox/session.ts";
import { CONTAINERD_VERSIONS } from "../../sandbox/tools.ts";
import { AnswerIsNo } from "../exit.ts";
import { openProgress, type Progress } from "../progress.ts";
import { addSourceOptions, openOptions, platformOf, type SourceOptions } from "../sources.ts";
import { formatBytes } from "../table.ts";

interface CheckOptions extends SourceOptions {
  readonly against?: string;
  readonly containerd: string;
  readonly limit: string;
  readonly ignore?: readonly string[];
  readonly json?: boolean;
}

export function registerCheck(program: Command): void {
  addSourceOptions(
    program
      .command("check <source>")
      .summary("compare what headstart serves with a plain unpack")
      .description(
        "Mount an image as headstart serves it, for real, and compare it with a plain unpack by containerd: entry by entry and byte by byte. Of a Nydus image, or an image with a Nydus form beside it, check manifest, configuration, bootstrap and every chunk, and compare its tree with the OCI image's.",
      )
      .option(
        "--against <SOURCE>",
        "another image for the plain side, of a Nydus image the OCI image that it was made of",
      )
      .option("--containerd <VERSION>", `one of ${CONTAINERD_VERSIONS.join(", ")}`, CONTAINERD_VERSIONS[0])
      .option("--limit <COUNT>", "stop after so many differences", "100")
      .option(
        "--ignore <PATH>",
        "a path that is left out with all below it, may be repeated",
        (path: string, before: readonly string[] = []) => [...before, path],
      ),
  )
    .option("--json", "one object {equal, entries, bytes, differences, nydus}")
    .addHelpText(
      "after",
      `
Exits with 0 when both are equal, 1 when something differs. Compared are types, modes,
owners, times to the nanosecond, sizes, device numbers, link targets, hard links,
extended attributes and contents.

Needs root; starts a containerd of its own. Debian packages that are missing are
installed. Nothing stays mounted or running. What a Nydus image holds is read from where it
is, without root; the OCI image to compare with is its subject, or stands in the same index.

Examples:
  headstart check HOST/REPO:TAG
  headstart check oci:./layout:v2 --against oci:./layout:v1
  headstart check rafs:./image.boot:./blobs --against HOST/REPO:TAG
`,
    )
    .action(async (name: string, options: CheckOptions) => {
      const version = CONTAINERD_VERSIONS.find((known) => known === options.containerd);
      if (version === undefined)
        throw new HeadstartError("HS_USAGE", {
          what: `--containerd ${options.containerd}: one of ${CONTAINERD_VERSIONS.join(", ")}`,
        });
      const limit = Number(options.limit);
      if (!Number.isInteger(limit) || limit < 1)
        throw new HeadstartError("HS_USAGE", { what: `--limit ${options.limit}: a whole number above 0 is wanted` });
      const progress = openProgress({ quiet: options.json === true });
      const form = await checkForm(name, options, limit, progress);
      const { nydus } = form;
      if (!options.json && nydus !== null) printForm(nydus);
      const mounted =
        form.plain === null || !form.isSound || (nydus !== null && process.getuid?.() !== 0)
          ? null
          : await checkMounted(
              { image: form.image, plain: form.plain, without: form.without },
              options,
              { version, limit },
              progress,
            );
      progress.done();
      const result = {
        ...(mounted ?? { entries: nydus?.entries ?? 0, bytes: nydus?.bytes ?? 0, differences: [] }),
        equal: mounted?.equal !== false && (nydus?.findings.length ?? 0) === 0,
        nydus,
      };
      if (options.json) process.stdout.write(`${JSON.stringify(result)}\n`);
      else if (mounted !== null) {
        for (const difference of mounted.differences) process.stdout.write(`${formatDifference(difference)}\n`);
        const verdict = mounted.equal ? "equal" : `${mounted.differences.length} differences`;
        process.stdout.write(`${verdict}: ${mounted.entries} entries, ${formatBytes(mounted.bytes)} of content\n`);
      }
      if (!result.equal) throw new AnswerIsNo();
    });
}

interface CheckedForm {
  readonly nydus: NydusFormCheck | null;
  readonly image: ImageSource;
  /** What containerd can unpack to compare the mounted image with; null where there is none. */
  readonly plain: ImageSource | null;
  readonly without: readonly string[];
  /** Nothing is gained by mounting what is known to be broken. */
  readonly isSound: boolean;
}

/** By the rules for Nydus images, read from where it is. */
async function checkForm(name: string, options: CheckOptions, limit: number, progress: Progress): Promise<CheckedForm> {
  const platform = platformOf(options);
  const source = parseSource(name);
  const named = options.against === undefined ? undefined : parseSource(options.against);
  const rules = {
    limit,
    ignore: options.ignore,
    onRule: (rule: NydusRule) => progress.update(`checking the Nydus form: ${rule}`),
  };
  await using stack = new AsyncDisposableStack();
  const against = async () => {
    if (named === undefined) return undefined;
    const reader = stack.use(await openSource(named, openOptions(named, options)));
    return { reader, image: await loadImage(reader, platform) };
  };
  if (source.kind === "rafs") {
    const nydus = await checkRafs(source, { ...rules, against: await against() });
    return { nydus, image: source, plain: null, without: [], isSound: true };
  }
  const reader = stack.use(await openSource(source, openOptions(source, options)));
  const image = await loadImage(reader, platform);
  const isPlain = !isNydusManifest(image.manifest);
  const nydus = await checkNydusForm(reader, image, { ...rules, against: isPlain ? undefined : await against() });
  const beside = nydus === null || nydus.against === null ? null : sourceAt(source, nydus.against);
  return {
    nydus,
    image: source,
    plain: named ?? (isPlain ? source : beside),
    // other builders keep neither fractions of times nor link counts
    without: isPlain || image.layers.some((layer) => sourceLayerOf(layer) !== null) ? [] : ["mtime", "nlink"],
    isSound: isPlain || nydus === null || nydus.findings.length === 0,
  };
}

function printForm(nydus: NydusFormCheck): void {
  for (const { rule, message } of nydus.findings) process.stdout.write(`nydus ${rule}: ${message}\n`);
  const verdict = nydus.findings.length === 0 ? "sound" : `${nydus.findings.length} findings`;
  const against =
    nydus.against === null ? "no OCI image to compare it with: --against names one" : `compared with ${nydus.against}`;
  process.stdout.write(
    `Nydus image ${nydus.manifest ?? "of a bootstrap"} ${verdict}: ${nydus.checked.join(", ")}; ${nydus.entries} entries, ${formatBytes(nydus.bytes)} of content; ${against}\n`,
  );
}

/** Through containerd, as a container sees it. Throws HS_USAGE without root. */
async function checkMounted(
  sides: { readonly image: ImageSource; readonly plain: ImageSource; readonly without: readonly string[] },
  options: CheckOptions,
  how: { readonly version: (typeof CONTAINERD_VERSIONS)[number]; readonly limit: number },
  progress: Progress,
): Promise<Comparison> {
  if (process.getuid?.() !== 0)
    throw new HeadstartError("HS_USAGE", { what: "headstart check mounts file systems: it needs root" });
  const say = (text: string) => process.stderr.write(`headstart: ${text}\n`);
  await debianPackages(["runc"], say);
  const platform = platformOf(options);
  await using session = await Session.open({ say });
  const publish = async (source: ImageSource) => {
    await using reader = await openSource(source, openOptions(source, options));
    return await session.publish(source, reader, { platform });
  };
  const image = await publish(sides.image);
  const against = sides.plain === sides.image ? image : await publish(sides.plain);
  const env =
    options.creds === undefined
      ? {}
      : { env: { DOCKER_CONFIG: await session.dockerConfig(image.meter.host, options.creds) } };
  await using node = await SandboxNode.start({
    directory: session.directory("n"),
    version: how.version,
    registries: [session.meter.host],
    mirrors: { ...image.mirrors, ...against.mirrors },
    sandboxImage: session.sandboxImage,
    headstart: { policy: "referrers", ...env },
    say,
  });
  const directory = session.directory("m");
  await mkdir(directory, { recursive: true });
  progress.update("pulling, mounting and comparing");
  return await checkImage(node, {
    image: image.reference,
    against: against.reference,
    directory,
    limit: how.limit,
    without: sides.without,
    ...(options.ignore && { ignore: options.ignore }),
  });
}
