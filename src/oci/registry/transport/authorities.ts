/**
 * The authorities that this machine trusts beyond Node's own list: what an administrator added (an internal CA above all). Go programs read the same
 * files. Read once, without blocking: Node's own `getCACertificates("system")` takes some 60 ms of the thread.
 */

import { readFile } from "node:fs/promises";
import { getCACertificates } from "node:tls";

/** Go's crypto/x509/root_linux.go: the first that exists. */
const BUNDLES = [
  "/etc/ssl/certs/ca-certificates.crt",
  "/etc/pki/tls/certs/ca-bundle.crt",
  "/etc/ssl/ca-bundle.pem",
  "/etc/pki/tls/cacert.pem",
  "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
  "/etc/ssl/cert.pem",
];
const BUNDLE_CHARACTERS = 16 * 1024 * 1024;

let extra: Promise<readonly string[]> | undefined;

/** PEM texts of authorities that Node does not know by itself. */
export function machineAuthorities(bundles: readonly string[] = BUNDLES): Promise<readonly string[]> {
  if (bundles !== BUNDLES) return readAuthorities(bundles);
  extra ??= readAuthorities(bundles);
  return extra;
}

async function readAuthorities(bundles: readonly string[]): Promise<readonly string[]> {
  for (const path of bundles) {
    const text = await readFile(path, "latin1").catch(() => undefined); // the next place
    if (text === undefined) continue;
    if (text.length > BUNDLE_CHARACTERS) return [];
    const known = new Set(getCACertificates("default").map(bare));
    const all = text.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
    return all.filter((pem) => !known.has(bare(pem)));
  }
  return [];
}

function bare(pem: string): string {
  return pem.replace(/\s+/g, "");
}
