import assert from "node:assert/strict";
import { createServer, type IncomingMessage } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { test } from "node:test";
import { type Clock, systemClock } from "../../../base/clock.ts";
import { HeadstartError } from "../../../base/errors.ts";
import { HostGate, withLimit } from "./limit.ts";
import { proxyFor } from "./proxy.ts";
import { backoffMs, DEFAULT_RETRY, parseRetryAfter, withRetry } from "./retry.ts";
import type { Transport, TransportRequest, TransportResponse } from "./transport.ts";
import { UndiciTransport } from "./undici.ts";

const REQUEST: TransportRequest = { method: "GET", url: new URL("https://reg.example/v2/"), kind: "blob", headers: {} };

function answer(status: number, headers: Record<string, string> = {}): TransportResponse & { close(): void } {
  let onClose: (() => void) | undefined;
  return {
    status,
    header: (name) => headers[name],
    body: (async function* () {})(),
    discard: async () => onClose?.(),
    onClose: (listener) => {
      onClose = () => listener({ bytes: 0 });
    },
    close: () => onClose?.(),
  };
}

/** Answers from a list, and a clock that only counts what was slept. */
function scripted(script: readonly (TransportResponse | Error)[]) {
  const slept: number[] = [];
  let sent = 0;
  const clock: Clock = {
    now: () => 1_000_000,
    monotonic: () => 0,
    sleep: async (ms, signal) => {
      signal?.throwIfAborted();
      slept.push(ms);
    },
  };
  const inner: Transport = {
    send: async () => {
      const next = script[Math.min(sent++, script.length - 1)]!;
      if (next instanceof Error) throw next;
      return next;
    },
  };
  return { slept, sent: () => sent, transport: withRetry(inner, { clock, random: () => 0.5 }) };
}

const down = (reason: string) => new HeadstartError("HS_REGISTRY_UNAVAILABLE", { what: "x", reason });

test("passing troubles are tried again with growing waits, then told as they are", async () => {
  const it = scripted([answer(503)]);
  assert.equal((await it.transport.send(REQUEST)).status, 503);
  assert.equal(it.sent(), 5);
  assert.deepEqual(it.slept, [150, 300, 600, 1200]);
});

test("Retry-After is honoured up to a limit", async () => {
  const soon = scripted([answer(429, { "retry-after": "7" }), answer(200)]);
  assert.equal((await soon.transport.send(REQUEST)).status, 200);
  assert.deepEqual(soon.slept, [7000]);
  const later = scripted([answer(429, { "retry-after": "3600" }), answer(200)]);
  assert.equal((await later.transport.send(REQUEST)).status, 429);
  assert.equal(later.sent(), 1);
});

test("Retry-After is seconds or a date", () => {
  const now = Date.UTC(2026, 0, 1);
  assert.equal(parseRetryAfter("120", now), 120_000);
  assert.equal(parseRetryAfter("Thu, 01 Jan 2026 00:01:00 GMT", now), 60_000);
  assert.equal(parseRetryAfter("Wed, 31 Dec 2025 00:00:00 GMT", now), 0);
  for (const text of ["", "soon", "-1", "1.5", "Thursday", "9999999999999"])
    assert.equal(parseRetryAfter(text, now), undefined, text);
});

test("another host to ask, a stream for a body, or a trouble that stays: no long waiting", async () => {
  const quick = scripted([answer(500)]);
  await quick.transport.send({ ...REQUEST, patience: "quick" });
  assert.equal(quick.sent(), 2);
  const stream = scripted([answer(500)]);
  await stream.transport.send({ ...REQUEST, body: (async function* () {})() });
  assert.equal(stream.sent(), 1);
  const unknown = scripted([down("ENOTFOUND")]);
  await assert.rejects(unknown.transport.send(REQUEST));
  assert.equal(unknown.sent(), 1);
  const broken = scripted([down("ECONNRESET"), answer(200)]);
  assert.equal((await broken.transport.send(REQUEST)).status, 200);
  assert.equal(scripted([answer(404)]).sent(), 0);
});

test("a back-off stays between half and the whole of its ceiling", () => {
  for (let attempt = 0; attempt < 20; attempt++) {
    const ceiling = Math.min(10_000, 200 * 2 ** attempt);
    for (const random of [0, 0.5, 0.999]) {
      const ms = backoffMs(attempt, DEFAULT_RETRY, () => random);
      assert.ok(ms >= ceiling / 2 && ms <= ceiling);
    }
  }
});

