import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isHeadstartError } from "../../base/errors.ts";
import { child, descendants, items, parseXml, textOf } from "./xml.ts";

const refused = (error: unknown) => isHeadstartError(error, "HS_AWS_PROTOCOL");

test("an answer of EC2 is read: lists, entities, empty elements, attributes", () => {
  const root = parseXml(
    `<?xml version="1.0" encoding="UTF-8"?>\n<!-- note -->\n<R xmlns="http://x/"><set><item><k>a &amp; b &#x41;&#66;</k><e/></item><item><k a='1' b="2>">c</k></item></set></R>\n`,
    "test",
  );
  assert.equal(root.name, "R");
  assert.deepEqual(
    items(root, "set").map((item) => textOf(item, "k")),
    ["a & b AB", "c"],
  );
  assert.deepEqual(child(items(root, "set")[0]!, "e")?.children, []);
  assert.equal([...descendants(root, "k")].length, 2);
  assert.equal(textOf(root, "absent"), undefined);
  assert.deepEqual(items(root, "absent"), []);
});

test("what is no whole element, or has entities of its own, is refused", () => {
  const deep = `${"<a>".repeat(200)}${"</a>".repeat(200)}`;
  const bad = ["", "<a>", "</a>", "<a></b>", "<a/><b/>", "x<a/>", "<a>&x;</a>", "<a>&</a>", "<a>&#1114112;</a>", deep];
  for (const text of [...bad, '<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', "<a b=c/>", "<![CDATA[x]]>"]) {
    assert.throws(() => parseXml(text, "test"), refused, text.slice(0, 40));
  }
});

test("any text is an element or an error, soon", () => {
  const part = fc.constantFrom(
    "<a>",
    "</a>",
    "<b/>",
    "<a",
    ">",
    "&amp;",
    "&#1;",
    "&",
    '"',
    "=",
    " ",
    "<!--",
    "-->",
    "<?",
    "x",
  );
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.array(part, { maxLength: 60 }).map((parts) => parts.join("")),
      ),
      (text) => {
        try {
          assert.equal(typeof parseXml(text, "test").name, "string");
        } catch (error) {
          assert.ok(refused(error), String(error));
        }
      },
    ),
    { numRuns: 1000 },
  );
  assert.throws(() => parseXml(`<a${' b="'.repeat(50_000)}`, "test"), refused);
  assert.throws(() => parseXml("<!--".repeat(50_000), "test"), refused);
});
