/**
 * The labels of a Prepare, read (specs/containerd.md 4.2). They come from containerd's unpacker, but also from whoever wrote the image: all of this is a claim,
 * which the provider believes only as far as the manifest confirms it. What is malformed or contradicts itself is dropped here, with the reason in words. Pure.
 */

import { type ChainID, chainIDs, type Digest, isDigest } from "../base/digest.ts";
import type { OfferRequest } from "./provider.ts";
import { type Labels, REF_LABEL } from "./store.ts";

const PREFIX = "containerd.io/snapshot/";
const IMAGE_REF = `${PREFIX}cri.image-ref`;
const MANIFEST_DIGEST = `${PREFIX}cri.manifest-digest`;
const LAYER_DIGEST = `${PREFIX}cri.layer-digest`;
const IMAGE_LAYERS = `${PREFIX}cri.image-layers`;
const DIFF_ID = `${PREFIX}diff-id`;
const PARENT_CHAIN_ID = `${PREFIX}parent-chain-id`;

/** Annotations of layers that are no tar for an unpacker: containerd passes them on (specs/nydus.md 1.1). */
const NOT_TO_BE_UNPACKED = [`${PREFIX}nydus-blob`, `${PREFIX}nydus-bootstrap`];

/** References are at most 255 + 1 + 255 + 1 + 128 + 1 + 135 characters (distribution-spec, image names). */
const REFERENCE_CHARACTERS_MAX = 1024;

export type Extraction =
  /** A container's own snapshot, or a client that does not ask for remote snapshots. */
  | { readonly kind: "none" }
  /** It is an extraction, but cannot be claimed whatever the provider says. */
  | { readonly kind: "refused"; readonly reason: string }
  | {
      readonly kind: "request";
      readonly offer: Omit<OfferRequest, "parents">;
      /** What is missing or wrong, for the reason of a "no". */
      readonly problems: readonly string[];
    };

export interface PrepareContext {
  /** The metadata header `containerd-namespace`; containerd 1.6 leaves it out at `ctr`'s Prepare. */
  readonly namespace: string | null;
  readonly key: string;
  readonly parent: string;
  readonly labels: Labels;
}

export function readExtraction(context: PrepareContext): Extraction {
  const { labels } = context;
  const target = label(labels, REF_LABEL);
  if (target === undefined) return { kind: "none" };
  if (!isDigest(target)) return { kind: "refused", reason: `${REF_LABEL} is not a digest` };
  const contradiction = chainContradiction(context, target);
  if (contradiction !== null) return { kind: "refused", reason: contradiction };
  const problems: string[] = [];
  const digest = (name: string): Digest | null => {
    const value = label(labels, name);
    if (value === undefined) problems.push(`no label ${name}`);
    else if (!isDigest(value)) problems.push(`label ${name} is not a digest`);
    else return value;
    return null;
  };
  const reference = readReference(labels, problems);
  const manifestDigest = digest(MANIFEST_DIGEST);
  const layerDigest = digest(LAYER_DIGEST);
  // the list holds this layer and the following ones: two labels that disagree were not both written by containerd
  const first = label(labels, IMAGE_LAYERS)?.split(",", 1)[0];
  if (first !== undefined && layerDigest !== null && first !== layerDigest) {
    return { kind: "refused", reason: `labels ${LAYER_DIGEST} and ${IMAGE_LAYERS} contradict each other` };
  }
  return {
    kind: "request",
    offer: { namespace: namespaceOf(context), target: target as ChainID, reference, manifestDigest, layerDigest },
    problems,
  };
}

/**
 * The namespace of a call: the header, else the first part of containerd's backend keys `<namespace>/<n>/<key>`. Only a hint where to ask containerd for content; null
 * where there is none.
 */
export function namespaceOf(context: { namespace: string | null; key: string }): string | null {
  return context.namespace ?? /^([A-Za-z0-9][\w.-]{0,75})\/\d+\//.exec(context.key)?.[1] ?? null;
}

/** In words, what an administrator does about missing labels (specs/containerd.md 3.2, 3.3). */
export function explainProblems(problems: readonly string[]): string {
  if (problems.length === 0) return "";
  const missing = problems.filter((problem) => problem.startsWith("no label")).length;
  if (missing < 3) return problems.join("; ");
  return "containerd sent no image labels: set disable_snapshot_annotations = false for CRI (ctr before 2.1 never sends them)";
}

function readReference(labels: Labels, problems: string[]): string | null {
  const value = label(labels, IMAGE_REF);
  if (value === undefined) {
    problems.push(`no label ${IMAGE_REF}`);
    return null;
  }
  if (value.length > REFERENCE_CHARACTERS_MAX || !/^[\x21-\x7e]+$/.test(value)) {
    problems.push(`label ${IMAGE_REF} is not a reference`);
    return null;
  }
  return value;
}

/** containerd 2.3 and newer say diffID and parent chainID as well: then all three must fit together. */
function chainContradiction(context: PrepareContext, target: Digest): string | null {
  const parentChain = label(context.labels, PARENT_CHAIN_ID) ?? "";
  // layers prepared side by side, without parents (capability `rebase`): a claim would be recorded without its parent (specs/containerd.md 4.5)
  if (parentChain !== "" && context.parent === "") {
    return "containerd prepares layers in parallel (rebase): they cannot be claimed";
  }
  const diffID = label(context.labels, DIFF_ID);
  if (diffID === undefined) return null;
  if (!isDigest(diffID) || (parentChain !== "" && !isDigest(parentChain))) return `label ${DIFF_ID} is not a digest`;
  const chain = parentChain === "" ? [diffID] : [parentChain as Digest, diffID];
  const fits = context.parent !== "" && parentChain === "" ? true : chainIDs(chain).at(-1) === target;
  return fits ? null : `labels ${DIFF_ID} and ${PARENT_CHAIN_ID} do not make ${REF_LABEL}`;
}

/** True for a layer whose unpacked form would be wrong or impossible: part of a Nydus image. */
export function isNeverUnpacked(labels: Labels): boolean {
  return NOT_TO_BE_UNPACKED.some((name) => label(labels, name) === "true");
}

function label(labels: Labels, key: string): string | undefined {
  return Object.hasOwn(labels, key) ? labels[key] : undefined;
}
