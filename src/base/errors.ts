/**
 * Every error of the program, in one catalogue. A code is stable and documented in docs/errors.md (a test compares the two);
 * its kind is what borders map (gRPC status, errno, exit code), never its message; its hint is the second line that a user reads.
 */

export type ErrorKind =
  | "not-found"
  | "already-exists"
  | "invalid"
  | "precondition"
  | "unsupported"
  | "unavailable"
  | "denied"
  | "exhausted"
  | "corrupt"
  | "canceled"
  | "internal";

interface CatalogueEntry {
  readonly kind: ErrorKind;
  /** One line that says what to do. */
  readonly hint: string;
}

export const ERRORS = {
  // base
  HS_TRUNCATED: { kind: "corrupt", hint: "the data end too early; fetch or make the file again" },
  HS_MALFORMED: { kind: "corrupt", hint: "the data do not follow their format; fetch or make the file again" },
  HS_LIMIT: { kind: "corrupt", hint: "a size or count is beyond what any honest file has; do not use this file" },
  HS_DIGEST_SYNTAX: { kind: "invalid", hint: "a digest looks like sha256:<64 hex digits>" },
  HS_CANCELED: { kind: "canceled", hint: "the caller gave up or the deadline passed; try again" },
  HS_USAGE: { kind: "invalid", hint: "see --help" },
  HS_CONFIG: { kind: "invalid", hint: "mend the configuration file, or run `headstart daemon --print-config`" },
  HS_DISK_FULL: { kind: "exhausted", hint: "free space on the file system of --root or --output, then try again" },
  HS_INTERNAL: { kind: "internal", hint: "this is a fault of headstart: please report it with the log around it" },
  // linux
  HS_SYSCALL: { kind: "internal", hint: "the kernel refused a call; see the errno and `dmesg`" },
  HS_KERNEL_UNSUPPORTED: { kind: "unsupported", hint: "this kernel lacks what is needed; see docs/limits.md" },
  // oci
  HS_REFERENCE: {
    kind: "invalid",
    hint: "write docker://HOST/REPO:TAG, oci:DIR[:TAG], oci-archive:FILE[:TAG] or containerd:REF",
  },
  HS_MANIFEST: { kind: "corrupt", hint: "the manifest or index is not what the OCI image-spec says" },
  HS_PLATFORM: { kind: "not-found", hint: "choose one of the image's platforms with --platform" },
  HS_BLOB_NOT_FOUND: { kind: "not-found", hint: "the registry or layout does not have this blob; push it again" },
  HS_NOT_FOUND: { kind: "not-found", hint: "check the name" },
  HS_DIGEST_MISMATCH: {
    kind: "corrupt",
    hint: "the bytes are not those that the digest names; the registry or a mirror returned wrong data",
  },
  HS_SIZE_MISMATCH: {
    kind: "corrupt",
    hint: "the bytes are more or fewer than the descriptor says; the registry or a mirror returned wrong data",
  },
  HS_REGISTRY_AUTH: {
    kind: "denied",
    hint: "log in (`docker login HOST`), pass --creds, or check the credential helper",
  },
  HS_REGISTRY_DENIED: { kind: "denied", hint: "these credentials may not do this in this repository" },
  HS_REGISTRY_RATE: { kind: "unavailable", hint: "the registry limits requests; wait, or use a mirror" },
  HS_REGISTRY_UNAVAILABLE: {
    kind: "unavailable",
    hint: "the registry cannot be reached or fails; check the network and hosts.toml",
  },
  HS_REGISTRY_PROTOCOL: {
    kind: "unavailable",
    hint: "the registry's answer does not follow the distribution-spec; check proxies and mirrors between",
  },
  HS_REGISTRY_RANGE: {
    kind: "corrupt",
    hint: "the registry returned another range than was asked for; check proxies and mirrors between",
  },
  HS_CREDENTIALS: {
    kind: "denied",
    hint: "a credential source failed; check the docker configuration or the credential helper",
  },
  // formats
  HS_LAYER_REFUSED: { kind: "corrupt", hint: "containerd refuses this layer too; build the image again" },
  HS_UNIT_DIGEST: {
    kind: "corrupt",
    hint: "the registry or a mirror returned wrong bytes, or the index belongs to another blob",
  },
  HS_UNIT_DECODE: {
    kind: "corrupt",
    hint: "the index does not fit its layer; make it again with `headstart index create`",
  },
  HS_INDEX_INVALID: { kind: "corrupt", hint: "the index is not sound; make it again with `headstart index create`" },
  HS_INDEX_MISMATCH: {
    kind: "corrupt",
    hint: "the index was made for another layer; make it again with `headstart index create`",
  },
  HS_NYDUS_INVALID: {
    kind: "corrupt",
    hint: "the Nydus bootstrap or blob is not sound; convert the image again",
  },
  HS_NYDUS_LIMIT: {
    kind: "unsupported",
    hint: "a Nydus image cannot hold this; convert with other options, or squash layers of the source image",
  },
  HS_FORMAT_UNSUPPORTED: { kind: "unsupported", hint: "this format or version is not supported; see docs/formats.md" },
  HS_NOTHING_TO_INDEX: {
    kind: "invalid",
    hint: "every layer is below --min-layer-size or cannot be indexed; lower --min-layer-size",
  },
  // erofs
  HS_EROFS_LIMIT: { kind: "unsupported", hint: "the layer holds something that EROFS cannot represent" },
  HS_EROFS_INVALID: {
    kind: "corrupt",
    hint: "the EROFS image is damaged; remove the container image, and pull it again",
  },
  // layer, fetch
  HS_LAYER_BROKEN: { kind: "corrupt", hint: "see `headstart status`; remove the image and pull it again" },
  HS_CHUNK_UNBOUND: {
    kind: "denied",
    hint: "no image on this node names a digest for it, so it cannot be verified and is not read",
  },
  HS_FILL_TIMEOUT: {
    kind: "unavailable",
    hint: "the registry did not answer in time; check the network, then try again",
  },
  HS_LAYER_STATE: { kind: "precondition", hint: "the layer is not in a state that allows this" },
  HS_DIFFID_MISMATCH: {
    kind: "corrupt",
    hint: "the layer's content is not what the image's configuration names; build or push the image again",
  },
  // image
  HS_IMAGE_UNCLAIMED: {
    kind: "unsupported",
    hint: "containerd pulls this image itself; the reason is in `headstart status`",
  },
  HS_NYDUS_UNUSABLE: {
    kind: "unavailable",
    hint: "this Nydus image cannot be started, and no OCI form stands beside it; name its OCI image, or convert with --merge-index",
  },
  // fuse, mount
  HS_FUSE_PROTOCOL: { kind: "internal", hint: "the kernel spoke an unknown FUSE version; see docs/limits.md" },
  HS_MOUNT: { kind: "internal", hint: "a mount failed; see the errno and `dmesg`" },
  HS_MOUNT_OPTIONS: { kind: "unsupported", hint: "the image has more layers than mount(2) or overlayfs can take" },
  // snapshotter
  HS_SNAPSHOT_NOT_FOUND: { kind: "not-found", hint: "the snapshot does not exist" },
  HS_SNAPSHOT_EXISTS: { kind: "already-exists", hint: "a snapshot of this name exists" },
  HS_SNAPSHOT_KIND: { kind: "precondition", hint: "the snapshot has another kind than this call needs" },
  HS_SNAPSHOT_CHILDREN: { kind: "precondition", hint: "remove the snapshots above it first" },
  HS_SNAPSHOT_INVALID: { kind: "invalid", hint: "the request does not follow containerd's snapshots API" },
  HS_SNAPSHOT_NOT_UNPACKED: {
    kind: "unavailable",
    hint: "containerd cannot unpack this image; the reason says what to mend, and `headstart status` shows it too",
  },
  HS_FILTER: { kind: "invalid", hint: 'a filter looks like kind==active or labels."key"==value' },
  HS_SNAPSHOT_BROKEN: {
    kind: "corrupt",
    hint: "its directory or layer is gone; remove the image and what was made from it, and pull it again",
  },
  HS_STATE_BUSY: { kind: "unavailable", hint: "another headstart daemon uses this --root; stop it first" },
  HS_STATE_DAMAGED: {
    kind: "corrupt",
    hint: "the state database cannot be read; restore it, or empty --root and pull the images again",
  },
  HS_STATE_VERSION: {
    kind: "unsupported",
    hint: "the state was written by a newer headstart; install that version again",
  },
  // volume
  HS_OUTPUT_EXISTS: { kind: "already-exists", hint: "name a path that does not exist: nothing is ever written over" },
  HS_NEEDS_ROOT: { kind: "denied", hint: "run it as root" },
  HS_EXT4_LIMIT: {
    kind: "unsupported",
    hint: "the image holds something that ext4 cannot represent; take it out, or use layout containerd",
  },
  HS_EXT4_FULL: { kind: "exhausted", hint: "choose a larger --size, or --size auto" },
  HS_EXT4_INVALID: { kind: "corrupt", hint: "the file system is damaged; build the volume again" },
  HS_GPT_INVALID: { kind: "corrupt", hint: "the partition table is damaged; build the volume again" },
  HS_KUBECONFIG: {
    kind: "invalid",
    hint: "check --kubeconfig, --context and KUBECONFIG: `kubectl get pods --all-namespaces` must work with them",
  },
  HS_CLUSTER: {
    kind: "unavailable",
    hint: "`kubectl get pods --all-namespaces` must work from here; or name the images with --include",
  },
  HS_DOCTOR_INPUT: {
    kind: "invalid",
    hint: "pass NodeClasses, launch templates, user data, kubelet or containerd configurations, pods or a PATH.json",
  },
  // volume: AWS
  HS_AWS_CREDENTIALS: {
    kind: "denied",
    hint: "set AWS_PROFILE, AWS_ACCESS_KEY_ID, or AWS_ROLE_ARN with AWS_WEB_IDENTITY_TOKEN_FILE; docs/volumes-ebs.md",
  },
  HS_AWS_DENIED: { kind: "denied", hint: "give this identity the right that is named; docs/volumes-ebs.md lists them" },
  HS_AWS_REFUSED: { kind: "invalid", hint: "AWS does not take this request; its reason is in the line above" },
  HS_AWS_NOT_FOUND: { kind: "not-found", hint: "check the id, the region and the account" },
  HS_AWS_RATE: { kind: "unavailable", hint: "AWS limits requests; try again later" },
  HS_AWS_UNAVAILABLE: {
    kind: "unavailable",
    hint: "AWS cannot be reached or fails; check the network, then try again",
  },
  HS_AWS_PROTOCOL: {
    kind: "unavailable",
    hint: "the answer is not what AWS gives; check --endpoint and proxies between",
  },
  HS_EBS_UNFINISHED: {
    kind: "unavailable",
    hint: "the same command with --resume goes on; `aws ec2 delete-snapshot --snapshot-id ID` deletes what there is",
  },
  HS_EBS_STATE: {
    kind: "precondition",
    hint: "push again without --resume, with the volume and the options as they are now",
  },
  HS_EBS_SNAPSHOT: { kind: "precondition", hint: "push again: a new snapshot will be begun" },
  HS_EBS_PARENT: { kind: "precondition", hint: "choose another --parent, or push without one" },
  HS_EBS_BLOCK: { kind: "corrupt", hint: "the bytes are not those that their checksum names; read them again" },
  HS_VOLUME_CHANGED: {
    kind: "corrupt",
    hint: "the file is not what was described or has changed meanwhile; build the volume again",
  },
  // sandbox, cli
  HS_TOOL_MISSING: { kind: "unavailable", hint: "install the named Debian package" },
  HS_CHILD_FAILED: { kind: "internal", hint: "a program that headstart started failed; its last lines are above" },
  HS_CONTAINER_NOT_READY: { kind: "unavailable", hint: "the container did not become ready in time; see its log" },
} as const satisfies Record<string, CatalogueEntry>;

