import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { parseSections } from "./profile.ts";

test("sections, comments, nested settings and odd spacing are read as the AWS CLI reads them", () => {
  const sections = parseSections(
    `# comment\r\n[default]\nregion = eu-west-1\naws_access_key_id=A=B==\n\n[ profile   ci ] ; note\nROLE_ARN = arn:x\ns3 =\n  region = nested\n[profile "two words"]\nx = 1\n[default]\noutput=json\norphan\n= y\n`,
  );
  assert.deepEqual(Object.fromEntries(sections.get("default")!), {
    region: "eu-west-1",
    aws_access_key_id: "A=B==",
    output: "json",
  });
  assert.deepEqual(Object.fromEntries(sections.get("profile ci")!), { role_arn: "arn:x", s3: "" });
  assert.equal(sections.get("profile two words")?.get("x"), "1");
});

test("any text is read without an error", () => {
  fc.assert(fc.property(fc.string(), (text) => parseSections(text) instanceof Map));
});
