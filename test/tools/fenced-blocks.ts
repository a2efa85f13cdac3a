/** The fenced blocks of a Markdown page, in order, each with the headings that it stands under: what a reader would type or copy. */

export interface FencedBlock {
  readonly language: string;
  readonly text: string;
  /** Of the opening fence, from 1. */
  readonly line: number;
  /** The nearest heading above it. */
  readonly heading: string;
  /** The nearest one of the second level; "": none. */
  readonly section: string;
}

export function fencedBlocks(page: string): FencedBlock[] {
  const blocks: FencedBlock[] = [];
  let heading = "";
  let section = "";
  let open: { language: string; line: number; lines: string[] } | undefined;
  for (const [index, text] of page.split("\n").entries()) {
    if (open !== undefined) {
      if (text === "```") {
        const { lines, ...rest } = open;
        blocks.push({ ...rest, heading, section, text: `${lines.join("\n")}\n` });
        open = undefined;
      } else open.lines.push(text);
      continue;
    }
    const fence = /^```(\w*)/.exec(text);
    if (fence !== null) open = { language: fence[1]!, line: index + 1, lines: [] };
    else {
      heading = /^#+ (.*)$/.exec(text)?.[1] ?? heading;
      section = /^## (.*)$/.exec(text)?.[1] ?? section;
    }
  }
  return blocks;
}
