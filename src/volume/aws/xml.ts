/**
 * Checked reading of the XML that EC2's and STS's query APIs answer with: elements and text; attributes are skipped. No document types, no entities but the five and numbers: a document that
 * has others is refused. Pure.
 */

import { HeadstartError } from "../../base/errors.ts";

export interface XmlElement {
  readonly name: string;
  readonly children: readonly XmlElement[];
  /** Its own text, joined. */
  readonly text: string;
}

const DEPTH_MAX = 64;
const PART =
  /<\?[^>]*\?>|<!--[\s\S]*?-->|<(\/)?([\w.:-]{1,200})((?:\s+[\w.:-]+\s*=\s*(?:"[^"]*"|'[^']*'))*)\s*(\/)?>|([^<]+)/y;
const NAMED: Readonly<Record<string, string>> = { lt: "<", gt: ">", amp: "&", quot: '"', apos: "'" };

interface Open {
  readonly name: string;
  readonly children: XmlElement[];
  text: string;
}

/** The root element. Throws HS_AWS_PROTOCOL. */
export function parseXml(document: string, what: string): XmlElement {
  const wrong = (at: number, why: string) =>
    new HeadstartError("HS_AWS_PROTOCOL", { what: `${what}: XML at character ${at}: ${why}` });
  const stack: Open[] = [{ name: "", children: [], text: "" }];
  PART.lastIndex = 0;
  for (let at = 0; at < document.length; at = PART.lastIndex) {
    PART.lastIndex = at;
    const match = PART.exec(document);
    if (match === null) throw wrong(at, "not an element and no text");
    const [, closing, name, , empty, text] = match;
    const top = stack.at(-1)!;
    if (text !== undefined) {
      top.text += decodeText(text, () => wrong(at, "an unknown entity"));
    } else if (name !== undefined && closing === undefined) {
      if (stack.length > DEPTH_MAX) throw wrong(at, `more than ${DEPTH_MAX} elements deep`);
      if (empty === undefined) stack.push({ name, children: [], text: "" });
      else top.children.push({ name, children: [], text: "" });
    } else if (name !== undefined) {
      if (stack.length === 1 || top.name !== name) throw wrong(at, `</${name}> closes nothing`);
      stack.pop();
      stack.at(-1)!.children.push(top);
    }
  }
  const [root] = stack[0]!.children;
  if (stack.length !== 1 || root === undefined || stack[0]!.children.length !== 1 || stack[0]!.text.trim() !== "") {
    throw wrong(document.length, "one whole element is wanted");
  }
  return root;
}

function decodeText(text: string, unknown: () => HeadstartError): string {
  return text.replace(
    /&(?:#(\d{1,7})|#x([0-9a-fA-F]{1,6})|(\w{1,10}));|&/g,
    (_all, decimal, hex, name: string | undefined) => {
      const named = NAMED[name ?? ""];
      if (named !== undefined) return named;
      const point = decimal !== undefined ? Number(decimal) : Number.parseInt(hex ?? "", 16);
      if (!(point <= 0x10ffff)) throw unknown();
      return String.fromCodePoint(point);
    },
  );
}

/** The first child of this name. */
export function child(element: XmlElement, name: string): XmlElement | undefined {
  return element.children.find((each) => each.name === name);
}

/** The text of a child, or undefined. */
export function textOf(element: XmlElement, name: string): string | undefined {
  return child(element, name)?.text;
}

/** The `<item>`s of a list: `<snapshotSet><item>…</item></snapshotSet>`. */
export function items(element: XmlElement, name: string): readonly XmlElement[] {
  return child(element, name)?.children.filter((each) => each.name === "item") ?? [];
}

/** Every element of this name at any depth, in the document's order. */
export function* descendants(element: XmlElement, name: string): Generator<XmlElement> {
  if (element.name === name) yield element;
  for (const each of element.children) yield* descendants(each, name);
}
