import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  cpSync,
  linkSync,
  lutimesSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setXattr } from "../linux/xattr.ts";
import { compareTrees, type Difference, formatDifference } from "./compare.ts";

/** Two equal trees with every kind of entry. */
function trees(): { left: string; right: string } & Disposable {
  const root = mkdtempSync(join(tmpdir(), "headstart-compare-"));
  const left = join(root, "left");
  mkdirSync(join(left, "etc/deep"), { recursive: true });
  writeFileSync(join(left, "etc/passwd"), "root:x:0:0\n");
  writeFileSync(join(left, "etc/deep/data"), Buffer.alloc(3_000_000, "abc"));
  linkSync(join(left, "etc/passwd"), join(left, "etc/passwd-"));
  symlinkSync("passwd", join(left, "etc/link"));
  writeFileSync(Buffer.concat([Buffer.from(`${left}/etc/`), Buffer.from([0xff, 0xfe])]), "a name that is not UTF-8");
  execFileSync("mknod", [join(left, "null"), "c", "1", "3"]);
  execFileSync("mkfifo", [join(left, "pipe")]);
  setXattr(join(left, "etc/deep"), "user.kind", Buffer.from("folder"));
  const right = join(root, "right");
  execFileSync("cp", ["-a", left, right]);
  return { left, right, [Symbol.dispose]: () => rmSync(root, { recursive: true }) };
}

async function planted(plant: (right: string, left: string) => void): Promise<readonly Difference[]> {
  using pair = trees();
  plant(pair.right, pair.left);
  const { equal, differences } = await compareTrees(pair.left, pair.right);
  assert.equal(equal, differences.length === 0);
  return differences;
}

/** "path what", but for the mtime of directories that the planting itself touched. */
async function found(plant: (right: string, left: string) => void): Promise<string[]> {
  const differences = await planted(plant);
  return differences
    .filter(({ path, what }) => !(what === "mtime" && ["/", "/etc"].includes(path)))
    .map(({ path, what }) => `${path} ${what}`);
}

test("equal trees have no difference, and every entry is counted", async () => {
  using pair = trees();
  const result = await compareTrees(pair.left, pair.right);
  assert.deepEqual(result, { entries: 10, bytes: 3_000_035, differences: [], equal: true });
});

test("one flipped byte in a file of the same size and time is found", async () => {
  const differences = await planted((right, left) => {
    const bytes = Buffer.alloc(3_000_000, "abc");
    bytes[2_999_999]! ^= 1;
    writeFileSync(join(right, "etc/deep/data"), bytes);
    execFileSync("touch", ["-r", join(left, "etc/deep/data"), join(right, "etc/deep/data")]);
  });
  assert.equal(differences.length, 1);
  assert.match(formatDifference(differences[0]!), /^\/etc\/deep\/data: content is sha256:\w+, should be sha256:\w+$/);
});

test("each attribute that differs is named", async () => {
  const cases: [string, (right: string) => void][] = [
    ["/etc/deep/data mode", (right) => chmodSync(join(right, "etc/deep/data"), 0o600)],
    ["/etc/deep/data uid", (right) => chownSync(join(right, "etc/deep/data"), 7, 0)],
    ["/etc/deep/data gid", (right) => chownSync(join(right, "etc/deep/data"), 0, 7)],
    ["/etc/deep/data mtime", (right) => utimesSync(join(right, "etc/deep/data"), 1, 1)],
    ["/etc/link mtime", (right) => lutimesSync(join(right, "etc/link"), 1, 1)],
    ["/etc/deep xattr user.kind", (right) => setXattr(join(right, "etc/deep"), "user.kind", Buffer.from("other"))],
    ["/pipe xattr trusted.more", (right) => setXattr(join(right, "pipe"), "trusted.more", Buffer.from(""))],
  ];
  for (const [wanted, plant] of cases) assert.deepEqual(await found(plant), [wanted]);
});

test("a missing and an extra entry are found, each under its name", async () => {
  assert.deepEqual(await found((right) => unlinkSync(join(right, "etc/link"))), ["/etc/link missing"]);
  assert.deepEqual(await found((right) => mkdirSync(join(right, "etc/new"))), ["/etc/new extra"]);
});

test("another type, target or device is found", async () => {
  const replace = (name: string, make: (path: string) => void) => async () =>
    found((right, left) => {
      rmSync(join(right, name), { recursive: true });
      make(join(right, name));
      execFileSync("touch", ["-h", "-r", join(left, name), join(right, name)]);
    });
  assert.deepEqual(await replace("etc/deep", (path) => symlinkSync("x", path))(), ["/etc/deep type"]);
  // a symlink's size is the length of its target
  assert.deepEqual(await replace("etc/link", (path) => symlinkSync("passwx", path))(), ["/etc/link target"]);
  assert.deepEqual(await replace("null", (path) => execFileSync("mknod", [path, "c", "1", "5"]))(), ["/null rdev"]);
});

test("two files of the same content in place of one with two names are a difference", async () => {
  const names = await found((right) => {
    unlinkSync(join(right, "etc/passwd-"));
    cpSync(join(right, "etc/passwd"), join(right, "etc/passwd-"), { preserveTimestamps: true });
    execFileSync("touch", ["-r", join(right, "etc/passwd"), join(right, "etc/passwd-")]);
  });
  assert.deepEqual(names, ["/etc/passwd nlink", "/etc/passwd- nlink", "/etc/passwd- the same file as"]);
});

test("ignored paths are left out, and the list of differences ends at its limit", async () => {
  using pair = trees();
  rmSync(join(pair.right, "etc"), { recursive: true });
  mkdirSync(join(pair.right, "etc"));
  const ignored = await compareTrees(pair.left, pair.right, { ignore: ["/etc"], without: ["mtime"] });
  assert.deepEqual(ignored.differences, []);
  const limited = await compareTrees(pair.left, pair.right, { limit: 2 });
  assert.equal(limited.differences.length, 2);
});

test("a directory's time from the unpack itself is not compared, a file's is", async () => {
  using pair = trees();
  const now = Date.now() / 1000;
  for (const name of ["etc", "etc/passwd"]) utimesSync(join(pair.left, name), now, now);
  const unpacked = { startMs: Date.now() - 10_000, endMs: Date.now() + 10_000 };
  const { differences } = await compareTrees(pair.left, pair.right, { unpacked });
  assert.deepEqual(
    differences.map(({ path, what }) => `${path} ${what}`),
    ["/etc/passwd mtime", "/etc/passwd- mtime"],
  );
  const strict = await compareTrees(pair.left, pair.right);
  assert.equal(strict.differences.length, 3);
});

test("a comparison that is given up while its thread loads ends with the signal's reason", async () => {
  using pair = trees();
  const giveUp = new AbortController();
  const reason = new Error("given up");
  const compared = compareTrees(pair.left, pair.right, { signal: giveUp.signal });
  giveUp.abort(reason);
  await assert.rejects(compared, (error) => error === reason);
});
