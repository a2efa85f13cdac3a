/** The shared files `~/.aws/config` and `~/.aws/credentials`: sections of profiles, as the AWS CLI and SDKs read them. Parsing alone; chain.ts says what a profile means. */

import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { HeadstartError } from "../../base/errors.ts";
import { MiB } from "../../base/limits.ts";

export type Profile = ReadonlyMap<string, string>;
export type Environment = Readonly<Record<string, string | undefined>>;

const FILE_BYTES = 4 * MiB;

/** A profile's settings; what the credentials file says wins. Undefined when neither has it. Throws HS_AWS_CREDENTIALS for files that cannot be read. */
export function readProfile(name: string, env: Environment): Profile | undefined {
  const home = env.HOME ?? homedir();
  const config = readSections(env.AWS_CONFIG_FILE ?? join(home, ".aws/config"));
  const credentials = readSections(env.AWS_SHARED_CREDENTIALS_FILE ?? join(home, ".aws/credentials"));
  const fromConfig = config.get(name === "default" ? "default" : `profile ${name}`) ?? config.get(`profile ${name}`);
  const fromCredentials = credentials.get(name);
  if (fromConfig === undefined && fromCredentials === undefined) return undefined;
  return new Map([...(fromConfig ?? []), ...(fromCredentials ?? [])]);
}

function readSections(path: string): Map<string, Map<string, string>> {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return new Map();
    throw new HeadstartError("HS_AWS_CREDENTIALS", { what: path, cause });
  }
  if (text.length > FILE_BYTES) throw new HeadstartError("HS_AWS_CREDENTIALS", { what: `${path} is too large` });
  return parseSections(text);
}

/** Sections by name, the words in it separated by one space. Indented lines belong to nested settings, of which we need none. */
export function parseSections(text: string): Map<string, Map<string, string>> {
  const sections = new Map<string, Map<string, string>>();
  let current: Map<string, string> | undefined;
  for (const line of text.split(/\r?\n/)) {
    if (/^\s|^[#;]|^$/.test(line)) continue;
    const heading = /^\[\s*(.*?)\s*\]/.exec(line);
    if (heading !== null) {
      const name = heading[1]!.replace(/\s+/g, " ").replace(/^(profile )"(.*)"$/, "$1$2");
      current = sections.get(name) ?? new Map<string, string>();
      sections.set(name, current);
      continue;
    }
    const setting = /^([^=\s]+)\s*=\s*(.*?)\s*$/.exec(line);
    if (setting !== null) current?.set(setting[1]!.toLowerCase(), setting[2]!);
  }
  return sections;
}
