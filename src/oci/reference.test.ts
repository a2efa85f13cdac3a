import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { sha256 } from "../base/digest.ts";
import { isHeadstartError } from "../base/errors.ts";
import { formatReference, formatSource, parseReference, parseSource, sourceAt } from "./reference.ts";

const DIGEST = `sha256:${"a".repeat(64)}`;
const refused = (error: unknown) => isHeadstartError(error, "HS_REFERENCE");

test("names are completed as docker does it", () => {
  const cases = {
    busybox: "docker.io/library/busybox:latest",
    "busybox:1.36": "docker.io/library/busybox:1.36",
    "user/app": "docker.io/user/app:latest",
    "index.docker.io/user/app": "docker.io/user/app:latest",
    "docker.io/app": "docker.io/library/app:latest",
    "ghcr.io/a/b/c:v1": "ghcr.io/a/b/c:v1",
    "localhost/app": "localhost/app:latest",
    "localhost:5000/app:x": "localhost:5000/app:x",
    "[::1]:5000/app": "[::1]:5000/app:latest",
    "HOST/app": "HOST/app:latest",
    "host:80/app": "host:80/app:latest",
    [`ghcr.io/a@${DIGEST}`]: `ghcr.io/a@${DIGEST}`,
    [`ghcr.io/a:t@${DIGEST}`]: `ghcr.io/a:t@${DIGEST}`,
    "a__b/c-d.e--f": "docker.io/a__b/c-d.e--f:latest",
  };
  for (const [text, whole] of Object.entries(cases)) assert.equal(formatReference(parseReference(text)), whole, text);
});

test("what is no reference is refused", () => {
  const cases = [
    "",
    "App",
    "ghcr.io/",
    "ghcr.io/A",
    "a:",
    "a:b:c",
    "a@sha256:1",
    `a@${DIGEST.toUpperCase()}`,
    "a//b",
    "/a",
    "a/",
    "-a/b",
    "host:99999/a",
    "ho st.io/a",
    "ghcr.io/a b",
    "user:password@ghcr.io/a",
    "ghcr.io/../a",
    `ghcr.io/${"a".repeat(300)}`,
    `a:${"t".repeat(129)}`,
    "a\nb",
  ];
  for (const text of cases) assert.throws(() => parseReference(text), refused, JSON.stringify(text));
});

test("sources are told apart by their transport", () => {
  const registry = { kind: "registry", reference: parseReference("ghcr.io/a:1") };
  assert.deepEqual(parseSource("docker://ghcr.io/a:1"), registry);
  assert.deepEqual(parseSource("ghcr.io/a:1"), registry);
  assert.deepEqual(parseSource("oci:/tmp/dir"), { kind: "layout", directory: "/tmp/dir" });
  assert.deepEqual(parseSource("oci:/tmp/dir:v1"), { kind: "layout", directory: "/tmp/dir", tag: "v1" });
  assert.deepEqual(parseSource("oci:dir:docker.io/library/a:v1"), {
    kind: "layout",
    directory: "dir",
    tag: "docker.io/library/a:v1",
  });
  assert.deepEqual(parseSource(`oci:dir@${DIGEST}`), { kind: "layout", directory: "dir", digest: DIGEST });
  assert.deepEqual(parseSource("oci-archive:a.tar:v1"), { kind: "archive", file: "a.tar", tag: "v1" });
  assert.deepEqual(parseSource("docker-archive:a.tar"), { kind: "archive", file: "a.tar" });
  assert.deepEqual(parseSource("containerd:docker.io/library/a:1"), {
    kind: "containerd",
    reference: "docker.io/library/a:1",
  });
  assert.deepEqual(parseSource("rafs:boot:blobs/x"), { kind: "rafs", bootstrap: "boot", blobs: "blobs/x" });
  assert.equal(parseSource("oci").kind, "registry");
});

test("half a source, or one of an unknown transport, is refused", () => {
  for (const text of [
    "oci:",
    "oci:dir:",
    "oci::x",
    "oci-archive:",
    "containerd:",
    "rafs:a",
    "rafs::b",
    "ftp://a/b",
    "http://a/b",
  ]) {
    assert.throws(() => parseSource(text), refused, text);
  }
});

const word = fc.stringMatching(/^[a-z0-9]{1,8}$/);
const reference = fc
  .record({
    host: fc.oneof(
      fc.constant("docker.io"),
      fc.constant("localhost:5000"),
      word.map((name) => `${name}.example`),
    ),
    path: fc.array(word, { minLength: 2, maxLength: 4 }),
    tag: fc.option(fc.stringMatching(/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}$/), { nil: undefined }),
    digest: fc.boolean(),
  })
  .map(
    ({ host, path, tag, digest }) => `${host}/${path.join("/")}${tag ? `:${tag}` : ""}${digest ? `@${DIGEST}` : ""}`,
  );

test("property: a formatted reference is read back as itself", () => {
  fc.assert(
    fc.property(reference, (text) => {
      const parsed = parseReference(text);
      assert.deepEqual(parseReference(formatReference(parsed)), parsed);
      const source = parseSource(text);
      assert.deepEqual(parseSource(formatSource(source)), source);
    }),
  );
});

test("property: any text is a source or a typed error, at once", () => {
  const near = fc.oneof(fc.string(), fc.string({ unit: "binary" }), fc.stringMatching(/^[a-z:/@.[\]0-9-]{0,60}$/));
  fc.assert(
    fc.property(near, (text) => {
      try {
        const source = parseSource(text);
        assert.deepEqual(parseSource(formatSource(source)), source);
      } catch (error) {
        assert.ok(refused(error), String(error));
      }
    }),
    { numRuns: 2000 },
  );
});

test("a host that only its upper case tells from a path keeps it, so that its printed form leads to the same registry", () => {
  const reference = parseReference("Registry/app/web:1");
  assert.equal(formatReference(reference), "Registry/app/web:1");
  assert.deepEqual(parseReference(formatReference(reference)), reference);
  assert.equal(parseReference("Registry.Example/app:1").host, "registry.example");
});

test("another manifest of the same place is named by its digest", () => {
  const digest = sha256(Buffer.from("other"));
  const at = (text: string) => {
    const source = sourceAt(parseSource(text), digest);
    return source === null ? null : formatSource(source);
  };
  assert.equal(at("docker://example.com/app:1"), `docker://example.com/app@${digest}`);
  assert.equal(at("oci:dir:v1"), `oci:dir@${digest}`);
  assert.equal(at("oci-archive:file.tar"), `oci-archive:file.tar@${digest}`);
  assert.equal(at("containerd:example.com/app:1"), null);
});
