/** What conversions and index builds report as they go. Plain facts; the command line makes bars and lines of them. */

import type { Digest } from "../base/digest.ts";
import type { Platform } from "../oci/platform.ts";

export type ConvertProgress =
  /** An image of the source was chosen. */
  | { readonly t: "image"; readonly platform: Platform; readonly manifest: Digest; readonly layers: number }
  /** Stored bytes of a layer that were read so far. */
  | { readonly t: "reading"; readonly layer: Digest; readonly bytes: number; readonly size: number }
  /** `reused`: the source had the zTOC already, the layer was not read for it. */
  | {
      readonly t: "ztoc";
      readonly layer: Digest;
      readonly ztoc: Digest;
      readonly size: number;
      readonly reused: boolean;
    }
  /** A layer became a Nydus blob of so many bytes. */
  | { readonly t: "nydus-layer"; readonly layer: Digest; readonly blob: Digest; readonly size: number }
  | { readonly t: "no-ztoc"; readonly layer: Digest; readonly reason: string }
  | { readonly t: "prefetch"; readonly layer: Digest; readonly artifact: Digest }
  | { readonly t: "prefetch-not-found"; readonly platform: Platform; readonly file: string }
  /** A blob or manifest is in the destination now. */
  | { readonly t: "pushed"; readonly digest: Digest; readonly size: number; readonly mediaType: string };

export type OnProgress = (event: ConvertProgress) => void;
