/**
 * The one interface between registry verbs and the network. `undici.ts` does the sending; retry, limit and log each wrap a transport and
 * are one. A transport sends one request to one URL: it knows no credentials, follows no redirect and judges no status (retry does, for
 * those that may pass).
 */

export type RequestKind = "manifest" | "blob" | "range" | "token" | "upload" | "referrers" | "tags" | "probe";

export interface TransportRequest {
  readonly method: "GET" | "HEAD" | "PUT" | "POST" | "PATCH" | "DELETE";
  readonly url: URL;
  readonly kind: RequestKind;
  readonly headers: Readonly<Record<string, string | string[]>>;
  /** A stream can be sent once only, so such a request is not retried. */
  readonly body?: Uint8Array | AsyncIterable<Uint8Array> | undefined;
  readonly signal?: AbortSignal | undefined;
  /** "full": nobody else can answer; "quick": there is another host to ask; "none": the caller retries by himself. */
  readonly patience?: Patience;
}

export type Patience = "full" | "quick" | "none";

/** Either iterate over `body` (leaving early closes the connection) or call `discard`; until then the request counts as running. */
export interface TransportResponse {
  readonly status: number;
  /** A header's value (several joined by ", "), by lower case name. */
  header(name: string): string | undefined;
  /** Single use. Throws HS_REGISTRY_UNAVAILABLE when the connection breaks or stalls. */
  readonly body: AsyncIterable<Uint8Array>;
  /** Reads away a short rest so that the connection can be used again, or closes it. Never throws. */
  discard(): Promise<void>;
  /** Calls back once, when the body has ended, broken or been dropped. */
  onClose(listener: (fact: { readonly bytes: number; readonly error?: unknown }) => void): void;
}

export interface Transport {
  /** Throws HS_REGISTRY_UNAVAILABLE when there is no answer, the signal's reason when aborted. */
  send(request: TransportRequest): Promise<TransportResponse>;
}
