import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { loadConfig, printConfig } from "./config.ts";

function withFile<T>(text: string, use: (path: string) => T): T {
  const directory = mkdtempSync(join(tmpdir(), "headstart-config-"));
  try {
    const path = join(directory, "config.toml");
    writeFileSync(path, text);
    return use(path);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

test("defaults need no file, and the socket follows the state directory", () => {
  const { config, origins } = loadConfig(null, new Map([["state", "/run/other"]]));
  assert.equal(config.address, "/run/other/headstart.sock");
  assert.equal(config.trust.policy, "bound");
  assert.equal(origins.get("state"), "command line");
  assert.equal(origins.get("trust.policy"), "default");
});

test("an unknown key is an error that names the nearest key", () => {
  withFile('[trust]\npolcy = "bound"\n', (path) => {
    assert.throws(() => loadConfig({ path, explicit: true }), /unknown key trust\.polcy; did you mean trust\.policy\?/);
  });
  withFile("[fetsh]\n", (path) => {
    assert.throws(() => loadConfig({ path, explicit: true }), /unknown key fetsh; did you mean fetch\?/);
  });
});

test("a syntax error names line and column", () => {
  withFile('root = "/x"\nstate = \n', (path) => {
    assert.throws(() => loadConfig({ path, explicit: true }), /config\.toml:2:\d+:/);
  });
});

test("a value of the wrong type or outside of its choices is refused", () => {
  withFile('[trust]\npolicy = "none"\n', (path) =>
    assert.throws(() => loadConfig({ path, explicit: true }), /one of bound, referrers/),
  );
  withFile("[fetch]\nrequests_per_host = 0\n", (path) =>
    assert.throws(() => loadConfig({ path, explicit: true }), /at least 1/),
  );
  withFile("root = 3\n", (path) => assert.throws(() => loadConfig({ path, explicit: true }), /must be a string/));
});

test("a missing default file is fine, a missing explicit file is an error", () => {
  assert.equal(loadConfig({ path: "/nonexistent/headstart.toml", explicit: false }).config.root, "/var/lib/headstart");
  assert.throws(() => loadConfig({ path: "/nonexistent/headstart.toml", explicit: true }), /cannot be read/);
});

test("the printed configuration reads back to the same values", () => {
  const loaded = loadConfig(null, new Map<string, string | number>([["eager.parallel_layers", 5]]));
  withFile(printConfig(loaded), (path) => assert.deepEqual(loadConfig({ path, explicit: true }).config, loaded.config));
});
