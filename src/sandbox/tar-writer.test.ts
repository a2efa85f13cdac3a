import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { getXattr } from "../linux/xattr.ts";
import { copyMembers, listTar } from "./tar-split.ts";
import { type TarEntry, writeTar } from "./tar-writer.ts";

const LONG = `${"directory/".repeat(20)}file-${"n".repeat(90)}`;
const ENTRIES: readonly TarEntry[] = [
  { path: "./", mode: 0o755 },
  { path: "tmp/", mode: 0o1777 },
  { path: "etc/motd", data: "hello\n", uid: 7, gid: 3_000_000, mtime: 1_600_000_000.25 },
  { path: "etc/same", type: "hardlink", target: "etc/motd" },
  { path: "etc/link", type: "symlink", target: "motd" },
  { path: LONG, data: "long" },
  { path: "grün", data: "not ASCII", xattrs: { "user.colour": "green", "user.empty": "" } },
  { path: "null", type: "char", major: 1, minor: 3, mode: 0o666 },
  { path: "pipe", type: "fifo" },
];

async function all(chunks: AsyncIterable<Buffer>): Promise<Buffer[]> {
  const found: Buffer[] = [];
  for await (const chunk of chunks) found.push(chunk);
  return found;
}

function workplace() {
  const root = mkdtempSync(join(tmpdir(), "headstart-tar-"));
  return { root, [Symbol.dispose]: () => rmSync(root, { recursive: true }) };
}

test("GNU tar unpacks what the writer wrote", () => {
  using place = workplace();
  writeFileSync(join(place.root, "a.tar"), writeTar(ENTRIES));
  execFileSync("tar", ["--xattrs", "--numeric-owner", "-xpf", "a.tar"], { cwd: place.root });
  const stat = (path: string) => statSync(join(place.root, path), { bigint: true });
  assert.equal(stat("tmp").mode & 0o7777n, 0o1777n);
  const { uid, gid, mtimeMs, nlink, ino } = stat("etc/motd");
  assert.deepEqual([uid, gid, mtimeMs, nlink], [7n, 3_000_000n, 1_600_000_000_250n, 2n]);
  assert.equal(stat("etc/same").ino, ino);
  assert.equal(readFileSync(join(place.root, "etc/link"), "utf8"), "hello\n");
  assert.equal(readFileSync(join(place.root, LONG), "utf8"), "long");
  assert.equal(Buffer.from(getXattr(join(place.root, "grün"), "user.colour")!).toString(), "green");
  assert.ok(stat("null").isCharacterDevice());
  assert.ok(stat("pipe").isFIFO());
});

test("a tar is cut into members, and the members make a tar again", async () => {
  using place = workplace();
  const path = join(place.root, "a.tar");
  writeFileSync(path, writeTar(ENTRIES));
  await using file = await open(path, "r");
  const members = await listTar(file);
  const paths = ENTRIES.map((entry) =>
    Buffer.from(entry.path)
      .toString("latin1")
      .replace(/^\.\/|\/$/g, ""),
  );
  assert.deepEqual(
    members.map((member) => member.path),
    paths,
  );
  assert.equal(members[3]!.target, "etc/motd");
  const whole = await all(copyMembers(path, members));
  assert.ok(Buffer.concat(whole).equals(readFileSync(path)));
  const some = members.filter((member) => member.path.startsWith("etc"));
  writeFileSync(join(place.root, "b.tar"), Buffer.concat(await all(copyMembers(path, some))));
  const listed = execFileSync("tar", ["tf", "b.tar"], { cwd: place.root, encoding: "utf8" });
  assert.equal(listed, "etc/motd\netc/same\netc/link\n");
});
