/**
 * Referrers (distribution-spec 1.1, end-12a/b): manifests whose `subject` is a given digest. Asks the API; where there is none, reads the
 * fallback tag `<algorithm>-<hex>`, an index that pushers keep up by read, modify, write. Whatever is listed is a hint by whoever may push.
 */

import { type Digest, digestAlgorithm, digestHex } from "../../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { LIMITS } from "../../base/limits.ts";
import type { Descriptor } from "../descriptor.ts";
import { goIndex } from "../gojson.ts";
import { defined } from "../json.ts";
import { parseIndex, parseManifest } from "../manifest.ts";
import { isIndexType, MEDIA_TYPES } from "../media-types.ts";
import type { ReferrersOptions } from "../store.ts";
import { repositoryScope } from "./auth/scope.ts";
import type { Repository } from "./client.ts";
import { readSmallBody, registryError } from "./errcode.ts";
import type { HostAnswer, HostClient } from "./host-client.ts";
import { nextPage } from "./link.ts";
import type { Patience } from "./transport/transport.ts";

/** What is read of a list that others can make as long as they like. */
const PAGES_MAX = 20;
const REFERRERS_MAX = 5000;

/** At most 32 characters of algorithm, a dash, and 64 of hash. */
export function fallbackTag(subject: Digest): string {
  return `${digestAlgorithm(subject).slice(0, 32)}-${digestHex(subject).slice(0, 64)}`;
}

export async function listReferrers(
  repository: Repository,
  subject: Digest,
  options: ReferrersOptions,
): Promise<Descriptor[]> {
  const what = `${repository.what}: referrers of ${subject}`;
  let all: Descriptor[] | undefined;
  // hosts.toml files from before containerd 2.2 do not name this capability
  if (repository.can("referrers")) {
    try {
      all = await repository.tryHosts("referrers", options.signal, async (host, patience) => {
        const listed = await askApi(repository, host, subject, options, patience);
        // a mirror without the API is no reason not to ask the registry behind it
        if (listed === undefined) throw new HeadstartError("HS_NOT_FOUND", { what: `${what}: no such API` });
        return listed;
      });
    } catch (error) {
      if (!isHeadstartError(error, "HS_NOT_FOUND")) throw error;
    }
  }
  all ??= await readFallback(repository, subject, options.signal);
  return matching(all, options.artifactType);
}

/** The registry may have filtered or not: whether it says so does not matter to who filters again. */
function matching(all: readonly Descriptor[], artifactType: string | undefined): Descriptor[] {
  const seen = new Set<Digest>();
  return all.filter((one) => {
    if (seen.has(one.digest) || (artifactType !== undefined && one.artifactType !== artifactType)) return false;
    seen.add(one.digest);
    return true;
  });
}

/** undefined: this registry has no such API. */
async function askApi(
  repository: Repository,
  host: HostClient,
  subject: Digest,
  options: ReferrersOptions,
  patience: Patience,
): Promise<Descriptor[] | undefined> {
  const what = `${repository.what}: referrers of ${subject}`;
  const found: Descriptor[] = [];
  const query = options.artifactType === undefined ? {} : { artifactType: options.artifactType };
  let url: URL | undefined = host.url(repository.name, `referrers/${subject}`, query);
  for (let page = 0; url !== undefined && page < PAGES_MAX && found.length < REFERRERS_MAX; page++) {
    const { response }: HostAnswer = await host.follow(url, {
      method: "GET",
      kind: "referrers",
      repository: repository.name,
      scopes: [repositoryScope(repository.name, "pull")],
      headers: { accept: MEDIA_TYPES.ociIndex, "accept-encoding": "identity" },
      patience,
      signal: options.signal,
    });
    // registries before 1.1: 404; some answer 400 or 405 for a path they do not know
    if (page === 0 && [404, 400, 405].includes(response.status)) {
      await response.discard();
      return undefined;
    }
    if (response.status !== 200) throw await registryError(response, what);
    const type = response.header("content-type") ?? "";
    const next: URL | undefined = nextPage(response, url, host);
    const body = await readSmallBody(response, LIMITS.manifestBytes);
    if (body === undefined) throw new HeadstartError("HS_LIMIT", { what: `${what}: a page is too long` });
    // a web page of a proxy that answers 200 to everything is no referrers API
    if (page === 0 && !type.toLowerCase().includes("json")) return undefined;
    found.push(...parseIndex(body, what).manifests);
    url = next;
  }
  return found.slice(0, REFERRERS_MAX);
}

