/** The contract of the command line (exit codes, two lines for an error, JSON), on the program as users call it where that costs little. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { parse } from "smol-toml";
import { buildProgram } from "../src/cli/program.ts";
import { serveStatus } from "../src/daemon/status.ts";
import { assertUsable, eachCommand, headstartLines } from "./tools/command-lines.ts";

const root = dirname(import.meta.dirname);
const layout = join(root, "test/golden/fixture/oci");
const directory = mkdtempSync(join(tmpdir(), "headstart-cli-"));
after(() => rmSync(directory, { recursive: true }));

interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function headstart(...args: string[]): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(join(root, "bin/headstart"), args, { stdio: ["ignore", "pipe", "pipe"] });
    let stdout = "";
    let stderr = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    child.once("error", reject);
    child.once("close", (code) => resolve({ code, stdout, stderr }));
  });
}

/** One JSON value a line. */
async function json(...args: string[]): Promise<Record<string, unknown>[]> {
  const { code, stdout, stderr } = await headstart(...args);
  assert.equal(code, 0, stderr);
  return stdout
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
}

function helpOf(path: readonly string[]): string {
  const { command } = eachCommand(buildProgram()).find((each) => each.path.join(" ") === path.join(" "))!;
  let text = "";
  command.configureOutput({
    writeOut: (part) => {
      text += part;
    },
  });
  command.outputHelp();
  return text;
}

for (const { path } of eachCommand(buildProgram())) {
  const name = ["headstart", ...path].join(" ");
  test(`the help of ${name} has examples that its parser takes`, () => {
    const text = helpOf(path);
    const examples = headstartLines(text.slice(text.indexOf("\nExamples:")));
    assert.ok(text.includes("\nExamples:\n") && examples.length > 0, "no example");
    for (const example of examples) assertUsable(example, `${name} --help`);
    const wide = text.split("\n").filter((line) => line.length > 95);
    assert.deepEqual(wide, [], "a terminal has 80 columns, or a few more");
  });
}

test("--help and --version end with 0, on standard output", async () => {
  for (const args of [["--help"], ["index", "create", "--help"], ["--version"]]) {
    const { code, stdout, stderr } = await headstart(...args);
    assert.deepEqual([code, stderr], [0, ""]);
    assert.notEqual(stdout, "");
  }
});

test("wrong usage ends with 2 and says what is wrong", async () => {
  const wrong: Record<string, readonly string[]> = {
    "unknown command 'rum'": ["rum"],
    "unknown option '--jsn'": ["status", "--jsn"],
    "missing required argument 'source'": ["check"],
    "--to": ["convert", `oci:${layout}:tar`, `oci:${directory}/x`],
    "one of soci, nydus, nydus-ref, oci": ["convert", `oci:${layout}:tar`, `oci:${directory}/x`, "--to", "docker"],
    "is for --to nydus": ["convert", `oci:${layout}:tar`, `oci:${directory}/x`, "--to", "soci", "--merge-index"],
    "cannot be read": [
      "convert",
      `oci:${layout}:tar`,
      `oci:${directory}/x`,
      "--to",
      "nydus",
      "--prefetch-patterns",
      `${directory}/none`,
    ],
    "a whole number of bytes": ["index", "create", `oci:${layout}:tar`, "--span-size", "4M"],
    "a/b/c/d": ["image", "ls", `oci:${layout}:tar`, "--platform", "a/b/c/d"],
    "only a registry": ["index", "rm", `oci:${layout}:tar`],
  };
  for (const [text, args] of Object.entries(wrong)) {
    const { code, stdout, stderr } = await headstart(...args);
    assert.deepEqual([code, stdout], [2, ""], `${args.join(" ")}: ${stderr}`);
    assert.ok(stderr.includes(text), `${args.join(" ")}: ${stderr}`);
  }
});

