/** A blob that is copied and read in one pass over the source. */

import type { Descriptor } from "../oci/descriptor.ts";
import type { Copier } from "./copy.ts";
import { Tap, tapped } from "./tap.ts";

/**
 * Copies the blob and gives its bytes to `read` on the way; where the destination has it already, `read` gets them from the source alone. `read` may be called a second time: when the upload had to begin
 * anew half-way, what passed by was not all. It checks the digest itself.
 */
export async function copyPassing<T>(
  copier: Copier,
  blob: Descriptor,
  read: (chunks: AsyncIterable<Uint8Array>) => Promise<T>,
): Promise<T> {
  const { source, destination, signal } = copier;
  const direct = () => read(source.openBlob(blob).stream(0, { signal, callerVerifies: true }));
  if (copier.knows(blob.digest) || (await destination.hasBlob(blob, { signal }))) return await direct();
  const tap = new Tap();
  const [result, pushed] = await Promise.allSettled([
    read(tap).finally(() => tap.close()),
    copier.blob(blob, () => pushTapped(copier, blob, tap)),
  ]);
  if (pushed.status === "rejected") throw pushed.reason;
  if (result.status === "fulfilled") return result.value;
  if (tap.isBroken) return await direct();
  throw result.reason;
}

async function pushTapped({ source, destination, signal }: Copier, blob: Descriptor, tap: Tap): Promise<void> {
  const chunks = () => source.openBlob(blob).stream(0, { signal });
  let passed = false;
  const first = () => {
    // a second attempt at the upload: the tap had what there was of the first
    if (passed) return chunks();
    passed = true;
    return tapped(chunks(), tap);
  };
  try {
    await destination.pushBlob(blob, first, { signal });
    // mounted from elsewhere, or somebody else was quicker: nothing passed by
    if (!passed) for await (const chunk of chunks()) await tap.offer(chunk);
    if (!passed) tap.end();
  } catch (error) {
    tap.fail(error);
    throw error;
  }
}
