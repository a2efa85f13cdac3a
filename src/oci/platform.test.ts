import assert from "node:assert/strict";
import { test } from "node:test";
import { formatPlatform, hostPlatform, parsePlatform, platformRank, runnablePlatforms } from "./platform.ts";

test("spellings of one platform are one platform", () => {
  const cases = {
    "linux/amd64": "linux/amd64",
    "linux/x86_64": "linux/amd64",
    amd64: "linux/amd64",
    "Linux/AMD64/v1": "linux/amd64",
    "linux/amd64/v3": "linux/amd64/v3",
    "linux/aarch64": "linux/arm64",
    "linux/arm64/v8": "linux/arm64",
    "linux/arm64/8": "linux/arm64",
    "linux/arm64/v9": "linux/arm64/v9",
    "linux/arm": "linux/arm/v7",
    "linux/arm/7": "linux/arm/v7",
    "linux/armel": "linux/arm/v6",
    "linux/armhf": "linux/arm/v7",
    "linux/i386": "linux/386",
  };
  for (const [text, whole] of Object.entries(cases)) assert.equal(formatPlatform(parsePlatform(text)), whole, text);
});

test("what is no platform is refused", () => {
  for (const text of ["", "/", "a/b/c/d", "linux/", "linux/am d"])
    assert.throws(() => parsePlatform(text), /HS_USAGE/, text);
});

test("a machine runs its own platform first, then what is below it", () => {
  const names = (text: string) => runnablePlatforms(parsePlatform(text)).map(formatPlatform);
  assert.deepEqual(names("linux/amd64"), ["linux/amd64", "linux/386"]);
  assert.deepEqual(names("linux/amd64/v3"), ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]);
  assert.deepEqual(names("linux/arm/v7"), ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]);
  assert.equal(names("linux/arm64")[0], "linux/arm64");
});

test("ranks say which offer is best", () => {
  const wanted = parsePlatform("linux/amd64");
  assert.equal(platformRank(wanted, { os: "linux", architecture: "x86_64" }), 0);
  assert.equal(platformRank(wanted, { os: "linux", architecture: "386" }), 1);
  assert.equal(platformRank(wanted, { os: "linux", architecture: "arm64" }), -1);
  assert.equal(platformRank(wanted, { os: "windows", architecture: "amd64" }), -1);
});

test("the host's platform is Linux on this machine's processor", () => {
  assert.equal(formatPlatform(hostPlatform("x64")), "linux/amd64");
  assert.equal(formatPlatform(hostPlatform("arm64")), "linux/arm64");
  assert.equal(hostPlatform().os, "linux");
});
