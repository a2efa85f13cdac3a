/** `headstart volume doctor`: what is known of nodes and of a volume, and what that means for them. */

import { type Finding, judge } from "./checks.ts";
import { type Known, NodeFacts } from "./facts.ts";
import { readLive } from "./live.ts";
import { readFacts, volumeIn } from "./read.ts";
import { readInput, readVolumeFile, type VolumeFacts, volumeFacts } from "./volume-facts.ts";

export interface DoctorRequest {
  /** NodeClasses, launch templates, user data, configurations, pods, nodes, a volume's manifest: in any order; of two that disagree the first is believed. */
  readonly files: readonly string[];
  /** A volume or its manifest. */
  readonly volume?: string | undefined;
  /** Root directory of a running node; undefined: none. */
  readonly live?: string | undefined;
}

export interface Diagnosis {
  /** False when a check failed. */
  readonly ok: boolean;
  readonly findings: readonly Finding[];
  readonly unread: readonly Known<string>[];
}

/** Throws HS_NOT_FOUND, HS_LIMIT, HS_DOCTOR_INPUT. */
export function diagnose(request: DoctorRequest): Diagnosis {
  const facts = new NodeFacts();
  let volume: VolumeFacts | null = request.volume === undefined ? null : readVolumeFile(request.volume);
  for (const file of request.files) {
    const text = readInput(file);
    const manifest = volumeIn(text, file);
    if (manifest === null) readFacts(facts, text, file);
    else volume ??= volumeFacts(manifest, file);
  }
  if (request.live !== undefined) readLive(facts, request.live);
  const findings = judge(facts, volume);
  return { ok: findings.every(({ level }) => level !== "fail"), findings, unread: facts.unread };
}
