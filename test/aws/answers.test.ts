/** Answers that no EBS gives: the client must not believe, loop or store them. And how completion is waited for. */

import assert from "node:assert/strict";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { type Clock, systemClock } from "../../src/base/clock.ts";
import { isHeadstartError } from "../../src/base/errors.ts";
import { connectAws } from "../../src/volume/aws/connect.ts";
import { EbsApi } from "../../src/volume/ebs/api.ts";
import { BLOCK_BYTES } from "../../src/volume/ebs/blocks.ts";
import { waitCompleted } from "../../src/volume/ebs/snapshots.ts";

interface Scripted extends AsyncDisposable {
  readonly api: EbsApi;
}

/** A server whose answers the test writes. */
async function scripted(answer: (request: IncomingMessage, response: ServerResponse) => void): Promise<Scripted> {
  const server = createServer((request, response) => {
    request.resume().on("end", () => answer(request, response));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const env = {
    AWS_ENDPOINT_URL: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    AWS_REGION: "eu-central-1",
    AWS_ACCESS_KEY_ID: "AKIAEXAMPLEEXAMPLE",
    AWS_SECRET_ACCESS_KEY: "x",
  };
  const aws = await connectAws({ env, backoff: { baseMs: 1, maxMs: 2 } });
  return {
    api: new EbsApi(aws.client),
    async [Symbol.asyncDispose]() {
      await aws[Symbol.asyncDispose]();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

async function drain(api: EbsApi): Promise<number[]> {
  const found: number[] = [];
  for await (const { blocks } of api.list("snap-1")) found.push(...blocks.map(({ index }) => index));
  return found;
}

const page = (more: object) =>
  JSON.stringify({ Blocks: [{ BlockIndex: 1, BlockToken: "AAAA" }], VolumeSize: 1, BlockSize: BLOCK_BYTES, ...more });
const block = (index: unknown, token: unknown = "AAAA") => ({ BlockIndex: index, BlockToken: token });

for (const [what, body] of [
  ["not JSON", "<html>"],
  ["an array", "[]"],
  ["other block sizes", page({ BlockSize: 512 })],
  ["no volume size", page({ VolumeSize: undefined })],
  ["a volume beyond what there is", page({ VolumeSize: 70_000 })],
  ["blocks out of order", page({ Blocks: [block(5), block(4)] })],
  ["a block twice", page({ Blocks: [block(5), block(5)] })],
  ["an index as text", page({ Blocks: [block("5")] })],
  ["a block behind the volume's end", page({ Blocks: [block(2048)] })],
  ["a token that is none", page({ Blocks: [block(5, "a b")] })],
  ["a list that is none", page({ Blocks: {} })],
  ["a page token that is none", page({ NextToken: 7 })],
] as const) {
  test(`a list with ${what} is not believed`, async () => {
    await using place = await scripted((_request, response) => response.end(body));
    await assert.rejects(drain(place.api), (error) => isHeadstartError(error, "HS_AWS_PROTOCOL", "HS_MANIFEST"));
  });
}

test("a service that gives empty pages for ever is given up", async () => {
  let count = 0;
  await using place = await scripted((_request, response) =>
    response.end(page({ Blocks: [], NextToken: `t${count++}` })),
  );
  await assert.rejects(drain(place.api), (error) => isHeadstartError(error, "HS_AWS_PROTOCOL"));
  assert.equal(count, 1001);
});

test("a block that is longer or shorter than a block, or has no checksum, is not taken", async () => {
  for (const size of [BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1]) {
    await using place = await scripted((_request, response) => response.end(Buffer.alloc(size)));
    await assert.rejects(place.api.get("snap-1", { index: 0, token: "AAAA" }, new Uint8Array(BLOCK_BYTES)), (error) =>
      isHeadstartError(error, "HS_EBS_BLOCK", "HS_AWS_PROTOCOL"),
    );
  }
});

test("an answer that does not end is given up at its limit", async () => {
  await using place = await scripted((_request, response) => {
    const chunk = Buffer.alloc(1 << 20, 32);
    const more = () => {
      while (response.writable && response.write(chunk));
    };
    response.on("drain", more);
    more();
  });
  await assert.rejects(drain(place.api), (error) => isHeadstartError(error, "HS_AWS_PROTOCOL"));
});

test("a put that is answered with another checksum has not succeeded", async () => {
  await using place = await scripted((_request, response) => {
    response.writeHead(201, { "x-amz-checksum": "AAAA" }).end("{}");
  });
  await assert.rejects(place.api.put("snap-1", 0, new Uint8Array(BLOCK_BYTES), "0".repeat(64)), (error) =>
    isHeadstartError(error, "HS_AWS_PROTOCOL"),
  );
});

test("completed counts when it was said three times in a row", async () => {
  const states = [
    "pending",
    "completed",
    "pending",
    "completed",
    "completed",
    "error",
    "completed",
    "completed",
    "completed",
    "error",
  ];
  let asked = 0;
  await using place = await scripted((_request, response) => {
    const item = `<item><snapshotId>snap-1</snapshotId><status>${states[asked++]}</status><startTime>2026-01-01T00:00:00Z</startTime><volumeSize>1</volumeSize></item>`;
    response.end(`<DescribeSnapshotsResponse><snapshotSet>${item}</snapshotSet></DescribeSnapshotsResponse>`);
  });
  const waits: number[] = [];
  const clock: Clock = {
    ...systemClock,
    async sleep(ms) {
      waits.push(ms);
    },
  };
  await waitCompleted(place.api, "snap-1", { clock });
  assert.equal(asked, 9);
  assert.deepEqual(new Set(waits), new Set([2000]));
});
