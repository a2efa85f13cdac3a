/**
 * Trust policy: which indexes may decide what bytes mean. `bound`: only those that the manifest names by digest. `referrers`: also those that anyone with push rights to the repository
 * attached. Every unit is verified against its index, and every whole layer against its diffID, under either.
 */

export type TrustPolicy = "bound" | "referrers";

export function allowsReferrers(policy: TrustPolicy): boolean {
  return policy === "referrers";
}
