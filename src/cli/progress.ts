/** Progress on a terminal's standard error: one line that is rewritten. Silent when piped or with --json. */

export interface Progress {
  /** Replaces the line. */
  update(text: string): void;
  /** Prints a line that stays. */
  note(text: string): void;
  done(): void;
}

export function openProgress(options: { quiet: boolean }): Progress {
  const stream = process.stderr;
  if (options.quiet) return { update() {}, note() {}, done() {} };
  if (!stream.isTTY) return { update() {}, note: (text) => stream.write(`${text}\n`), done() {} };
  let shown = false;
  let last = 0;
  const clear = () => {
    if (shown) stream.write("\r\x1b[2K");
    shown = false;
  };
  return {
    update(text) {
      const now = performance.now();
      if (shown && now - last < 80) return;
      last = now;
      clear();
      stream.write(text.slice(0, (stream.columns ?? 80) - 1));
      shown = true;
    },
    note(text) {
      clear();
      stream.write(`${text}\n`);
    },
    done: clear,
  };
}