async function readFallback(
  repository: Repository,
  subject: Digest,
  signal: AbortSignal | undefined,
): Promise<Descriptor[]> {
  try {
    const { bytes, descriptor } = await repository.fetchManifest(fallbackTag(subject), signal);
    if (!isIndexType(descriptor.mediaType)) return [];
    return [...parseIndex(bytes, `${repository.what}:${fallbackTag(subject)}`).manifests];
  } catch (error) {
    if (isHeadstartError(error, "HS_NOT_FOUND")) return [];
    throw error;
  }
}

/**
 * After a push of `manifest`: if it has a subject and the registry did not say (OCI-Subject) that it keeps the list, adds it to the
 * fallback tag's index. Two pushers at once may lose one entry, as the spec knows: after writing, the tag is read back and the entry added again
 * if it is gone.
 */
export async function recordReferrer(
  repository: Repository,
  manifest: Descriptor,
  bytes: Uint8Array,
  subjectHandled: boolean,
  signal: AbortSignal | undefined,
): Promise<void> {
  if (subjectHandled) return;
  const what = `manifest ${manifest.digest}`;
  const entry = isIndexType(manifest.mediaType)
    ? describeIndex(manifest, bytes, what)
    : describeManifest(manifest, bytes, what);
  if (entry === undefined) return;
  // a registry with the API needs no tag even if it did not send OCI-Subject
  if ((await askApi(repository, repository.pushHost, entry.subject, { signal }, "full")) !== undefined) return;
  await editFallback(repository, entry.subject, signal, (before) => {
    return before.some((one) => one.digest === manifest.digest) ? undefined : [...before, entry.descriptor];
  });
}

/** Takes an entry off the fallback tag, for `index rm`. A registry with the API keeps its list itself. */
export async function forgetReferrer(
  repository: Repository,
  subject: Digest,
  digest: Digest,
  signal?: AbortSignal,
): Promise<void> {
  await editFallback(repository, subject, signal, (before) => {
    const rest = before.filter((one) => one.digest !== digest);
    return rest.length === before.length ? undefined : rest;
  });
}

const EDIT_ATTEMPTS = 3;

async function editFallback(
  repository: Repository,
  subject: Digest,
  signal: AbortSignal | undefined,
  edit: (before: readonly Descriptor[]) => readonly Descriptor[] | undefined,
): Promise<void> {
  for (let attempt = 0; attempt < EDIT_ATTEMPTS; attempt++) {
    const after = edit(await readFallback(repository, subject, signal));
    if (after === undefined) return;
    const bytes = goIndex({ mediaType: MEDIA_TYPES.ociIndex, manifests: after });
    await repository.putTagged(bytes, MEDIA_TYPES.ociIndex, fallbackTag(subject), signal);
  }
}

function describeManifest(descriptor: Descriptor, bytes: Uint8Array, what: string) {
  const manifest = parseManifest(bytes, what);
  if (manifest.subject === undefined) return undefined;
  const artifactType = manifest.artifactType ?? manifest.config.mediaType;
  return {
    subject: manifest.subject.digest,
    descriptor: defined<Descriptor>({ ...descriptor, annotations: manifest.annotations, artifactType }),
  };
}

function describeIndex(descriptor: Descriptor, bytes: Uint8Array, what: string) {
  const index = parseIndex(bytes, what);
  if (index.subject === undefined) return undefined;
  const { annotations, artifactType } = index;
  return {
    subject: index.subject.digest,
    descriptor: defined<Descriptor>({ ...descriptor, annotations, artifactType }),
  };
}
