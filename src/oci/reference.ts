/**
 * References as users and containerd write them, and the places that images come from (design/cli.md, "Sources and destinations").
 * Normalisation is Docker's (distribution/reference): no host means docker.io, one word means library/. Pure.
 */

import { type Digest, isDigest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { defined } from "./json.ts";

export interface ImageReference {
  /** "docker.io", "ghcr.io", "localhost:5000", "[::1]:5000": never empty, lower case. */
  readonly host: string;
  readonly repository: string;
  readonly tag?: string;
  readonly digest?: Digest;
}

export type ImageSource =
  | { readonly kind: "registry"; readonly reference: ImageReference }
  | { readonly kind: "layout"; readonly directory: string; readonly tag?: string; readonly digest?: Digest }
  | { readonly kind: "archive"; readonly file: string; readonly tag?: string; readonly digest?: Digest }
  | { readonly kind: "containerd"; readonly reference: string }
  | { readonly kind: "rafs"; readonly bootstrap: string; readonly blobs: string };

/** As distribution/reference: 255 characters of name, 128 of tag. */
const NAME_MAX = 255;
const TEXT_MAX = 4096;
const HOST =
  /^(?:(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)(?:\.(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?))*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?$/i;
const REPOSITORY = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$/;
const TAG = /^\w[\w.-]{0,127}$/;

export const DEFAULT_TAG = "latest";

/** Reads `[HOST/]REPO[:TAG][@DIGEST]`; without tag and digest the tag is "latest". Throws HS_REFERENCE. */
export function parseReference(text: string): ImageReference {
  if (text.length === 0 || text.length > TEXT_MAX) throw refuse(text, "empty or too long");
  let rest = text;
  let digest: Digest | undefined;
  const at = rest.indexOf("@");
  if (at >= 0) {
    const digestText = rest.slice(at + 1);
    if (!isDigest(digestText)) throw refuse(text, "what follows @ is no digest");
    digest = digestText;
    rest = rest.slice(0, at);
  }
  let tag: string | undefined;
  const colon = rest.lastIndexOf(":");
  if (colon > rest.lastIndexOf("/")) {
    tag = rest.slice(colon + 1);
    rest = rest.slice(0, colon);
    if (!isTag(tag)) throw refuse(text, "what follows : is no tag");
  }
  const { host, repository } = splitName(rest);
  if (!HOST.test(host) || Number(/:(\d+)$/.exec(host)?.[1] ?? 0) > 65_535) throw refuse(text, "no host name");
  if (repository.length + host.length + 1 > NAME_MAX) throw refuse(text, `a name of more than ${NAME_MAX} characters`);
  if (!REPOSITORY.test(repository)) throw refuse(text, "a repository name is lower case letters, digits and . _ - /");
  if (tag === undefined && digest === undefined) tag = DEFAULT_TAG;
  // an upper case letter may be all that makes it a host: in lower case it would be read as a path of docker.io the next time
  const told = /[.:[]/.test(host) ? host.toLowerCase() : host;
  return defined<ImageReference>({ host: told, repository, tag, digest });
}

function splitName(name: string): { host: string; repository: string } {
  const slash = name.indexOf("/");
  const first = slash < 0 ? "" : name.slice(0, slash);
  // a first part is a host if it cannot be a path: a dot, a port, "localhost" or an upper case letter
  const isHost = /[.:[]/.test(first) || first === "localhost" || first !== first.toLowerCase();
  let host = isHost ? first : "docker.io";
  let repository = isHost ? name.slice(slash + 1) : name;
  if (host === "index.docker.io") host = "docker.io";
  if (host === "docker.io" && !repository.includes("/")) repository = `library/${repository}`;
  return { host, repository };
}

export function isTag(text: string): boolean {
  return TAG.test(text);
}

/** Whole form, as containerd names images: docker.io/library/busybox:latest. */
export function formatReference(reference: ImageReference): string {
  const tag = reference.tag === undefined ? "" : `:${reference.tag}`;
  const digest = reference.digest === undefined ? "" : `@${reference.digest}`;
  return `${reference.host}/${reference.repository}${tag}${digest}`;
}

/** Reads a source or destination. Throws HS_REFERENCE. */
export function parseSource(text: string): ImageSource {
  if (text.length > TEXT_MAX) throw refuse(text, "too long");
  if (text.startsWith("docker://")) return { kind: "registry", reference: parseReference(text.slice(9)) };
  const [scheme, rest] = splitOnce(text, ":");
  switch (scheme) {
    case "oci": {
      if (rest === undefined) break;
      const { path, ...which } = pathAndTag(text, rest);
      return { kind: "layout", directory: path, ...which };
    }
    case "oci-archive":
    case "docker-archive": {
      if (rest === undefined) break;
      const { path, ...which } = pathAndTag(text, rest);
      return { kind: "archive", file: path, ...which };
    }
    case "containerd":
      if (rest === undefined) break;
      if (rest === "") throw refuse(text, "containerd: needs the name of an image");
      return { kind: "containerd", reference: rest };
    case "rafs": {
      if (rest === undefined) break;
      const [bootstrap, blobs] = splitOnce(rest, ":");
      if (bootstrap === "" || !blobs) throw refuse(text, "write rafs:BOOTSTRAP:BLOBDIR");
      return { kind: "rafs", bootstrap, blobs };
    }
  }
  if (/^[a-z][a-z0-9+.-]*:\/\//.test(text)) throw refuse(text, `${scheme}:// is not known`);
  return { kind: "registry", reference: parseReference(text) };
}

/** Another manifest in the same place; null for places where manifests have no digests to be asked by. */
export function sourceAt(source: ImageSource, digest: Digest): ImageSource | null {
  switch (source.kind) {
    case "registry": {
      const { host, repository } = source.reference;
      return { kind: "registry", reference: { host, repository, digest } };
    }
    case "layout":
      return { kind: "layout", directory: source.directory, digest };
    case "archive":
      return { kind: "archive", file: source.file, digest };
    case "containerd":
    case "rafs":
      return null;
  }
}

/** The form that parseSource reads back. */
export function formatSource(source: ImageSource): string {
  const suffix = (which: { tag?: string; digest?: Digest }) =>
    which.digest !== undefined ? `@${which.digest}` : which.tag !== undefined ? `:${which.tag}` : "";
  switch (source.kind) {
    case "registry":
      return `docker://${formatReference(source.reference)}`;
    case "layout":
      return `oci:${source.directory}${suffix(source)}`;
    case "archive":
      return `oci-archive:${source.file}${suffix(source)}`;
    case "containerd":
      return `containerd:${source.reference}`;
    case "rafs":
      return `rafs:${source.bootstrap}:${source.blobs}`;
  }
}

/** `PATH[:TAG]` or `PATH@DIGEST`: the path ends at the first colon, as in skopeo, since a tag may be a whole reference. */
function pathAndTag(text: string, rest: string): { path: string; tag?: string; digest?: Digest } {
  const at = rest.lastIndexOf("@");
  const digest = rest.slice(at + 1);
  if (at > 0 && isDigest(digest) && !rest.slice(0, at).includes(":")) return { path: rest.slice(0, at), digest };
  const [path, tag] = splitOnce(rest, ":");
  if (path === "") throw refuse(text, "a path is missing");
  if (path.includes("\0")) throw refuse(text, "a path holds no NUL");
  if (tag === "") throw refuse(text, "an empty tag");
  return defined<{ path: string; tag?: string }>({ path, tag });
}

function splitOnce(text: string, separator: string): [string, string | undefined] {
  const index = text.indexOf(separator);
  return index < 0 ? [text, undefined] : [text.slice(0, index), text.slice(index + separator.length)];
}

function refuse(text: string, why: string): HeadstartError {
  return new HeadstartError("HS_REFERENCE", { what: `${JSON.stringify(text.slice(0, 300))}: ${why}` });
}
