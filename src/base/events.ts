/**
 * Facts: any module publishes plain objects on a named channel `headstart:<module>:<event>`; daemon/observe.ts turns them into log
 * lines, metrics and time lines. Costs one property read when nobody listens. Never put a secret into a fact.
 */

import diagnostics from "node:diagnostics_channel";

const channels = new Map<string, diagnostics.Channel>();

function channel(name: string): diagnostics.Channel {
  let known = channels.get(name);
  if (known === undefined) {
    known = diagnostics.channel(`headstart:${name}`);
    channels.set(name, known);
  }
  return known;
}

/** `name` is `<module>:<event>`, e.g. "layer:fault". */
export function publish(name: string, fact: Record<string, unknown>): void {
  const known = channel(name);
  if (known.hasSubscribers) known.publish(fact);
}

/** Returns the function that ends the subscription. */
export function listen(name: string, listener: (fact: Record<string, unknown>) => void): () => void {
  const known = channel(name);
  const handler = (fact: unknown) => listener(fact as Record<string, unknown>);
  known.subscribe(handler);
  return () => {
    known.unsubscribe(handler);
  };
}
