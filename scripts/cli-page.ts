/** docs/cli.md: the help of every command as it is printed, and what --json prints. Written by `npm run pages`. */

import type { Command } from "commander";
import { buildProgram } from "../src/cli/program.ts";

/** What --json prints, by command. */
const JSON_SHAPES: Readonly<Record<string, string>> = {
  run: `One object. Times are milliseconds from the request to pull; \`bytes\` and \`requests\` are what the registry gave until the container was ready, \`faults\` the reads that waited for it. \`ratio\` is the plain
pull's \`readyMs\` over the lazy one's.

\`\`\`json
{"image": {"ref": "…", "digest": "sha256:…", "bytes": 153657344, "layers": 4},
 "runs": [{"mode": "lazy", "readyMs": 3867, "pullMs": 306, "bytes": 84512345, "requests": 63, "faults": 7},
          {"mode": "overlayfs", "readyMs": 16775, "pullMs": 16568, "bytes": 153664021, "requests": 7, "faults": 0}],
 "ratio": 4.34}
\`\`\``,
  convert: `One object. \`before\` and \`manifest\` are the image manifest's digests before and after. With \`--to soci\` \`index\` is null where no layer can be indexed, a layer's \`ztoc\` null with a \`reason\`; \`reused\`: the source had it.

\`\`\`json
{"destination": "docker://…", "digest": "sha256:…",
 "images": [{"platform": {"os": "linux", "architecture": "amd64"}, "before": "sha256:…", "manifest": "sha256:…", "index": "sha256:…",
             "layers": [{"layer": "sha256:…", "size": 944527, "ztoc": {"digest": "sha256:…", "size": 124224, "reused": false}, "reason": null}]}]}
\`\`\`

With \`--to nydus\` and \`--to nydus-ref\` \`dictionary\` are the blobs of the chunk dictionary that the image refers to, \`prefetchNotFound\` paths of \`--prefetch-patterns\` that are not in it. Sizes are bytes.

\`\`\`json
{"destination": "docker://…", "digest": "sha256:…",
 "images": [{"platform": {"os": "linux", "architecture": "amd64"}, "before": "sha256:…", "manifest": "sha256:…", "bootstrap": {"digest": "sha256:…", "size": 30729},
             "layers": [{"layer": "sha256:…", "size": 944527, "blob": "sha256:…", "blobSize": 941592, "chunks": 343}], "dictionary": [], "prefetchNotFound": []}]}
\`\`\`

With \`--to oci\` \`how\` is \`original\`, \`exact\` or \`equal\`; \`leftOut\` are paths that a layer cannot hold.

\`\`\`json
{"destination": "docker://…", "digest": "sha256:…",
 "images": [{"platform": {"os": "linux", "architecture": "amd64"}, "before": "sha256:…", "manifest": "sha256:…", "how": "exact",
             "layers": [{"layer": "sha256:…", "size": 947383, "diffID": "sha256:…"}], "leftOut": []}]}
\`\`\``,
  "index create": `One object for each image. \`index\` is a descriptor, or null where no layer can be indexed; \`layers\` as in \`convert\`.

\`\`\`json
{"platform": {"os": "linux", "architecture": "amd64"}, "manifest": "sha256:…", "index": {"mediaType": "…", "digest": "sha256:…", "size": 1648}, "layers": []}
\`\`\``,
  "index push": `One object for each image. \`pushed\` is a descriptor, or null with a \`reason\`; \`existing\` are the indexes that the image had there before.

\`\`\`json
{"platform": {"os": "linux", "architecture": "amd64"}, "manifest": "sha256:…", "pushed": {"mediaType": "…", "digest": "sha256:…", "size": 1648}, "reason": null, "existing": []}
\`\`\``,
  "index ls": `One object for each index. \`version\` 2 is bound by the image's manifest, 1 refers to it. One that cannot be read has a \`reason\`.

\`\`\`json
{"version": 1, "platform": {"os": "linux", "architecture": "amd64"}, "manifest": "sha256:…", "index": {"mediaType": "…", "digest": "sha256:…", "size": 1648}, "ztocs": 3, "prefetch": 0, "buildTool": "headstart 0.1.0", "reason": null}
\`\`\``,
  "index rm": `\`\`\`json
{"removed": ["sha256:…"], "dryRun": false}
\`\`\``,
  "image ls": "One object an entry: `name`, and the fields of [tree lines](formats.md#tree-lines) without `sha256`.",
  "image tree": "One object an entry: [tree lines](formats.md#tree-lines).",
  "image stat":
    "One object: the fields of [tree lines](formats.md#tree-lines) without `sha256`, `layer` (position, 0 is the lowest) and `layer_digest`.",
  inspect:
    "One object. `kind` is `ztoc`, `soci-index`, `soci-prefetch`, `oci-index`, `oci-manifest`, `oci-config`, `erofs`, `layer-blob`, `rafs-bootstrap`, `rafs-image`, `nydus-blob`, `volume` or `volume-manifest`; the other fields are what such a thing says. Of a source `digest` and `size` too; of a Nydus image `nydus`, of an index that holds such `nydusForms`: `[{manifest, platform, bootstrap, problem}]`.",
  check: `One object. \`what\` is \`missing\`, \`extra\` or the attribute that differs; \`left\` is the plain unpack, \`right\` headstart. \`nydus\` is null for an image without a Nydus form; \`rule\` is \`manifest\`, \`config\`, \`bootstrap\`,
\`data\` or \`tree\`, \`code\` an [error](errors.md) or null, \`against\` the OCI image that it was compared with, or null. \`equal\`: no difference and no finding.

\`\`\`json
{"equal": false, "entries": 12034, "bytes": 336102912, "differences": [{"path": "/etc/motd", "what": "mode", "left": "0644", "right": "0600"}],
 "nydus": {"manifest": "sha256:…", "against": "sha256:…", "findings": [{"rule": "data", "code": "HS_UNIT_DIGEST", "message": "…"}],
           "checked": ["manifest", "config", "bootstrap", "data"], "entries": 12034, "bytes": 0}}
\`\`\``,
  "volume build":
    "One object for each volume: `output`, with `--dry-run` also `dryRun` and `sizes`, else `previous` (null, or `{kept, moved | reason}`), and the volume manifest: `{schema, target, platform, snapshotter, images: [{refs, digest, mediaType, manifest, config, pinned, layers}], snapshotSequence, options, tool}`, of a disk also `{plan, size, diskGuid, fs, regions, hot, blocks: {size, count, linear}}`.",
  "volume doctor":
    "One object: `{ok, findings: [{check, level, what, advice, where}], unread: [{value, where}]}`; `level` is `ok`, `warn`, `fail` or `unknown`.",
  "volume estimate":
    "One object: `{volume, layers: [{digest, chainID, blobBytes, unpackedBytes, from, kept}], usedBytes, sizeGib, nodeSizeGib, push: {blocks, bytes, secondsAtLeast, dollars, storageDollarsMonth}, nodes: {seconds: {default, atRate, hotDefault}, rate, rateDollarsPerNode, fastRestore}}`; `from` is `built`, `gzip` or `guess`.",
  "volume inspect":
    "One object `{kind, schemaVersion, namespaces: [{name, images, blobs, snapshots}], overlayfs: [{id, name, kind, parent, inodes, size}], disk}`; `disk` is null for a directory, else `{size, partition, uuid, bytes, freeBytes, root}`.",
  "volume diff":
    "One object `{names: {added, removed, changed}, layers: {added, removed, moved, kept}, blocks: {blockSize, used, changed, causes: [{cause, digest, blocks}], put: {dollars, dollarsPer1000, secondsAtLeast}}}`; `blocks` is null where one of them is no disk.",
  "volume verify":
    "One object `{ok, kind, provenance, checked: {images, names, blobs, snapshots, provenSnapshots, files, bytes, blocks}, unproven: [{what, why, count}], differenceCount, differences: [{place, rule, message}]}`: at most 20 differences, all of them in `differenceCount`.",
  "volume push": `One object. \`content\` names what the snapshot holds, as its tag \`headstart.dev/volume\` does; \`unchanged\`: the parent held it already and is the answer. \`blocks\`: \`total\` of the file that are not zero, \`freed\` kept of the parent where
the volume uses nothing, \`changed\` against the parent, \`sent\` now, \`resumed\` there before. With \`--snippet\` also \`snippet\`, a text. With \`--dry-run\` \`{dryRun, unchanged, parent, region, volumeSizeGiB, sizeBytes, blocks, estimate: {blocks, bytes, secondsAtLeast, dollars,
storageDollarsMonth}, readBack: {blocks, dollars}, wouldDelete, kept}\`.

\`\`\`json
{"snapshot": "snap-…", "unchanged": false, "status": "completed", "parent": null, "region": "eu-central-1", "content": "sha256:…", "sizeBytes": 21474836480, "volumeSizeGiB": 20,
 "blocks": {"total": 12034, "freed": 0, "changed": 12034, "sent": 12034, "resumed": 0}, "sentBytes": 6309281792, "requests": 12040, "retries": 0, "inFlightMax": 64, "seconds": 12.6,
 "name": "app", "fastRestore": [{"zone": "eu-central-1a", "state": "enabling"}], "ssmParameter": {"name": "/warm/app", "version": 3}, "deleted": ["snap-…"], "kept": [{"snapshot": "snap-…", "why": "younger than 7 days"}]}
\`\`\``,
  "volume pull":
    "One object `{snapshot, region, path, sizeBytes, volumeSizeGiB, blocks, content, verified, requests, retries, seconds}`. `verified` is true when the snapshot's tag named the content, null where it has none.",
  status: "One object `{images, layers, mounts}`: the [status API](operations.md#status) of the daemon.",
};