test("a 429 halves what may run at once, down to a few, and good answers raise it again", async () => {
  let now = 0;
  const gate = new HostGate(12, { ...systemClock, monotonic: () => now });
  let status = 429;
  const transport = withLimit({ send: async () => answer(status) }, () => gate);
  const send = async () => (await transport.send(REQUEST)).discard();
  await Promise.all([send(), send(), send()]);
  assert.equal(gate.max, 6, "refusals of one moment count once");
  now = 2000;
  await send();
  assert.equal(gate.max, 4);
  status = 200;
  for (let index = 0; index < 32; index++) await send();
  assert.equal(gate.max, 5);
  assert.equal(gate.running, 0);
});

test("a gate lets in order, until bodies end, and lets waiters leave", async () => {
  const gate = new HostGate(1, systemClock);
  const first = answer(200);
  const answers = [first, answer(200)];
  const transport = withLimit({ send: async () => answers.shift()! }, () => gate);
  await transport.send(REQUEST);
  const controller = new AbortController();
  const left = transport.send({ ...REQUEST, signal: controller.signal });
  let entered = false;
  const second = transport.send(REQUEST).then((response) => {
    entered = true;
    return response;
  });
  controller.abort(new Error("enough"));
  await assert.rejects(left, /enough/);
  await systemClock.sleep(5);
  assert.equal(entered, false);
  first.close();
  await second;
  assert.equal(gate.running, 1);
});

test("proxies are chosen as Go programs choose them", () => {
  const env = {
    HTTPS_PROXY: "http://p:1",
    http_proxy: "q:2",
    NO_PROXY: "a.example,.b.example,*.c.example,10.0.0.0/8,d.example:8443,fd00::/8",
  };
  const by = (url: string) => proxyFor(new URL(url), env)?.host;
  assert.equal(by("https://reg.example/v2/"), "p:1");
  assert.equal(by("http://reg.example/v2/"), "q:2");
  for (const exempt of [
    "https://a.example",
    "https://x.a.example",
    "https://x.b.example",
    "https://x.c.example",
    "https://10.1.2.3",
    "https://d.example:8443",
    "https://[fd00::1]",
    "https://localhost:5000",
    "https://127.0.0.1",
    "https://[::1]",
  ]) {
    assert.equal(by(exempt), undefined, exempt);
  }
  for (const proxied of ["https://b.example.org", "https://ba.example", "https://11.1.2.3", "https://d.example"])
    assert.equal(by(proxied), "p:1", proxied);
  assert.equal(proxyFor(new URL("https://a"), { HTTPS_PROXY: "http://p", NO_PROXY: "*" }), undefined);
  assert.equal(proxyFor(new URL("https://a"), { HTTPS_PROXY: "socks5://p" }), undefined);
  assert.equal(proxyFor(new URL("https://a"), {}), undefined);
});

test("a request really goes through the proxy, with the proxy's password and nothing else's", async () => {
  const seen: IncomingMessage[] = [];
  const proxy = createServer((request, response) => {
    seen.push(request);
    response.end("from the proxy");
  });
  proxy.on("connect", (request: IncomingMessage, socket) => {
    seen.push(request);
    const target = connect(1, "127.0.0.1");
    target.on("error", () => socket.end("HTTP/1.1 502 Bad Gateway\r\n\r\n"));
  });
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  const url = `http://user:pass@127.0.0.1:${(proxy.address() as AddressInfo).port}`;
  {
    await using transport = new UndiciTransport({ env: { HTTP_PROXY: url, HTTPS_PROXY: url } });
    const response = await transport.send({ ...REQUEST, url: new URL("http://reg.invalid/v2/x?y") });
    assert.equal(response.status, 200);
    await response.discard();
    await assert.rejects(
      transport.send({ ...REQUEST, headers: { authorization: "Basic c2VjcmV0" } }),
      /HS_REGISTRY_UNAVAILABLE/,
    );
  }
  proxy.closeAllConnections();
  await new Promise((resolve) => proxy.close(resolve));
  assert.deepEqual(
    seen.map((one) => one.method),
    ["GET", "CONNECT"],
  );
  for (const request of seen) {
    assert.equal(request.headers["proxy-authorization"], `Basic ${Buffer.from("user:pass").toString("base64")}`);
    assert.equal(request.headers.authorization, undefined);
  }
});
