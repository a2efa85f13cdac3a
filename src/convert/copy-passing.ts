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
  // somebody may have begun meanwhile: then nothing would pass by here
  if (copier.knows(blob.digest)) return await direct();
  const tap = new Tap();
  const refused: Refused = { error: null };
  const [result, pushed] = await Promise.allSettled([
    read(tap)
      .catch((error: unknown) => {
        if (!tap.isBroken) refused.error = { is: error };
        throw error;
      })
      .finally(() => tap.close()),
    copier.blob(blob, () => pushTapped(copier, blob, tap, refused)),
  ]);
  if (refused.error !== null) throw refused.error.is;
  if (pushed.status === "rejected") throw pushed.reason;
  if (result.status === "fulfilled") return result.value;
  return await direct();
}

/** What the reader could not go on for, though it got what there was: then the blob is not copied to its end either. */
interface Refused {
  error: { readonly is: unknown } | null;
}

async function pushTapped(
  { source, destination, signal }: Copier,
  blob: Descriptor,
  tap: Tap,
  refused: Refused,
): Promise<void> {
  const chunks = () => source.openBlob(blob).stream(0, { signal });
  let passed = false;
  const first = () => {
    // a second attempt at the upload: the tap had what there was of the first
    if (passed) return chunks();
    passed = true;
    return tapped(wanted(chunks(), refused), tap);
  };
  try {
    await destination.pushBlob(blob, first, { signal });
    // mounted from elsewhere, or somebody else was quicker: nothing passed by
    if (!passed) for await (const chunk of wanted(chunks(), refused)) await tap.offer(chunk);
    if (!passed) tap.end();
  } catch (error) {
    tap.fail(error);
    throw error;
  }
}

async function* wanted(chunks: AsyncIterable<Uint8Array>, refused: Refused): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) {
    if (refused.error !== null) throw refused.error.is;
    yield chunk;
  }
}
