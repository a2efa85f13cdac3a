/**
 * Who we are to AWS: credentials from one source, kept until they run out and then asked for again. Concurrent callers share one question. Credentials that AWS calls expired are forgotten once,
 * however many answers say so.
 */

import type { Clock } from "../../base/clock.ts";
import { HeadstartError } from "../../base/errors.ts";
import { abandonable } from "../../oci/registry/wait.ts";
import type { AwsCredentials } from "./signature.ts";

export interface CredentialProvider {
  /** "environment", "profile ci": for messages. */
  readonly name: string;
  /** It can give nothing else than it gave, as the environment of a process. */
  readonly fixed?: true;
  /** Undefined: it has none here, ask the next. Throws HS_AWS_CREDENTIALS when it has, and cannot give them. */
  get(): Promise<AwsCredentials | undefined>;
}

/** Renewed so long before their end. */
const EARLY_MS = 5 * 60_000;
const MINIMUM_MS = 10_000;

export class Identity {
  readonly #providers: readonly CredentialProvider[];
  readonly #clock: Clock;
  #current: AwsCredentials | undefined;
  #from: CredentialProvider | undefined;
  #asking: Promise<AwsCredentials> | undefined;

  constructor(providers: readonly CredentialProvider[], clock: Clock) {
    this.#providers = providers;
    this.#clock = clock;
  }

  /** Throws HS_AWS_CREDENTIALS. */
  async get(signal?: AbortSignal): Promise<AwsCredentials> {
    const current = this.#current;
    const leftMs = (current?.expiresAt ?? Number.POSITIVE_INFINITY) - this.#clock.now();
    if (current !== undefined && leftMs > EARLY_MS) return current;
    this.#asking ??= this.#ask().finally(() => {
      this.#asking = undefined;
    });
    try {
      return await abandonable(this.#asking, signal);
    } catch (error) {
      // early renewal failed: what we have is good for a while
      if (current !== undefined && current === this.#current && leftMs > MINIMUM_MS && !signal?.aborted) return current;
      throw error;
    }
  }

  /** AWS says that these have expired. False when the source can give no others, as the environment cannot. */
  forget(credentials: AwsCredentials): boolean {
    if (this.#current === credentials) {
      if (this.#from?.fixed) return false;
      this.#current = undefined;
    }
    return true;
  }

  async #ask(): Promise<AwsCredentials> {
    const providers = this.#from === undefined ? this.#providers : [this.#from];
    for (const provider of providers) {
      const found = await provider.get();
      if (found === undefined) continue;
      this.#from = provider;
      this.#current = found;
      return found;
    }
    throw new HeadstartError("HS_AWS_CREDENTIALS", {
      what: `no AWS credentials: asked ${this.#providers.map(({ name }) => name).join(", ")}`,
      sources: this.#providers.length,
    });
  }
}
