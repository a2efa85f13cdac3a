/** Paging by the Link header (RFC 8288, distribution-spec "pagination"): only to the same host, since the next page is asked for with credentials. */

import { HeadstartError } from "../../base/errors.ts";
import type { HostClient } from "./host-client.ts";
import type { TransportResponse } from "./transport/transport.ts";

/** The next page's URL, or undefined at the end. Throws HS_REGISTRY_PROTOCOL when it points elsewhere or to itself. */
export function nextPage(response: TransportResponse, current: URL, host: HostClient): URL | undefined {
  const target = parseNextLink(response.header("link"));
  if (target === undefined) return undefined;
  const next = URL.parse(target, current);
  if (next === null || !host.owns(next) || next.href === current.href) {
    throw new HeadstartError("HS_REGISTRY_PROTOCOL", {
      what: `${host.host}: the Link to the next page leads elsewhere`,
    });
  }
  return next;
}

export function parseNextLink(header: string | undefined): string | undefined {
  if (header === undefined || header.length > 16_384) return undefined;
  for (const match of header.matchAll(/<([^<>]*)>((?:\s*;\s*[\w!#$&+.^`|~-]+\s*=\s*(?:"[^"]*"|[^",;\s]+))*)/g)) {
    if (/;\s*rel\s*=\s*(?:"(?:[^"]*\s)?next(?:\s[^"]*)?"|next\b)/i.test(match[2]!)) return match[1];
  }
  return undefined;
}
