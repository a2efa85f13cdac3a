import assert from "node:assert/strict";
import { test } from "node:test";
import { Secret } from "../../base/secret.ts";
import { awsError, readFault, redact, remedy } from "./faults.ts";

const fault = (header: string | undefined, body: string) => readFault(header, Buffer.from(body));

test("every service's way to say an error is read", () => {
  assert.deepEqual(fault("ValidationException", '{"Message":"m","Reason":"INVALID_BLOCK"}'), {
    code: "ValidationException",
    reason: "INVALID_BLOCK",
    message: "m",
  });
  assert.equal(fault("RequestThrottledException:http://x", "{}").code, "RequestThrottledException");
  assert.equal(
    fault(undefined, '{"__type":"com.amazonaws.ssm#ParameterNotFound","message":"m"}').code,
    "ParameterNotFound",
  );
  const ec2 = "<Response><Errors><Error><Code>AuthFailure</Code><Message>no &lt;</Message></Error></Errors></Response>";
  assert.deepEqual(fault(undefined, ec2), { code: "AuthFailure", reason: undefined, message: "no <" });
  const sts = "<ErrorResponse><Error><Type>Sender</Type><Code>ExpiredToken</Code></Error></ErrorResponse>";
  assert.equal(fault(undefined, sts).code, "ExpiredToken");
  for (const text of ["<html><body><h1>502</h1></body></html>", "", "not JSON", "null", "[]", "<a"]) {
    assert.equal(fault(undefined, text).code, "", text);
  }
});

test("what a client does about an error follows from its code, not from the status alone", () => {
  const of = (status: number, code: string, message = "") => remedy(status, { code, reason: undefined, message });
  assert.equal(of(400, "RequestThrottledException"), "slower");
  assert.equal(of(503, "RequestLimitExceeded"), "slower");
  assert.equal(of(503, "EC2ThrottledException"), "slower");
  assert.equal(of(429, ""), "slower");
  assert.equal(of(500, "InternalServerException"), "again");
  assert.equal(of(502, ""), "again");
  assert.equal(of(400, "InternalError"), "again");
  assert.equal(of(400, "IDPCommunicationError"), "again");
  const invalid = { code: "ValidationException", message: "" };
  assert.equal(remedy(400, { ...invalid, reason: "WRITE_REQUEST_TIMEOUT" }), "again");
  assert.equal(remedy(400, { ...invalid, reason: "INVALID_BLOCK" }), "none");
  assert.equal(of(400, "ExpiredTokenException"), "fresh-credentials");
  assert.equal(of(403, "InvalidSignatureException", "Signature expired: 2026…"), "skewed");
  for (const code of [
    "ValidationException",
    "AccessDeniedException",
    "ConflictException",
    "ServiceQuotaExceededException",
    "InvalidSignatureException",
  ]) {
    assert.equal(of(400, code, "The Canonical String for this request should have been"), "none", code);
  }
});

test("secrets that a service quotes are cut out of the message, and control characters too", () => {
  const credentials = {
    accessKeyId: "ASIAEXAMPLEEXAMPLE",
    secretAccessKey: new Secret("se/cret+key"),
    sessionToken: new Secret("to/ken=="),
    expiresAt: undefined,
  };
  const message = "x-amz-security-token:to/ken== to%2Fken%3D%3D se/cret+key ASIAEXAMPLEEXAMPLE\u001b[2J\u202e";
  const error = awsError("Put", 403, { code: "SignatureDoesNotMatch", reason: undefined, message }, credentials);
  assert.equal(error.code, "HS_AWS_DENIED");
  assert.match(
    error.message,
    /^\[HS_AWS_DENIED\] Put: SignatureDoesNotMatch: x-amz-security-token:\[redacted\] \[redacted\] \[redacted\] \[redacted\] \[2J $/,
  );
  assert.equal(redact("nothing", undefined), "nothing");
});
