/**
 * What node is told for the server. The young part of a heap grows to three times 16 MiB where much is allocated, in each of a dozen threads; what lives long here lies outside of heaps, so
 * that a small one costs no measurable time (an eager pull's thread takes 2.4 s of CPU for 510 MB with either).
 */

export const SERVER_NODE_FLAGS = ["--max-semi-space-size=2"] as const;
