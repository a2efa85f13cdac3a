/** EC2's and STS's query protocol: form fields in, XML out. */

import type { AwsCall, AwsClient, AwsService } from "./client.ts";
import { parseXml, textOf, type XmlElement } from "./xml.ts";

const VERSIONS = { ec2: "2016-11-15", sts: "2011-06-15" } as const satisfies Partial<Record<AwsService, string>>;

export type Fields = Readonly<Record<string, string | undefined>>;

export interface QueryOptions extends Pick<AwsCall, "again" | "attempts"> {
  readonly signal?: AbortSignal | undefined;
}

/** The answer's root element. Throws what `AwsClient.call` throws. */
export async function query(
  client: AwsClient,
  service: keyof typeof VERSIONS,
  action: string,
  fields: Fields,
  options: QueryOptions = {},
): Promise<XmlElement> {
  const form = new URLSearchParams({ Action: action, Version: VERSIONS[service] });
  for (const [name, value] of Object.entries(fields)) if (value !== undefined) form.set(name, value);
  const answer = await client.call({
    service,
    operation: action,
    method: "POST",
    path: "/",
    headers: { "content-type": "application/x-www-form-urlencoded; charset=utf-8" },
    body: Buffer.from(form.toString()),
    ...options,
  });
  return parseXml(Buffer.from(answer.body).toString("utf8"), action);
}

/** All pages of a list, one after another. */
export async function* queryPages(
  client: AwsClient,
  action: string,
  fields: Fields,
  options: QueryOptions = {},
): AsyncGenerator<XmlElement> {
  let token: string | undefined;
  do {
    const root = await query(client, "ec2", action, { ...fields, NextToken: token }, options);
    yield root;
    const next = textOf(root, "nextToken");
    token = next === "" || next === token ? undefined : next;
  } while (token !== undefined);
}

/** `list("SnapshotId", ["a", "b"])`: SnapshotId.1 = a, SnapshotId.2 = b. */
export function list(name: string, values: readonly string[]): Fields {
  return Object.fromEntries(values.map((value, index) => [`${name}.${index + 1}`, value]));
}

/** `{ "tag:Name": ["x"] }` as Filter.1.Name, Filter.1.Value.1. EC2 takes * and ? in a value for any text, unless a backslash stands before them. */
export function filters(wanted: Readonly<Record<string, readonly string[]>>): Fields {
  return Object.fromEntries(
    Object.entries(wanted).flatMap(([name, values], index) => [
      [`Filter.${index + 1}.Name`, name],
      ...values.map((value, number) => [
        `Filter.${index + 1}.Value.${number + 1}`,
        value.replace(/[\\*?]/g, (sign) => `\\${sign}`),
      ]),
    ]),
  );
}
