/** The documents are true as far as a program can tell: generated pages are those of the sources, command lines parse, configuration blocks are what the end-to-end tests run with. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { parse } from "smol-toml";
import { cliPage, describedShapes } from "../scripts/cli-page.ts";
import { configurationPage } from "../scripts/configuration-page.ts";
import { errorsPage } from "../scripts/errors-page.ts";
import { operationsPage } from "../scripts/pages.ts";
import { buildProgram } from "../src/cli/program.ts";
import { loadConfig } from "../src/daemon/config.ts";
import { Observer } from "../src/daemon/observe.ts";
import { serveStatus } from "../src/daemon/status.ts";
import { containerdConfig } from "../src/sandbox/containerd-config.ts";
import { assertUsable, eachCommand, headstartLines } from "./tools/command-lines.ts";

const root = dirname(import.meta.dirname);
const read = (file: string) => readFileSync(join(root, file), "utf8");
const pages = execFileSync("git", ["ls-files", "*.md"], { cwd: root, encoding: "utf8" })
  .split("\n")
  .filter((file) => file !== "" && !file.startsWith("test/golden/") && existsSync(join(root, file)));

/** Fenced blocks of a language. */
function blocks(text: string, language: string): string[] {
  return [...text.matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\`$`, "gm"))].map((match) => match[1]!);
}

test("generated pages are up to date (npm run pages)", () => {
  assert.equal(read("docs/errors.md"), errorsPage());
  assert.equal(read("docs/configuration.md"), configurationPage());
  assert.equal(read("docs/cli.md"), cliPage());
  assert.equal(read("docs/operations.md"), operationsPage());
});

test("docs/cli.md says what --json prints, for every command that has it", () => {
  const withJson = eachCommand(buildProgram())
    .filter(({ command }) => command.options.some((option) => option.long === "--json"))
    .map(({ path }) => path.join(" "));
  assert.deepEqual(describedShapes().toSorted(), withJson.toSorted());
});

test("every headstart command line in a document parses", () => {
  let lines = 0;
  for (const page of pages) {
    for (const block of blocks(read(page), "sh")) {
      for (const line of headstartLines(block)) {
        assertUsable(line, page);
        lines++;
      }
    }
  }
  assert.ok(lines > 5, `${lines} lines were found`);
});

test("every `headstart …` in a sentence or a hint names a command that exists", () => {
  const known = eachCommand(buildProgram()).map(({ path }) => path.join(" "));
  for (const page of pages) {
    for (const match of read(page).matchAll(/`(?:bin\/)?headstart((?: [a-z]+)+)[^`]*`/g)) {
      const words = match[1]!.trim().split(" ");
      assert.ok(
        known.includes(words[0]!) || known.includes(words.slice(0, 2).join(" ")),
        `${page}: ${match[0]}: there is no such command`,
      );
    }
  }
});

test("every script that a document calls by npm exists", () => {
  const { scripts } = JSON.parse(read("package.json")) as { scripts: Record<string, string> };
  for (const page of pages) {
    for (const match of read(page).matchAll(/\bnpm (?:run ([a-z]+)|(start|test))\b/g))
      assert.ok(scripts[match[1] ?? match[2]!] !== undefined, `${page}: ${match[0]}`);
  }
});

/** "a.b.c" -> value for all leaves; lists of tables by position. */
function leaves(value: unknown, path = ""): Map<string, unknown> {
  const found = new Map<string, unknown>();
  if (typeof value !== "object" || value === null) return found.set(path, value);
  for (const [key, part] of Object.entries(value)) {
    for (const [inner, leaf] of leaves(part, path === "" ? key : `${path}/${key}`)) found.set(inner, leaf);
  }
  return found;
}

test("containerd's configuration in docs/start.md is that of the end-to-end tests", () => {
  const [first, second] = blocks(read("docs/start.md"), "toml");
  for (const [text, version] of [
    [first!, "1.6.20"],
    [second!, "2.1.9"],
  ] as const) {
    const documented = leaves(parse(text));
    const proxy = { name: "headstart", address: "/run/headstart/headstart.sock", root: "/var/lib/headstart" };
    const settings = {
      version,
      directory: "/x",
      snapshotter: "headstart",
      proxy,
      sandboxImage: "x",
      runc: "/x",
    } as const;
    const used = leaves(parse(containerdConfig(settings)));
    for (const [path, value] of documented) {
      // where hosts.toml files lie differs
      if (path.endsWith("/config_path")) assert.ok(used.has(path), path);
      else assert.deepEqual(used.get(path), value, `${version}: ${path}`);
    }
    assert.ok(documented.size >= 5);
  }
});

test("configuration blocks for the daemon are read by it", () => {
  const directory = mkdtempSync(join(tmpdir(), "headstart-docs-"));
  try {
    for (const block of blocks(read("docs/configuration.md"), "toml")) {
      const path = join(directory, "config.toml");
      execFileSync("tee", [path], { input: block });
      loadConfig({ path, explicit: true });
    }
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test("docs/operations.md has every metric and every path of the status API", async () => {
  const page = read("docs/operations.md");
  using observer = new Observer("error");
  const own = observer.metrics
    .getMetricsAsArray()
    .map(({ name }) => name)
    .filter((name) => !/^headstart_(?:process|nodejs)_/.test(name));
  for (const name of own) assert.ok(page.includes(`\`${name}`), `${name} is not described`);
  const state = mkdtempSync(join(tmpdir(), "headstart-docs-"));
  try {
    const nothing = () => null;
    await using _served = await serveStatus(join(state, "s"), {
      images: nothing,
      layers: nothing,
      mounts: nothing,
      starts: nothing,
      snapshots: nothing,
      fetches: nothing,
      config: nothing,
      metrics: () => Promise.resolve(""),
    });
    const answer = await new Promise<string>((resolve, reject) => {
      request({ socketPath: join(state, "s"), path: "/nothing" }, (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (part: string) => {
          text += part;
        });
        response.on("end", () => resolve(text));
      })
        .on("error", reject)
        .end();
    });
    const paths = answer
      .trim()
      .split(" ")
      .filter((word) => word.startsWith("/"));
    assert.ok(paths.length > 5);
    for (const path of paths) assert.ok(page.includes(`\`${path}\``), `${path} is not described`);
  } finally {
    rmSync(state, { recursive: true });
  }
});

test("docs/decisions/README.md lists every decision", () => {
  const files = readdirSync(join(root, "docs/decisions")).filter((name) => /^\d{4}-/.test(name));
  const listed = [...read("docs/decisions/README.md").matchAll(/\]\((\d{4}-[^)]+)\)/g)].map((match) => match[1]!);
  assert.deepEqual(listed, files.toSorted());
});