function helpText(command: Command): string {
  let text = "";
  command.configureOutput({
    getOutHelpWidth: () => 100,
    writeOut: (part) => {
      text += part;
    },
  });
  command.outputHelp();
  return text.trim();
}

function section(command: Command, path: string): string[] {
  const shape = JSON_SHAPES[path];
  const own = `## headstart ${path}\n\n\`\`\`\n${helpText(command)}\n\`\`\`\n${shape === undefined ? "" : `\n\`--json\`: ${shape}\n`}`;
  return [own, ...command.commands.flatMap((child) => section(child, `${path} ${child.name()}`))];
}

export function cliPage(): string {
  const program = buildProgram();
  return `# Command line

From a checkout the command is \`bin/headstart\`; installed it is \`headstart\`.

- Standard output has the answer alone: text for people, or with \`--json\` one object (or one object a line, for lists). Progress, notes and errors go to standard error; no progress when that is no terminal.
- Exit status: 0 success; 1 the answer is no (\`check\` found a difference); 2 wrong usage; 3 the work failed.
- An error is two lines: \`headstart: [CODE] what and where\`, then what to do. Codes are stable: [errors](errors.md). \`--debug\` adds where in the program it arose.
- Registry access is taken from where it already is: \`docker login\` files and credential helpers, or \`--creds\`; mirrors, plain HTTP and own authorities from containerd's \`hosts.toml\` directories.

Written by \`npm run pages\` from the help texts.

\`\`\`
${helpText(program)}
\`\`\`

${program.commands.flatMap((command) => section(command, command.name())).join("\n")}`;
}

/** Commands that print JSON and those that are described: the same, as a test demands. */
export function describedShapes(): string[] {
  return Object.keys(JSON_SHAPES);
}
