/** dpkg's status file (deb-control(5)) as far as is needed to say which packages belong together. Pure. */

export interface DebianPackage {
  readonly name: string;
  /** Its stanza in the status file, unchanged. */
  readonly stanza: string;
  readonly essential: boolean;
  /** Each is a list of alternatives. */
  readonly depends: readonly (readonly string[])[];
  readonly provides: readonly string[];
}

export function parseStatus(text: string): DebianPackage[] {
  return text
    .split(/\n\n+/)
    .filter((stanza) => stanza.startsWith("Package: "))
    .map((stanza) => {
      const field = (name: string) => new RegExp(`^${name}: (.*(?:\\n .*)*)`, "m").exec(stanza)?.[1] ?? "";
      const names = (list: string) => list.split(",").filter((item) => item.trim() !== "");
      const bare = (item: string) => item.trim().split(/[\s:(]/)[0]!;
      return {
        name: field("Package"),
        stanza,
        essential: field("Essential") === "yes" || field("Priority") === "required",
        depends: names(`${field("Pre-Depends")},${field("Depends")}`).map((item) => item.split("|").map(bare)),
        provides: names(field("Provides")).map(bare),
      };
    });
}

/** The packages and all that they depend on, directly or not, of those that are there. */
export function closure(packages: readonly DebianPackage[], names: Iterable<string>): Set<string> {
  const byName = new Map(packages.map((one) => [one.name, one]));
  const providers = new Map<string, string>();
  for (const one of packages) for (const name of one.provides) if (!byName.has(name)) providers.set(name, one.name);
  const found = new Set<string>();
  const queue = [...names];
  for (let name = queue.pop(); name !== undefined; name = queue.pop()) {
    const known = byName.get(name) ?? byName.get(providers.get(name) ?? "");
    if (known === undefined || found.has(known.name)) continue;
    found.add(known.name);
    for (const alternatives of known.depends) {
      const present = alternatives.find((one) => byName.has(one) || providers.has(one));
      if (present !== undefined) queue.push(present);
    }
  }
  return found;
}

export interface LayerPlan {
  readonly packages: readonly string[];
  /** Layers that this one always lies on, besides the base. */
  readonly on?: readonly string[];
}

export const BASE = "base";

/**
 * Package -> layer. The base holds what Debian calls essential or required, what it needs, and what two layers need of which neither lies on the
 * other; a layer holds what it names and needs beyond that.
 */
export function assignPackages(
  packages: readonly DebianPackage[],
  plans: Readonly<Record<string, LayerPlan>>,
): Map<string, string> {
  const essential = packages.filter((one) => one.essential).map((one) => one.name);
  const base = closure(packages, [...essential, "apt"]);
  const assigned = new Map<string, string>();
  for (const one of packages) assigned.set(one.name, BASE);
  const taken = new Map<string, string>();
  for (const [layer, plan] of Object.entries(plans)) {
    const below = plan.on ?? [];
    for (const name of closure(packages, plan.packages)) {
      if (base.has(name)) continue;
      const owner = taken.get(name);
      if (owner === undefined) {
        taken.set(name, layer);
        assigned.set(name, layer);
      } else if (!below.includes(owner)) {
        assigned.set(name, BASE);
      }
    }
  }
  return assigned;
}