export type ErrorCode = keyof typeof ERRORS;

export interface ErrorDetails {
  /** What we were doing or looking at: "span 41 of layer sha256:…". Becomes part of the message. */
  readonly what: string;
  readonly cause?: unknown;
  /** Anything else that helps, as plain data. Never a secret. */
  readonly [field: string]: unknown;
}

/** The one error class. `message` begins with the code, since people often see only the message. */
export class HeadstartError extends Error {
  readonly code: ErrorCode;
  readonly details: ErrorDetails;

  constructor(code: ErrorCode, details: ErrorDetails) {
    super(`[${code}] ${details.what}`, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = "HeadstartError";
    this.code = code;
    this.details = details;
  }

  get kind(): ErrorKind {
    return ERRORS[this.code].kind;
  }

  get hint(): string {
    return ERRORS[this.code].hint;
  }
}

export function isHeadstartError(error: unknown, ...codes: readonly ErrorCode[]): error is HeadstartError {
  return error instanceof HeadstartError && (codes.length === 0 || codes.includes(error.code));
}

const SQLITE_FULL = 13;

/** The kind of any thrown value: an AbortError is canceled, ENOSPC and EDQUOT are exhausted, unknown ones internal. */
export function kindOf(error: unknown): ErrorKind {
  if (error instanceof HeadstartError) return error.kind;
  if (error instanceof Error) {
    if (error.name === "AbortError" || error.name === "TimeoutError") return "canceled";
    const errno = (error as NodeJS.ErrnoException).code;
    if (errno === "ENOSPC" || errno === "EDQUOT") return "exhausted";
    if (errno === "ENOENT") return "not-found";
    // node:sqlite: the low byte is the primary result code
    if (((error as { errcode?: number }).errcode ?? 0) % 256 === SQLITE_FULL) return "exhausted";
  }
  return "internal";
}

/** "a: b: c" along the chain of causes, for logs and status lines. */
export function describeError(error: unknown): string {
  const parts: string[] = [];
  let current: unknown = error;
  for (let depth = 0; depth < 8 && current !== undefined && current !== null; depth++) {
    parts.push(current instanceof Error ? current.message || current.name : String(current));
    current = current instanceof Error ? current.cause : undefined;
  }
  return parts.filter((part, index) => index === 0 || !parts[index - 1]!.includes(part)).join(": ");
}
