/**
 * Whether a Nydus image is sound, by the rules of `nydusify check` (specs/nydus.md 1.1) and stricter: manifest, configuration, bootstrap, every chunk that a file uses, and the tree against the
 * OCI image that it was made of. What a rule says no to is a finding, and the next rule is looked at; that something cannot be reached is an error.
 */

import { isDeepStrictEqual } from "node:util";
import type { Digest } from "../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { compareTreeLines, type TreeDifference, type TreeLine, treeLines } from "../erofs/tree-lines.ts";
import type { NydusBootstrap } from "../formats/nydus/bootstrap.ts";
import { isNydusManifest, readNydusManifest } from "../formats/nydus/manifest.ts";
import { field } from "../oci/json.ts";
import type { LoadedImage, Manifest } from "../oci/manifest.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import type { ImageReader } from "../oci/store.ts";
import { lookIntoImage } from "./look.ts";
import { type NydusParts, openNydusContent, openNydusImage, openRafs } from "./look-nydus.ts";
import { findNydus, findOci } from "./siblings.ts";

export type NydusRule = "manifest" | "config" | "bootstrap" | "data" | "tree";

export interface NydusFinding {
  readonly rule: NydusRule;
  /** Of the catalogue, where reading failed. */
  readonly code: string | null;
  readonly message: string;
}

export interface NydusCheck {
  readonly findings: readonly NydusFinding[];
  /** What could be looked at; a rule is left out when one before it failed so that there is nothing to look at. */
  readonly checked: readonly NydusRule[];
  readonly entries: number;
  /** Of all files together, each verified by its chunks' digests. */
  readonly bytes: number;
}

export interface NydusCheckOptions {
  /** The OCI image whose tree and configuration must be the same. */
  readonly against?: { readonly reader: ImageReader; readonly image: LoadedImage } | undefined;
  /** Differences of the trees that are told. */
  readonly limit?: number;
  /** Paths whose differences are not told, with all below them. */
  readonly ignore?: readonly string[] | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onRule?: (rule: NydusRule) => void;
}

export interface NydusFormCheck extends NydusCheck {
  /** Null for a bootstrap beside a folder of blobs. */
  readonly manifest: Digest | null;
  /** The OCI image that it was compared with. */
  readonly against: Digest | null;
}

const DIFFERENCES_MAX = 100;

/**
 * Checks the Nydus form of `image`: the image itself, or what stands beside an OCI image; null where there is none. Compared with `against`, else with the OCI image beside it. Throws as
 * `checkNydus`.
 */
export async function checkNydusForm(
  reader: ImageReader,
  image: LoadedImage,
  options: NydusCheckOptions = {},
): Promise<NydusFormCheck | null> {
  const { signal } = options;
  const isNydus = isNydusManifest(image.manifest);
  const form = isNydus ? image : (await findNydus(reader, image, { referrers: true, signal }))?.loaded;
  if (form === undefined) return null;
  const oci = isNydus ? (await findOci(reader, image, signal))?.loaded : image;
  const against = options.against ?? (oci === undefined ? undefined : { reader, image: oci });
  return {
    manifest: form.manifestDescriptor.digest,
    against: against?.image.manifestDescriptor.digest ?? null,
    ...(await checkNydus(reader, form, { ...options, against })),
  };
}

/** `rafs:BOOTSTRAP:BLOBDIR`: the rules that need no manifest. Throws as `checkNydus`. */
export async function checkRafs(
  source: { readonly bootstrap: string; readonly blobs: string },
  options: NydusCheckOptions = {},
): Promise<NydusFormCheck> {
  const check = new Check(options);
  await check.parts(() => openRafs(source));
  return { manifest: null, against: options.against?.image.manifestDescriptor.digest ?? null, ...check.result() };
}

/** Throws HS_REGISTRY_* and what an image to compare with throws. */
export async function checkNydus(
  reader: ImageReader,
  image: LoadedImage,
  options: NydusCheckOptions = {},
): Promise<NydusCheck> {
  const { against, signal } = options;
  const check = new Check(options);
  await check.rule("manifest", (say) => {
    checkManifest(image.manifest, say);
    readNydusManifest(image.manifest, `manifest ${image.manifestDescriptor.digest}`);
  });
  if (against !== undefined) await check.rule("config", (say) => checkConfig(image, against.image, say));
  await check.parts(() => openNydusImage(reader, image, signal));
  return check.result();
}

type Say = (message: string) => void;

/** One run over the rules: what each found, and what was looked at. */
class Check {
  readonly #options: NydusCheckOptions;
  readonly #findings: NydusFinding[] = [];
  readonly #checked: NydusRule[] = [];
  #entries = 0;
  #bytes = 0;

  constructor(options: NydusCheckOptions) {
    this.#options = options;
  }

