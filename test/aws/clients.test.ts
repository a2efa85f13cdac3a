/** The server of the tests is judged by clients that are not ours, boto3 and the AWS SDK for JavaScript, before it judges ours. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import {
  CompleteSnapshotCommand,
  EBSClient,
  GetSnapshotBlockCommand,
  ListChangedBlocksCommand,
  ListSnapshotBlocksCommand,
  PutSnapshotBlockCommand,
  StartSnapshotCommand,
  ValidationException,
} from "@aws-sdk/client-ebs";
import { linear } from "./ebs.ts";
import { AwsServer } from "./server.ts";
import type { AccessKey } from "./signature.ts";
import { BLOCK } from "./world.ts";

const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest();

test("boto3 meets every rule, error, page and fault", async () => {
  await using server = await AwsServer.start({ behaviour: { emptyPageEvery: 3, pageLimit: 2 } });
  const { world } = server;
  world.launchTemplates.push(
    ...[1, 2, 3].map((number) => ({
      id: `lt-0${number}`,
      name: `t${number}`,
      versions: [1, 2, 3].map((version) => ({ number: version, snapshots: [`snap-${number}${version}`] })),
    })),
  );
  world.images.set("ami-1", ["snap-77"]);
  // the last call of the script is the only one that may try again
  server.behaviour.faults.push({ on: "ListSnapshotBlocks", kind: "throttle", every: 16, times: 1 });
  const key = world.addKey({ temporary: true, lifeMs: 3_600_000 });
  const { stdout } = await promisify(execFile)(
    "/usr/bin/python3",
    [join(import.meta.dirname, "boto3_client.py"), server.url, world.region],
    { env: { ...server.environment(key), PATH: process.env.PATH } },
  );
  const seen = JSON.parse(stdout) as Record<string, unknown>;
  assert.equal(server.behaviour.faults[0]!.times, 0);
  const tags = [{ Key: "Name", Value: `it's <a> & "b"` }];
  assert.deepEqual(seen, {
    started: { Status: "pending", VolumeSize: 1, BlockSize: BLOCK, Description: "one", Tags: tags },
    sameToken: true,
    otherParameters: ["ConflictException", null, 409],
    badChecksum: ["ValidationException", "INVALID_BLOCK", 400],
    outside: ["ValidationException", "INVALID_PARAMETER_VALUE", 400],
    badId: ["ValidationException", "INVALID_SNAPSHOT_ID", 400],
    absent: ["ResourceNotFoundException", "SNAPSHOT_NOT_FOUND", 404],
    shortBlock: ["ValidationException", "INVALID_PARAMETER_VALUE", 400],
    otherBytes: ["ValidationException", "CONFLICTING_BLOCK_UPDATE", 400],
    readPending: ["ValidationException", "INVALID_SNAPSHOT_ID", 400],
    completed: "pending",
    described: ["completed", 1, tags, false],
    putCompleted: ["ValidationException", "INVALID_SNAPSHOT_ID", 400],
    childOf: true,
    pages: 4,
    listed: [0, 3, 7, 100, 2047, 4095],
    changed: [
      [3, true, true],
      [100, false, true],
      [4095, false, true],
    ],
    start: [100, 2047, 4095],
    badBlockToken: ["ValidationException", "INVALID_BLOCK_TOKEN", 400],
    badPageToken: ["ValidationException", "INVALID_PAGE_TOKEN", 400],
    unrelated: ["ValidationException", "UNRELATED_SNAPSHOTS", 400],
    miscounted: "error",
    sizeZero: ["ValidationException", "INVALID_VOLUME_SIZE", 400],
    smallerThanParent: ["ValidationException", "INVALID_VOLUME_SIZE", 400],
    encryptedChild: ["ValidationException", "INVALID_PARAMETER_VALUE", 400],
    keyAlone: ["ValidationException", "INVALID_PARAMETER_VALUE", 400],
    inherits: true,
    pendingParent: ["ValidationException", "INVALID_SNAPSHOT_ID", 400],
    byTag: true,
    noSnapshot: ["InvalidSnapshot.NotFound", null, 400],
    fast: ["enabling", "moon-1a"],
    restores: ["enabling"],
    templates: [1, 2, 3].flatMap((number) => [1, 2, 3].map((version) => [version, `snap-${number}${version}`])),
    images: [["ami-1", "snap-77"]],
    deleted: ["InvalidSnapshot.NotFound", null, 400],
    parameter: 1,
    parameterExists: ["ParameterAlreadyExists", null, 400],
    overwritten: 2,
    read: true,
    asRole: 4,
    stranger: ["UnrecognizedClientException", null, 403],
    wrongSecret: ["SignatureDoesNotMatch", null, 403],
    afterFaults: 6,
  });
});

function sdk(server: AwsServer, key: AccessKey, maxAttempts = 1): EBSClient {
  return new EBSClient({
    endpoint: server.url,
    region: server.world.region,
    maxAttempts,
    credentials: {
      accessKeyId: key.id,
      secretAccessKey: key.secret,
      ...(key.sessionToken !== undefined && { sessionToken: key.sessionToken }),
    },
  });
}

function block(fill: number): {
  BlockData: Uint8Array;
  DataLength: number;
  Checksum: string;
  ChecksumAlgorithm: "SHA256";
} {
  const BlockData = Buffer.alloc(BLOCK, fill);
  return { BlockData, DataLength: BLOCK, Checksum: sha256(BlockData).toString("base64"), ChecksumAlgorithm: "SHA256" };
}

test("the AWS SDK writes and reads a snapshot and its child, through throttling, failures and cut connections", async () => {
  await using server = await AwsServer.start({ behaviour: { completionMs: 0, emptyPageEvery: 2 } });
  server.behaviour.faults.push(
    { on: "PutSnapshotBlock", kind: "throttle", every: 3, times: 2 },
    { on: "PutSnapshotBlock", kind: "lost", every: 4, times: 1 },
    { on: "GetSnapshotBlock", kind: "500", every: 2, times: 2 },
    { on: "CompleteSnapshot", kind: "500", times: 1 },
  );
  const client = sdk(server, server.world.addKey(), 4);
  const { SnapshotId } = await client.send(
    new StartSnapshotCommand({ VolumeSize: 1, Tags: [{ Key: "a", Value: "b" }] }),
  );
  for (const index of [1, 2, 9]) {
    await client.send(new PutSnapshotBlockCommand({ SnapshotId, BlockIndex: index, ...block(index) }));
  }
  const Checksum = linear(new Map([1, 2, 9].map((index) => [index, sha256(Buffer.alloc(BLOCK, index))])));
  const aggregate = { Checksum, ChecksumAlgorithm: "SHA256", ChecksumAggregationMethod: "LINEAR" } as const;
  await client.send(new CompleteSnapshotCommand({ SnapshotId, ChangedBlocksCount: 3, ...aggregate }));
  const child = await client.send(new StartSnapshotCommand({ VolumeSize: 1, ParentSnapshotId: SnapshotId }));
  await client.send(new PutSnapshotBlockCommand({ SnapshotId: child.SnapshotId, BlockIndex: 2, ...block(77) }));
  await client.send(new CompleteSnapshotCommand({ SnapshotId: child.SnapshotId, ChangedBlocksCount: 1 }));
  const seen: [number, number][] = [];
  let NextToken: string | undefined;
  do {
    const page = await client.send(new ListSnapshotBlocksCommand({ SnapshotId: child.SnapshotId, NextToken }));
    for (const { BlockIndex, BlockToken } of page.Blocks!) {
      const got = await client.send(
        new GetSnapshotBlockCommand({ SnapshotId: child.SnapshotId, BlockIndex, BlockToken }),
      );
      seen.push([BlockIndex!, (await got.BlockData!.transformToByteArray())[5]!]);
    }
    NextToken = page.NextToken;
  } while (NextToken !== undefined);
  assert.deepEqual(seen, [
    [1, 1],
    [2, 77],
    [9, 9],
  ]);
  const changed = await client.send(
    new ListChangedBlocksCommand({ FirstSnapshotId: SnapshotId, SecondSnapshotId: child.SnapshotId }),
  );
  assert.ok(changed.NextToken !== undefined || changed.ChangedBlocks!.length === 1);
  assert.deepEqual(
    server.behaviour.faults.map(({ times }) => times),
    [0, 0, 0, 0],
  );
  client.destroy();
});

test("the AWS SDK tells the reasons of refusals", async () => {
  await using server = await AwsServer.start({ behaviour: { visibilityDelayMs: 60_000 } });
  const key = server.world.addKey({ temporary: true, lifeMs: 3_600_000 });
  const client = sdk(server, key);
  const { SnapshotId } = await client.send(new StartSnapshotCommand({ VolumeSize: 1, Timeout: 10 }));
  const put = (fill: number, more: object = {}) =>
    client.send(new PutSnapshotBlockCommand({ SnapshotId, BlockIndex: 3, ...block(fill), ...more }));
  await assert.rejects(put(1), { name: "ResourceNotFoundException", Reason: "SNAPSHOT_NOT_FOUND" });
  server.world.advance(61_000);
  await put(1);
  await assert.rejects(put(1, { Checksum: "AAAA" }), (error: unknown) => {
    return error instanceof ValidationException && error.Reason === "INVALID_BLOCK";
  });
  server.behaviour.putsPerSecond = 1;
  await put(1).catch(() => undefined);
  await assert.rejects(put(1), { name: "RequestThrottledException", Reason: "ACCOUNT_THROTTLED" });
  server.behaviour.putsPerSecond = Number.POSITIVE_INFINITY;
  server.world.advance(11 * 60_000);
  await assert.rejects(put(1), { name: "ValidationException" });
  assert.equal(server.world.find(SnapshotId!)?.state, "error");
  server.world.advance(3_600_000);
  await assert.rejects(put(1), (error: Error) => /expired|InvalidSignature/i.test(`${error.name} ${error.message}`));
  client.destroy();
});

test("a block token dies after its week, a page token after its hour", async () => {
  await using server = await AwsServer.start({ behaviour: { pageLimit: 1 } });
  const client = sdk(server, server.world.addKey());
  const { SnapshotId } = await client.send(new StartSnapshotCommand({ VolumeSize: 1 }));
  for (const BlockIndex of [0, 1])
    await client.send(new PutSnapshotBlockCommand({ SnapshotId, BlockIndex, ...block(3) }));
  await client.send(new CompleteSnapshotCommand({ SnapshotId, ChangedBlocksCount: 2 }));
  const first = await client.send(new ListSnapshotBlocksCommand({ SnapshotId }));
  const { BlockToken } = first.Blocks![0]!;
  server.behaviour.blockTokenLifeMs = -1;
  server.behaviour.pageTokenLifeMs = -1;
  await client.send(new GetSnapshotBlockCommand({ SnapshotId, BlockIndex: 0, BlockToken }));
  const late = await client.send(new ListSnapshotBlocksCommand({ SnapshotId }));
  await assert.rejects(client.send(new ListSnapshotBlocksCommand({ SnapshotId, NextToken: late.NextToken })), {
    Reason: "INVALID_PAGE_TOKEN",
  });
  await assert.rejects(
    client.send(new GetSnapshotBlockCommand({ SnapshotId, BlockIndex: 0, BlockToken: late.Blocks![0]!.BlockToken })),
    { Reason: "INVALID_BLOCK_TOKEN" },
  );
  client.destroy();
});
