import assert from "node:assert/strict";
import { test } from "node:test";
import { membersByLayer } from "./debian-image.ts";
import { assignPackages, closure, parseStatus } from "./debian-packages.ts";
import type { TarMember } from "./tar-split.ts";

const STATUS = `Package: libc6
Status: install ok installed
Priority: optional
Depends: libgcc-s1

Package: libgcc-s1
Priority: optional
Depends: gcc-base (= 12), libc6 (>= 2.35)

Package: gcc-base
Priority: required

Package: apt
Priority: important
Depends: libc6 (>= 2.34), gpgv | gpgv2

Package: python3
Priority: optional
Pre-Depends: python3-minimal (= 3.11)
Depends: libssl3 (>= 3),
 mail-agent, absent
Description: text
 that: looks like a field

Package: python3-minimal
Priority: optional

Package: exim
Priority: optional
Provides: mail-agent (= 1), smtp

Package: numpy
Priority: optional
Depends: python3:any

Package: redis
Priority: optional
Depends: libssl3 (>= 3)

Package: libssl3
Priority: optional
`;

test("dependencies are followed through alternatives, folded lines, provided names and circles", () => {
  const packages = parseStatus(STATUS);
  assert.equal(packages.length, 10);
  assert.deepEqual([...closure(packages, ["libc6"])].sort(), ["gcc-base", "libc6", "libgcc-s1"]);
  assert.deepEqual([...closure(packages, ["python3"])].sort(), ["exim", "libssl3", "python3", "python3-minimal"]);
});

test("a layer holds what it needs beyond the base, and what two separate layers need is in the base", () => {
  const plans = {
    python: { packages: ["python3"] },
    science: { packages: ["numpy"], on: ["python"] },
    redis: { packages: ["redis"] },
  };
  assert.deepEqual(Object.fromEntries(assignPackages(parseStatus(STATUS), plans)), {
    libc6: "base",
    "libgcc-s1": "base",
    "gcc-base": "base",
    apt: "base",
    python3: "python",
    "python3-minimal": "python",
    exim: "python",
    numpy: "science",
    redis: "redis",
    libssl3: "base",
  });
});

test("files go with the package that owns them or their directory, hard links with their first name, parents everywhere", () => {
  const member = (path: string, flag = "0", target = ""): TarMember => ({
    path,
    flag,
    target,
    start: 0,
    end: 0,
    dataStart: 0,
    size: 0,
  });
  const members = [
    member("", "5"),
    member("empty", "5"),
    member("lib", "5"),
    member("lib/python", "5"),
    member("lib/python/os.py"),
    member("lib/python/os.pyc"),
    member("lib/python/hard", "1", "lib/python/os.py"),
    member("lib/made-up"),
  ];
  const owners = new Map([
    ["lib", new Set(["base", "python"])],
    ["lib/python", new Set(["python"])],
    ["lib/python/os.py", new Set(["python"])],
  ]);
  const layers = membersByLayer(members, owners, new Map());
  assert.deepEqual(
    layers.get("python")!.map(({ path }) => path),
    ["", "lib", "lib/python", "lib/python/os.py", "lib/python/os.pyc", "lib/python/hard"],
  );
  assert.deepEqual(
    layers.get("base")!.map(({ path }) => path),
    ["", "empty", "lib", "lib/made-up"],
  );
});
