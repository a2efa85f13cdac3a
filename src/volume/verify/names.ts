/** Records of images: what a name points to, its labels, and that names are those that kubelet asks for (specs/warm-volume.md 5.3). */

import type { Digest } from "../../base/digest.ts";
import { describeError } from "../../base/errors.ts";
import { parseReference } from "../../oci/reference.ts";
import { normalizeName } from "../images.ts";
import type { Findings } from "./findings.ts";
import type { StoredImage } from "./graph.ts";
import type { ImageRecord } from "./meta-db.ts";

const MANAGED = "io.cri-containerd.image";
export const PINNED = "io.cri-containerd.pinned";

/** `blob`: what the target really is, as far as it is there. */
export function checkRecord(
  record: ImageRecord,
  blob: { readonly size: number | null; readonly mediaType: string | undefined },
  findings: Findings,
): void {
  const { mediaType, size } = record.target;
  if (size !== null && blob.size !== null && size !== blob.size) {
    findings.differs("image", `${record.place}/target`, "the size", size, blob.size);
  }
  const said = blob.mediaType;
  if (said !== undefined && said !== mediaType) {
    findings.differs("image", `${record.place}/target`, "the media type", mediaType, said);
  }
  if (record.labels.get(MANAGED) !== "managed") {
    findings.differs("image", record.place, MANAGED, record.labels.get(MANAGED), "managed");
  }
  for (const [name, value] of record.labels) {
    if (name === MANAGED || (name === PINNED && value === "pinned")) continue;
    if (name.startsWith("containerd.io/gc.") || name.startsWith("io.cri-containerd.")) {
      findings.add("image", record.place, `${name}=${value} is no label of an image on a volume`);
    } else findings.open("labels of images", "neither containerd nor kubelet reads them");
  }
}

/** Names are those that kubelet asks for; every image has its id beside them. */
export function checkNames(
  records: readonly ImageRecord[],
  images: ReadonlyMap<Digest, readonly StoredImage[]>,
  findings: Findings,
): void {
  const ids = new Set([...images.values()].flatMap((found) => found.map((image) => image.config)));
  const names = new Set(records.map((record) => record.name));
  const pinned = new Map<Digest, boolean>();
  for (const record of records) {
    const { digest } = record.target;
    const isPinned = record.labels.has(PINNED);
    if (pinned.has(digest) && pinned.get(digest) !== isPinned && !/^sha\d+:/.test(record.name)) {
      findings.add("image", record.place, "some names of this image are pinned and some are not");
    }
    if (!/^sha\d+:/.test(record.name)) {
      pinned.set(digest, isPinned);
      checkName(record, findings);
    } else if (!images.get(digest)?.some((image) => image.config === record.name)) {
      findings.add("image", record.place, `this id is no configuration of ${digest}`);
    }
  }
  for (const id of ids) {
    if (!names.has(id))
      findings.add("image", `meta.db/v1/k8s.io/images/${id}`, "there is no record of this image's id");
  }
}

function checkName(record: ImageRecord, findings: Findings): void {
  try {
    const normal = normalizeName(record.name);
    if (normal !== record.name) findings.differs("image", record.place, "the name", record.name, normal);
    const { digest } = parseReference(record.name);
    if (digest !== undefined && digest !== record.target.digest) {
      findings.differs("image", `${record.place}/target`, "the digest", record.target.digest, digest);
    }
  } catch (error) {
    findings.add("image", record.place, `it is no name of an image: ${describeError(error)}`);
  }
}