test("work that fails ends with 3 and two lines: what and where, and what to do; --debug adds the stack", async () => {
  const failing = [
    ["image", "ls", "oci:/nowhere:1"],
    ["inspect", "nowhere://x"],
    ["inspect", "nowhere.ztoc"],
    ["index", "ls", "127.0.0.1:1/a/b:1"],
    ["convert", `oci:${layout}:nothing`, `oci:${directory}/x:1`, "--to", "soci"],
    ["image", "cat", `oci:${layout}:tar`, "/no/such/file"],
    ["status", "--state", directory],
    ["daemon", "--config", join(directory, "missing.toml"), "--print-config"],
  ];
  for (const args of failing) {
    const { code, stdout, stderr } = await headstart(...args);
    assert.deepEqual([code, stdout], [3, ""], `${args.join(" ")}: ${stderr}`);
    assert.match(stderr, /^headstart: \[HS_[A-Z_]+\] .+\n {2}\S.+\n$/, args.join(" "));
  }
  const { stderr } = await headstart("--debug", ...failing[0]!);
  assert.match(stderr, /\n {4}at /);
});

test("a configuration that is not understood says where and what was probably meant", async () => {
  const file = join(directory, "config.toml");
  writeFileSync(file, 'rot = "/x"\n');
  const { code, stderr } = await headstart("daemon", "--config", file, "--print-config");
  assert.equal(code, 3);
  assert.match(stderr, /unknown key rot; did you mean root\?/);
});

test("the printed configuration is a configuration", async () => {
  const { stdout } = await headstart("daemon", "--print-config", "--root", "/mnt/x");
  const file = join(directory, "printed.toml");
  writeFileSync(file, stdout);
  assert.equal(parse(stdout).root, "/mnt/x");
  const again = await headstart("daemon", "--config", file, "--print-config");
  assert.equal(again.code, 0, again.stderr);
  assert.deepEqual(parse(again.stdout), parse(stdout));
});

test("--json is one object, or one a line, and nothing else on standard output", async () => {
  const image = join(directory, "layout");
  cpSync(layout, image, { recursive: true });
  const source = `oci:${image}:gogz`;
  const listed = await json("image", "ls", source, "/", "--json");
  assert.ok(listed.length > 3 && listed.every((line) => typeof line.name === "string" && line.type !== undefined));
  const tree = await json("image", "tree", source, "--json");
  assert.deepEqual(tree[0]!.path, "/");
  assert.ok(tree.some((line) => typeof line.sha256 === "string"));
  const layer = await json("image", "tree", source, "--layer", "1", "--json");
  assert.ok(layer.length > 1);
  const file = tree.find((line) => line.type === "reg" && Number(line.size) > 0)!;
  const [stat] = await json("image", "stat", source, String(file.path), "--json");
  assert.equal(stat!.size, file.size);
  assert.match(String(stat!.layer_digest), /^sha256:/);
  const created = await json("index", "create", source, "--min-layer-size", "0", "--json");
  assert.ok(created.length === 1 && created[0]!.index !== null);
  const indexes = await json("index", "ls", source, "--json");
  assert.equal(indexes[0]!.version, 1);
  const [converted] = await json(
    "convert",
    source,
    `oci:${image}:soci`,
    "--to",
    "soci",
    "--min-layer-size",
    "0",
    "--json",
  );
  assert.match(String(converted!.digest), /^sha256:/);
  const [inspected] = await json("inspect", `oci:${image}:soci`, "--json");
  assert.equal(inspected!.kind, "oci-index");
});

test("status prints what the daemon's status API says", async () => {
  const state = join(directory, "state");
  mkdirSync(state);
  const empty = () => [];
  const layerRow = {
    id: 1,
    digest: `sha256:${"a".repeat(64)}`,
    format: "soci",
    state: "lazy",
    reason: null,
    size: 4096,
    filledBytes: 1024,
    dataBytes: 4096,
  };
  await using _served = await serveStatus(join(state, "status.sock"), {
    images: empty,
    layers: () => [layerRow],
    mounts: () => ({ mounts: [] }),
    starts: empty,
    snapshots: empty,
    fetches: empty,
    config: empty,
    metrics: () => Promise.resolve(""),
  });
  const [status] = await json("status", "--state", state, "--json");
  assert.deepEqual(status!.layers, [layerRow]);
  assert.match((await headstart("status", "--state", state)).stdout, /aaaaaaaaaaaa +soci +lazy +25\.0 %/);
});
