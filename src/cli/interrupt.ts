/** The first SIGINT or SIGTERM ends the work in order, so that nothing is left; the next one ends the process. */

import { HeadstartError } from "../base/errors.ts";

export class Interrupt implements Disposable {
  readonly #controller = new AbortController();
  readonly #listener = (name: string) => {
    this[Symbol.dispose]();
    this.#controller.abort(new HeadstartError("HS_CANCELED", { what: `interrupted by ${name}` }));
  };

  constructor() {
    for (const name of ["SIGINT", "SIGTERM"] as const) process.on(name, this.#listener);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  [Symbol.dispose](): void {
    for (const name of ["SIGINT", "SIGTERM"] as const) process.off(name, this.#listener);
  }
}
