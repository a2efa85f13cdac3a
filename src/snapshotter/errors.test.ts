import assert from "node:assert/strict";
import { test } from "node:test";
import { Code } from "@connectrpc/connect";
import { HeadstartError } from "../base/errors.ts";
import { toConnectError } from "./errors.ts";

const code = (error: unknown) => toConnectError(error).code;

test("our errors become the codes that containerd expects", () => {
  const what = "x";
  assert.equal(code(new HeadstartError("HS_SNAPSHOT_EXISTS", { what })), Code.AlreadyExists);
  assert.equal(code(new HeadstartError("HS_SNAPSHOT_NOT_FOUND", { what })), Code.NotFound);
  assert.equal(code(new HeadstartError("HS_SNAPSHOT_INVALID", { what })), Code.InvalidArgument);
  assert.equal(code(new HeadstartError("HS_FILTER", { what })), Code.InvalidArgument);
  assert.equal(code(new HeadstartError("HS_SNAPSHOT_KIND", { what })), Code.FailedPrecondition);
  assert.equal(code(new HeadstartError("HS_SNAPSHOT_CHILDREN", { what })), Code.FailedPrecondition);
  assert.equal(code(new HeadstartError("HS_SNAPSHOT_BROKEN", { what })), Code.DataLoss);
  assert.equal(code(new HeadstartError("HS_REGISTRY_UNAVAILABLE", { what })), Code.Unavailable);
  assert.equal(code(new HeadstartError("HS_DISK_FULL", { what })), Code.ResourceExhausted);
  assert.equal(code(new HeadstartError("HS_CANCELED", { what })), Code.Canceled);
  assert.equal(code(Object.assign(new Error("full"), { code: "ENOSPC" })), Code.ResourceExhausted);
  assert.equal(code(new DOMException("gone", "AbortError")), Code.Canceled);
  assert.equal(code(new Error("anything")), Code.Internal);
});

test("a file or a blob that is missing never says that the snapshot is missing", () => {
  assert.equal(code(Object.assign(new Error("no such file"), { code: "ENOENT" })), Code.Unavailable);
  assert.equal(code(new HeadstartError("HS_BLOB_NOT_FOUND", { what: "x" })), Code.Unavailable);
  assert.equal(code(new HeadstartError("HS_LAYER_STATE", { what: "x" })), Code.Internal);
});

test("the message holds the code, what it is about, and the causes", () => {
  const error = new HeadstartError("HS_MOUNT", { what: "layer 7", cause: new Error("EPERM") });
  assert.match(toConnectError(error).rawMessage, /^\[HS_MOUNT\] layer 7: EPERM$/);
});