  result(): NydusCheck {
    return { findings: this.#findings, checked: this.#checked, entries: this.#entries, bytes: this.#bytes };
  }

  /** Null when the work could not be done for what is wrong with the image. */
  async rule<T>(rule: NydusRule, work: (say: Say) => Promise<T> | T): Promise<T | null> {
    this.#options.onRule?.(rule);
    this.#checked.push(rule);
    try {
      return await work((message) => this.#findings.push({ rule, code: null, message }));
    } catch (error) {
      if (!isHeadstartError(error) || !isAnswer(error)) throw error;
      this.#findings.push({ rule, code: error.code, message: String(error.details.what) });
      return null;
    }
  }

  /** Bootstrap, data and tree. */
  async parts(open: () => Promise<NydusParts>): Promise<void> {
    const { against, signal } = this.#options;
    const parts = await this.rule("bootstrap", open);
    if (parts === null) return;
    const { tree } = parts.bootstrap;
    this.#entries = tree.childInode.length + 1;
    const hashes = await this.rule("data", () => hashAll(parts, signal));
    if (hashes === null) return;
    for (const inode of hashes.keys()) this.#bytes += tree.size[inode]!;
    if (against === undefined) return;
    await this.rule("tree", async (say) => {
      const ours = await linesOf(parts.bootstrap, hashes);
      const theirs = await plainLines(against.reader, against.image, signal);
      const differences = compareTreeLines(theirs, ours).filter(({ path }) => !this.#isIgnored(path));
      for (const difference of differences.toSorted(byPath).slice(0, this.#options.limit ?? DIFFERENCES_MAX))
        say(describeDifference(difference));
    });
  }

  #isIgnored(path: string): boolean {
    return (this.#options.ignore ?? []).some((root) => path === root || path.startsWith(`${root.replace(/\/$/, "")}/`));
  }
}

/** A thing of the image that is wrong or not there, not a thing of the way to it. */
function isAnswer({ code, kind }: HeadstartError): boolean {
  return code === "HS_BLOB_NOT_FOUND" || kind === "corrupt" || kind === "unsupported" || kind === "invalid";
}

/** What reading a manifest does not mind: containerd unpacks this layer, and other tools take nothing but gzip. */
function checkManifest(manifest: Manifest, say: Say): void {
  const last = manifest.layers.at(-1);
  if (
    last !== undefined &&
    last.mediaType !== MEDIA_TYPES.ociLayerGzip &&
    last.mediaType !== MEDIA_TYPES.dockerLayerGzip
  )
    say(`the bootstrap layer ${last.digest} is ${last.mediaType}: a tar.gz is wanted`);
}

function checkConfig(image: LoadedImage, source: LoadedImage, say: Say): void {
  const [ours, theirs] = [image, source].map(({ config }) => field(config.document, "config") ?? {});
  if (!isDeepStrictEqual(ours, theirs))
    say(`its "config" is not that of the OCI image: ${JSON.stringify(ours)}, there ${JSON.stringify(theirs)}`);
}

/** Every chunk of every file, fetched and verified. */
async function hashAll(parts: NydusParts, signal: AbortSignal | undefined): Promise<Map<number, string>> {
  const content = await openNydusContent(parts, new Set(parts.bootstrap.blobs.keys()), signal);
  return await content.hashAll(signal);
}

async function linesOf({ tree }: NydusBootstrap, hashes: ReadonlyMap<number, string>): Promise<TreeLine[]> {
  const lines: TreeLine[] = [];
  for await (const line of treeLines(tree, { sha256: (inode) => hashes.get(inode)! })) lines.push(comparable(line));
  return lines;
}

async function plainLines(
  reader: ImageReader,
  image: LoadedImage,
  signal: AbortSignal | undefined,
): Promise<TreeLine[]> {
  if (isNydusManifest(image.manifest))
    throw new HeadstartError("HS_USAGE", {
      what: `${reader.what}: a Nydus image; an OCI image to compare with is wanted`,
    });
  const looked = await lookIntoImage(reader, image, { hashContents: true, signal });
  const { tree, layer, inode: own } = looked.merged;
  const sha256 = (inode: number) => looked.layers[layer[inode]!]!.contentSha256!(own[inode]!);
  const lines: TreeLine[] = [];
  for await (const line of treeLines(tree, { sha256 })) lines.push(comparable(line));
  return lines;
}

/**
 * What `nydusify check` compares: not times and link counts, which the peer's builder does not keep, nor trusted.* xattrs, which no unpack keeps. The root's own attributes are no layer's.
 */
function comparable(line: TreeLine): TreeLine {
  const { nlink: _nlink, linked_with: _linked, xattrs, ...rest } = line;
  const kept = Object.entries(xattrs ?? {}).filter(([name]) => !name.startsWith("trusted."));
  const isRoot = line.path === "/";
  return {
    ...rest,
    mtime_ns: null,
    ...(isRoot && { mode: "0755", uid: 0, gid: 0 }),
    ...(kept.length > 0 && { xattrs: Object.fromEntries(kept) }),
  };
}

function byPath(a: TreeDifference, b: TreeDifference): number {
  return a.path < b.path ? -1 : a.path > b.path ? 1 : 0;
}

function describeDifference({ path, key, expected, got }: TreeDifference): string {
  if (key === "missing") return `${path} is missing`;
  if (key === "extra") return `${path} is not in the OCI image`;
  const show = (value: unknown) => (typeof value === "string" ? value : (JSON.stringify(value) ?? "none"));
  return `${path}: ${key} is ${show(got)}, in the OCI image ${show(expected)}`;
}
