/**
 * Which proxy a URL goes through: HTTPS_PROXY, HTTP_PROXY and NO_PROXY (upper or lower case), with the rules of Go's httpproxy
 * package, which containerd and docker follow: loopback is never proxied; NO_PROXY takes `*`, hosts, `.suffix`, IP addresses, CIDR
 * blocks, each optionally with a port. Pure.
 */

import { BlockList, isIP } from "node:net";

export type Environment = Readonly<Record<string, string | undefined>>;

/** The proxy's URL, or undefined for a direct connection. A value that is no http(s) URL is ignored. */
export function proxyFor(url: URL, env: Environment): URL | undefined {
  const hostname = url.hostname.replace(/^\[|\]$/g, "").toLowerCase();
  const port = url.port || (url.protocol === "https:" ? "443" : "80");
  const name = url.protocol === "https:" ? "HTTPS_PROXY" : "HTTP_PROXY";
  const value = env[name] || env[name.toLowerCase()];
  if (!value || isLoopback(hostname)) return undefined;
  if (isExempt(hostname, port, env.NO_PROXY || env.no_proxy || "")) return undefined;
  const proxy = URL.parse(/^[a-z][a-z0-9+.-]*:\/\//i.test(value) ? value : `http://${value}`);
  return proxy !== null && /^https?:$/.test(proxy.protocol) ? proxy : undefined;
}

export function isLoopback(hostname: string): boolean {
  return hostname === "localhost" || hostname === "::1" || (isIP(hostname) === 4 && hostname.startsWith("127."));
}

function isExempt(hostname: string, port: string, list: string): boolean {
  for (const raw of list.split(",")) {
    const entry = raw.trim().toLowerCase();
    if (entry === "") continue;
    if (entry === "*") return true;
    const cidr = /^([0-9a-f.:]+)\/(\d{1,3})$/.exec(entry);
    if (cidr !== null) {
      if (inBlock(hostname, cidr[1]!, Number(cidr[2]))) return true;
      continue;
    }
    const withPort = /^(.*?):(\d+)$/.exec(isIP(entry) === 6 ? "" : entry);
    if (withPort !== null && withPort[2] !== port) continue;
    const name = (withPort?.[1] ?? entry).replace(/^\[|\]$/g, "").replace(/^\*\./, ".");
    if (name.startsWith(".") ? hostname.endsWith(name) : hostname === name || hostname.endsWith(`.${name}`))
      return true;
  }
  return false;
}

function inBlock(address: string, network: string, prefix: number): boolean {
  const family = isIP(network);
  if (family === 0 || isIP(address) !== family || prefix > (family === 4 ? 32 : 128)) return false;
  const block = new BlockList();
  const type = family === 4 ? "ipv4" : "ipv6";
  block.addSubnet(network, prefix, type);
  return block.check(address, type);
}
