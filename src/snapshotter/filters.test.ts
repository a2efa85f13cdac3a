import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { cpuMs } from "../../test/tools/cpu-time.ts";
import { isHeadstartError } from "../base/errors.ts";
import { type Fields, parseFilters } from "./filters.ts";

const parseFilter = (expression: string) => parseFilters([expression]).matches;

const snapshot: Fields = ([first, ...rest]) => {
  if (first === "name") return "k8s.io/12/extract-1 sha256:aa";
  if (first === "parent") return "";
  if (first === "kind") return "active";
  if (first !== "labels") return undefined;
  const labels: Record<string, string> = { l: "2", "containerd.io/snapshot.ref": "sha256:bb", quoted: 'a"b,c' };
  return labels[rest.join(".")];
};
const matches = (...filters: string[]) => parseFilters(filters).matches(snapshot);

test("no filter and the empty filter match everything", () => {
  assert.ok(matches());
  assert.ok(matches(""));
});

test("paths are present, equal, unequal or match", () => {
  assert.ok(matches("kind==active"));
  assert.ok(!matches("kind==committed"));
  assert.ok(matches("kind!=committed"));
  assert.ok(matches("labels.l"));
  assert.ok(!matches("labels.none"));
  assert.ok(matches("labels.none!=x"));
  assert.ok(!matches("unknown"));
  assert.ok(matches("kind~=/^act(ive)?$/"));
  assert.ok(matches("kind~=|iv|"));
  assert.ok(!matches("kind~=^view$"));
});

test("the root's empty parent is present, and equals the empty string", () => {
  assert.ok(matches("parent"));
  assert.ok(matches('parent==""'));
  assert.ok(!matches('parent!=""'));
});

test("selectors of one filter are joined by and, filters by or", () => {
  assert.ok(matches("kind==active,labels.l==2"));
  assert.ok(!matches("kind==active,labels.l==3"));
  assert.ok(matches("kind==view", "labels.l==2"));
  assert.ok(!matches("kind==view", "labels.l==3"));
});

test("what containerd sends after ALREADY_EXISTS is understood", () => {
  assert.ok(matches('labels."containerd.io/snapshot.ref"==sha256:bb,parent==""'));
  assert.ok(matches('name=="k8s.io/12/extract-1 sha256:aa"'));
});

test("a value that every match must have is told, for an index", () => {
  const ref = ["labels", "containerd.io/snapshot.ref"];
  const of = (...expressions: string[]) => parseFilters(expressions).required(ref);
  assert.equal(of('labels."containerd.io/snapshot.ref"==sha256:bb,parent==""'), "sha256:bb");
  assert.equal(of('kind==active,labels."containerd.io/snapshot"."ref"=="x"'), "x");
  assert.equal(of('labels."containerd.io/snapshot.ref"!=x'), undefined);
  assert.equal(of('labels."containerd.io/snapshot.ref"'), undefined);
  assert.equal(of('labels."containerd.io/snapshot.ref"==x', "kind==active"), undefined);
  assert.equal(of(), undefined);
});

test("quoted text has Go's escapes", () => {
  assert.ok(matches('labels.quoted=="a\\"b,c"'));
  assert.ok(matches('labels.quoted=="\\x61\\042\\u0062\\U0000002cc"'));
  assert.ok(parseFilter('name=="a\\a\\b\\f\\n\\r\\t\\v\\\\"')(() => "a\x07\b\f\n\r\t\v\\"));
});

test("a label's key may hold dots without quotes", () => {
  assert.ok(parseFilter("labels.a.b.c==1")(([, ...rest]) => (rest.join(".") === "a.b.c" ? "1" : undefined)));
});

const INVALID = {
  "an unknown operator": "name=x",
  "three signs": "name===x",
  "no value": "name==",
  "no path": "==x",
  "a dangling comma": "name==x,",
  "a dangling dot": "labels.==x",
  "text behind a value": "name==x y",
  "a blank at the end": "kind==active ",
  "a quote without end": 'name=="x',
  "a newline in quotes": 'name=="x\ny"',
  "an unknown escape": 'name=="\\q"',
  "half an escape": 'name=="\\x1"',
  "a lone surrogate": 'name=="\\ud800"',
  "a character beyond Unicode": 'name=="\\U00110000"',
  "quotes that only a regular expression may have": "name==/x/",
  "an unbalanced regular expression": "name~=/(/",
  "a back-reference": "name~=|(a)\\\\1|",
  "a look-ahead": "name~=/(?=a)/",
  "flags inside": "name~=/(?i)a/",
  "a POSIX class": "name~=/[[:alpha:]]/",
  "Go's end of text": "name~=|a\\\\z|",
  "a repetition that would be huge": "name~=/(a{1000}){1000}/",
};
for (const [what, filter] of Object.entries(INVALID)) {
  test(`${what} is refused: ${JSON.stringify(filter)}`, () => {
    assert.throws(
      () => parseFilter(filter),
      (error) => isHeadstartError(error, "HS_FILTER"),
    );
  });
}

test("too long and too many filters are refused", () => {
  const isFilterError = (error: unknown) => isHeadstartError(error, "HS_FILTER");
  assert.throws(() => parseFilter(`name==${"x".repeat(20_000)}`), isFilterError);
  assert.throws(() => parseFilter(`name~=${"x".repeat(2000)}`), isFilterError);
  assert.throws(() => parseFilters(Array.from({ length: 2000 }, () => "name")), isFilterError);
});

test("a regular expression made to backtrack for ever ends at once", () => {
  const filter = parseFilter("name~=/^(a+)+$/");
  const ms = cpuMs(() =>
    assert.equal(
      filter(() => `${"a".repeat(4000)}b`),
      false,
    ),
  );
  assert.ok(ms < 500, `${ms} ms`);
});

test("any text is a filter or an HS_FILTER", () => {
  const piece = fc.oneof(
    fc.constantFrom("name", "labels", ".", ",", "==", "!=", "~=", '"', "/", "|", "\\", "x", " ", "(", "[", "*"),
    fc.string({ unit: "binary", maxLength: 3 }),
  );
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 12 }), (pieces) => {
      try {
        parseFilter(pieces.join(""))(snapshot);
      } catch (error) {
        assert.ok(isHeadstartError(error, "HS_FILTER"), String(error));
      }
    }),
    { numRuns: 2000 },
  );
});

test("every key and value can be asked for when it is quoted as Go quotes it", () => {
  const quote = (text: string) =>
    `"${Array.from(text, (c) => (/^[\w ]$/.test(c) ? c : `\\U${c.codePointAt(0)!.toString(16).padStart(8, "0")}`)).join("")}"`;
  const text = fc.string({ unit: "grapheme", maxLength: 20 }).filter((value) => value.isWellFormed());
  fc.assert(
    fc.property(text, text, (key, value) => {
      const filter = parseFilter(`labels.${quote(key)}==${quote(value)}`);
      assert.ok(filter(([first, second]) => (first === "labels" && second === key ? value : undefined)));
    }),
  );
});
