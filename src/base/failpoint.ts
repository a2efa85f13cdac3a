/**
 * Faults by rule for crash and fault tests: `HEADSTART_FAILPOINTS="name=throw;other=2*exit"`. Rules: `[N*]throw[:ERRNO]`,
 * `[N*]exit` (SIGKILL of ourselves), `[N*]sleep:MS`. Without the variable a failpoint costs one comparison.
 */

interface Rule {
  skip: number;
  readonly action: string;
  readonly argument: string;
}

const rules: Map<string, Rule> | null = parse(process.env.HEADSTART_FAILPOINTS);

function parse(text: string | undefined): Map<string, Rule> | null {
  if (!text) return null;
  const parsed = new Map<string, Rule>();
  for (const part of text.split(";")) {
    const match = /^([\w:.-]+)=(?:(\d+)\*)?(throw|exit|sleep)(?::(\w+))?$/.exec(part.trim());
    if (match) parsed.set(match[1]!, { skip: Number(match[2] ?? 1) - 1, action: match[3]!, argument: match[4] ?? "" });
  }
  return parsed;
}

/** Names a place where a fault can be ordered: each fsync, rename, reply. */
export function failpoint(name: string): void {
  if (rules === null) return;
  const rule = rules.get(name);
  if (rule === undefined || rule.skip-- > 0) return;
  if (rule.action === "exit") process.kill(process.pid, "SIGKILL");
  if (rule.action === "sleep") Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, Number(rule.argument));
  if (rule.action === "throw") {
    rules.delete(name);
    throw Object.assign(new Error(`failpoint ${name}: ${rule.argument || "fault"}`), { code: rule.argument || "EIO" });
  }
}
