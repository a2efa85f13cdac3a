/** `headstart volume verify`: proof that a volume holds what its images' digests say. */

import type { Command } from "commander";
import { parseSource } from "../../oci/reference.ts";
import { type Verification, verifyVolume } from "../../volume/verify/verify.ts";
import { AnswerIsNo } from "../exit.ts";
import { Interrupt } from "../interrupt.ts";
import { openProgress } from "../progress.ts";
import { type AccessOptions, addSourceOptions, openOptions } from "../sources.ts";
import { formatBytes } from "../table.ts";

interface VerifyOptions extends AccessOptions {
  readonly source?: readonly string[];
  readonly json?: boolean;
}

export function registerVolumeVerify(volume: Command): void {
  const command = volume
    .command("verify <path>")
    .summary("prove that a volume holds what its images' digests say")
    .description(
      "Prove that a volume holds what its images' digests say: a directory, a disk image or a disk. Exit 1 if not.",
    )
    .option("--source <SRC>", "compare with an image where it comes from (again for more)", collect);
  addSourceOptions(command, { platform: false })
    .option("--json", "one object")
    .addHelpText("after", VERIFY_HELP)
    .action(verify);
}

const VERIFY_HELP = `
Reads everything: partition table and file system with their checksums, both databases of
containerd, every blob's digest, and every unpacked file against its layer's tar. PATH.json
beside it, if there is one, has to agree. The first 20 differences are printed, and what
could not be proven is counted.

Layers whose blobs were left out (--blobs drop) are proven with --source, which fetches them.

Examples:
  headstart volume verify ./containerd
  headstart volume verify disk.img --source docker://HOST/APP:1 --json
`;

function collect(value: string, before: readonly string[] = []): readonly string[] {
  return [...before, value];
}

async function verify(path: string, options: VerifyOptions): Promise<void> {
  const sources = (options.source ?? []).map((text) => {
    const source = parseSource(text);
    const access = source.kind === "registry" ? options : { ...options, creds: undefined };
    return { source, open: openOptions(source, access) };
  });
  const progress = openProgress({ quiet: options.json === true });
  using interrupt = new Interrupt();
  const result = await verifyVolume({
    path,
    sources,
    signal: interrupt.signal,
    onProgress: ({ bytes, layers }) => progress.update(`${formatBytes(bytes)} read, ${layers} layers compared`),
  });
  progress.done();
  process.stdout.write(options.json ? `${JSON.stringify(result)}\n` : report(path, result));
  if (!result.ok) throw new AnswerIsNo();
}

function report(path: string, { ok, checked, unproven, differences, differenceCount }: Verification): string {
  const lines = differences.map(({ place, rule, message }) => `${place}: ${rule}: ${message}`);
  if (differenceCount > differences.length) lines.push(`and ${differenceCount - differences.length} more`);
  for (const { what, why, count } of unproven)
    lines.push(`not proven: ${count === 1 ? "" : `${count} `}${what}: ${why}`);
  const { images, provenSnapshots, snapshots, blobs, files, bytes } = checked;
  lines.push(
    `${path}: ${ok ? "right" : `${differenceCount} differences`}: ${images} images, ${provenSnapshots} of ${snapshots} snapshots compared with their layers, ${blobs} blobs, ${files} files, ${formatBytes(bytes)} read`,
  );
  return `${lines.join("\n")}\n`;
}
