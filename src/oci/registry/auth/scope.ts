/** Token scopes (distribution token spec): `repository:<name>:pull,push`. Sets are sorted and merged, so that equal ones are equal texts. Pure. */

export type Action = "pull" | "push" | "delete";

export function repositoryScope(repository: string, ...actions: readonly Action[]): string {
  return `repository:${repository}:${[...new Set(actions)].sort().join(",")}`;
}

/** Union of scopes: actions on the same resource become one scope. A scope that is no scope stays as it is. */
export function mergeScopes(...sets: readonly (readonly string[])[]): string[] {
  const actions = new Map<string, Set<string>>();
  const odd = new Set<string>();
  for (const scope of sets.flat().flatMap((text) => text.split(/\s+/))) {
    if (scope === "") continue;
    const match = /^([^:]+:.+):([^:]*)$/.exec(scope);
    if (match === null) {
      odd.add(scope);
      continue;
    }
    const known = actions.get(match[1]!) ?? new Set<string>();
    for (const action of match[2]!.split(",")) if (action !== "") known.add(action);
    actions.set(match[1]!, known);
  }
  const merged = [...actions].map(
    ([resource, names]) => `${resource}:${names.has("*") ? "*" : [...names].sort().join(",")}`,
  );
  return [...merged, ...odd].sort();
}
