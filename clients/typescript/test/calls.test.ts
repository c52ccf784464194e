/** Deadlines, retries and errors, against a sidecar that fails on demand. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { credentials, status } from "@grpc/grpc-js";

import { Attempts } from "../src/attempts.js";
import * as all from "../src/index.js";
import {
  CallCancelledError,
  Crossfade,
  CrossfadeError,
  DeadlineExceededError,
  increment,
  InternalError,
  InvalidArgumentError,
  OutcomeUnknownError,
  Query,
  type Snapshot,
  UnavailableError,
  UnimplementedError,
  UnknownError,
  Write,
} from "../src/index.js";
import { fromStatus } from "../src/errors.js";
import { Fake, pair } from "./fake.js";

async function drained(found: AsyncIterable<Snapshot>): Promise<string[]> {
  const seen = [];
  for await (const { id } of found) {
    seen.push(id);
  }
  return seen;
}

test("reads are tried again", async () => {
  const [fake, crossfade] = await pair();
  fake.failures = ["get", "getAll", "query"].map((method) => ({ method, times: 2 }));
  assert.equal((await crossfade.get("a/1")).id, "1");
  assert.equal((await crossfade.getAll(["a/0", "a/3"])).length, 2);
  assert.deepStrictEqual(await drained(crossfade.query("a")), ["0", "1", "2", "3"]);
  assert.deepStrictEqual([fake.count("get"), fake.count("getAll"), fake.count("query")], [3, 3, 3]);
});

test("documents of one moment are asked for anew when their stream breaks", async () => {
  const [fake, crossfade] = await pair();
  fake.failures = [{ method: "getAll", pages: 2 }];
  const found = await crossfade.getAll(["a/3", "a/0"]);
  assert.deepStrictEqual(
    found.map((snapshot) => snapshot?.id),
    ["3", "0"],
  );
  assert.equal(fake.count("getAll"), 2);
});

test("a document that nothing is said of is an error", async () => {
  const [, crossfade] = await pair();
  await assert.rejects(crossfade.getAll(["a/0", "a/9"]), InternalError);
  await assert.rejects(crossfade.count("a"), InternalError);
  assert.deepStrictEqual(await crossfade.getAll([]), []);
});

test("a query is not begun twice", async () => {
  const [fake, crossfade] = await pair();
  fake.failures = [{ method: "query", pages: 2 }];
  const seen: string[] = [];
  await assert.rejects(async () => {
    for await (const { id } of crossfade.query(new Query("a"))) {
      seen.push(id);
    }
  }, UnavailableError);
  assert.deepStrictEqual(seen, ["0", "1"]);
  assert.equal(fake.count("query"), 1);
});

test("a query that is left early is cancelled", async () => {
  const [fake, crossfade] = await pair();
  fake.delay = 1; // the stream is not ended
  for await (const { id } of crossfade.query("a")) {
    assert.equal(id, "0");
    break;
  }
  while (fake.cancelled === 0) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
});

test("an outage is never an empty answer", async () => {
  const [fake, crossfade] = await pair({ retries: 2 });
  fake.failures = ["get", "getAll", "query", "aggregate"].map((method) => ({ method, times: 99 }));
  await assert.rejects(crossfade.get("a/1"), UnavailableError);
  await assert.rejects(crossfade.find("a/1"), UnavailableError);
  await assert.rejects(crossfade.getAll(["a/1"]), UnavailableError);
  await assert.rejects(drained(crossfade.query("a")), UnavailableError);
  await assert.rejects(crossfade.count("a"), /UNAVAILABLE: told to/);
  assert.equal(fake.count("get"), 6);
});

test("only UNAVAILABLE is tried again", async () => {
  const [fake, crossfade] = await pair();
  fake.failures = [{ method: "get", code: status.INTERNAL }];
  await assert.rejects(crossfade.get("a/1"), InternalError);
  assert.equal(fake.count("get"), 1);
});

test("a commit that was done unseen is not done twice", async () => {
  const [fake, crossfade] = await pair();
  fake.failures = [{ method: "commit", after: true }];
  const result = await crossfade.update("a/1", { n: increment(1) });
  assert.ok(result.replayed);
  assert.equal(fake.count("commit"), 2);
  assert.equal(fake.commits.length, 1);
});

test("each commit has a requestId of its own, and keeps it when it is sent again", async () => {
  const [fake, crossfade] = await pair();
  fake.failures = [{ method: "commit" }];
  await crossfade.set("a/1", {});
  await crossfade.set("a/1", {});
  await crossfade.set("a/1", {}, { requestId: "mine" });
  const ids = fake.commits.map(({ requestId }) => requestId);
  assert.equal(new Set(ids).size, 3);
  assert.equal(ids[2], "mine");
  assert.equal(fake.count("commit"), 4);
});

test("without a requestId a commit is sent once", async () => {
  const [fake, crossfade] = await pair();
  fake.failures = [{ method: "commit", after: true }];
  await assert.rejects(
    crossfade.set("a/1", {}, { requestId: null }),
    (error) => error instanceof UnavailableError && error.requestId === undefined,
  );
  assert.equal(fake.count("commit"), 1);
  await assert.rejects(crossfade.set("a/1", {}, { requestId: "" }), InvalidArgumentError);
  await assert.rejects(crossfade.commit([]), InvalidArgumentError);
});

test("an open outcome is settled by the requestId", async () => {
  const [fake, crossfade] = await pair();
  fake.failures = [{ method: "commit", code: status.UNKNOWN, after: true }];
  const writes = [Write.merge("a/1", { n: increment(1) })];
  const error: unknown = await crossfade.commit(writes).catch((raised: unknown) => raised);
  assert.ok(error instanceof OutcomeUnknownError && error instanceof UnknownError);
  const { requestId } = error;
  assert.ok(requestId);
  assert.ok((await crossfade.commit(writes, { requestId })).replayed);
  assert.equal(fake.commits.length, 1);
});

test("every call has a deadline", async () => {
  const [fake, crossfade] = await pair();
  fake.delay = 60_000;
  await assert.rejects(crossfade.get("a/1", { timeout: 50 }), DeadlineExceededError);
  await assert.rejects(crossfade.set("a/1", {}, { timeout: 50 }), DeadlineExceededError);
  await assert.rejects(drained(crossfade.query("a", { timeout: 50 })), DeadlineExceededError);
  for (const timeout of [0, -1, Number.NaN, Number.POSITIVE_INFINITY]) {
    await assert.rejects(crossfade.get("a/1", { timeout }), InvalidArgumentError);
  }
});

test("the deadline is for all attempts together", async () => {
  const [fake, crossfade] = await pair({ retries: 1_000_000 });
  fake.failures = [{ method: "get", times: 1_000_000 }];
  const began = performance.now();
  // The second where it ends while the last attempt is under way.
  await assert.rejects(
    crossfade.get("a/1", { timeout: 300 }),
    (error) => error instanceof UnavailableError || error instanceof DeadlineExceededError,
  );
  assert.ok(performance.now() - began < 3_000);
  assert.ok(fake.count("get") > 1);
});

test("a signal ends a call, also between attempts", async () => {
  const [fake, crossfade] = await pair({ retries: 1_000_000, timeout: 60_000 });
  fake.delay = 60_000;
  const reason = new Error("enough");
  await assert.rejects(crossfade.get("a/1", { signal: AbortSignal.abort(reason) }), reason);
  assert.equal(fake.count("get"), 0);
  for (const call of ["get", "query"] as const) {
    const controller = new AbortController();
    const options = { signal: controller.signal };
    const asked = call === "get" ? crossfade.get("a/1", options) : drained(crossfade.query("a", options));
    setTimeout(() => controller.abort(reason), 50);
    await assert.rejects(asked, reason);
  }
  fake.delay = 0;
  fake.failures = [{ method: "get", times: 1_000_000 }];
  const controller = new AbortController();
  setTimeout(() => controller.abort(reason), 50);
  await assert.rejects(crossfade.get("a/1", { signal: controller.signal }), reason);
});

test("a sidecar that restarts is found again", async () => {
  const fake = new Fake();
  const target = await fake.start();
  const crossfade = new Crossfade(target, { timeout: 20_000, retries: 1000 });
  await crossfade.get("a/1");
  fake.stop();
  const asked = crossfade.get("a/1");
  await new Promise((resolve) => setTimeout(resolve, 100));
  const again = new Fake();
  assert.equal(await again.start(target), target);
  assert.equal((await asked).id, "1");
  crossfade.close();
  again.stop();
});

test("a closed client connects anew", async () => {
  const [fake, crossfade] = await pair();
  await crossfade.get("a/1");
  crossfade.close();
  await crossfade.get("a/1");
  assert.equal(fake.count("get"), 2);
});

test("metadata goes with the call, made anew each time", async () => {
  let calls = 0;
  const [fake, , target] = await pair();
  const crossfade = new Crossfade(target, { metadata: () => ({ authorization: `Bearer ${++calls}` }) });
  await crossfade.get("a/1", { metadata: { traceparent: "00-1-2-01" } });
  await crossfade.get("a/1");
  crossfade.close();
  assert.equal(fake.headers[0]!["traceparent"], "00-1-2-01");
  assert.deepStrictEqual(
    fake.headers.map(({ authorization }) => authorization),
    ["Bearer 1", "Bearer 2"],
  );
});

test("a server that is no sidecar has no missing document", async () => {
  const { Server, ServerCredentials } = await import("@grpc/grpc-js");
  const server = new Server();
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, bound) =>
      error === null ? resolve(bound) : reject(error),
    );
  });
  const crossfade = new Crossfade(`127.0.0.1:${port}`);
  await assert.rejects(crossfade.find("a/1"), UnimplementedError);
  crossfade.close();
  server.forceShutdown();
});

test("each status has a class of its own, which is exported", () => {
  const codes = Object.values(status).filter((code): code is status => typeof code === "number" && code !== 0);
  const classes = codes.map((code) => {
    const error = fromStatus(code, "why", { requestId: "r" });
    assert.equal(error.code, code);
    assert.equal(error.message, `${status[code]}: why`);
    assert.equal(error.requestId, "r");
    assert.ok(error instanceof CrossfadeError);
    return error.name;
  });
  assert.equal(new Set(classes).size, codes.length);
  assert.ok(classes.every((name) => name in all));
  assert.ok(fromStatus(status.CANCELLED, "") instanceof CallCancelledError);
  assert.ok(fromStatus(99 as status, "") instanceof UnknownError);
});

test("pauses double, stay in the deadline and are for UNAVAILABLE alone", () => {
  let now = 0;
  const attempts = new Attempts(1000, 3, true, () => now);
  assert.equal(attempts.pause(status.ABORTED), undefined);
  for (const longest of [20, 40, 80]) {
    const pause = attempts.pause(status.UNAVAILABLE);
    assert.ok(pause !== undefined && pause >= 0 && pause < longest);
  }
  assert.equal(attempts.pause(status.UNAVAILABLE), undefined);
  now = 1000;
  assert.equal(new Attempts(1000, 3, false).pause(status.UNAVAILABLE), undefined);
  assert.equal(attempts.remaining(), 1);
});

test("what a limit refused is tried again after as long as the sidecar says", async () => {
  const [fake, crossfade] = await pair();
  const refused = { code: status.RESOURCE_EXHAUSTED, retryAfter: 60, times: 2 };
  fake.failures = ["get", "getAll", "commit"].map((method) => ({ method, ...refused }));
  const began = performance.now();
  assert.equal((await crossfade.get("a/1")).id, "1");
  assert.ok(performance.now() - began >= 110);
  assert.equal((await crossfade.getAll(["a/0"])).length, 1);
  await crossfade.set("a/1", {}, { requestId: null }); // it was refused: nothing was done
  assert.deepStrictEqual([fake.count("get"), fake.count("getAll"), fake.count("commit")], [3, 3, 3]);
});

test("a limit that says nothing of when, or of a time too late, is an error", async () => {
  const [fake, crossfade] = await pair({ timeout: 1000 });
  fake.failures = [{ method: "get", code: status.RESOURCE_EXHAUSTED }];
  await assert.rejects(crossfade.get("a/1"), all.ResourceExhaustedError);
  fake.failures = [{ method: "get", code: status.RESOURCE_EXHAUSTED, retryAfter: 5000 }];
  await assert.rejects(crossfade.get("a/1"), all.ResourceExhaustedError);
  assert.equal(fake.count("get"), 2);
});

test("the token goes with every call", async () => {
  const [fake, , target] = await pair();
  let turn = 0;
  const crossfade = new Crossfade(target, { token: () => `t${++turn}`, keepalive: null });
  await crossfade.get("a/1");
  await crossfade.set("a/1", {});
  crossfade.close();
  assert.deepStrictEqual(
    fake.headers.map(({ authorization }) => authorization),
    ["Bearer t1", "Bearer t2"],
  );
});

test("options that cannot be meant are refused", () => {
  assert.throws(() => new Crossfade("a:1", { keepalive: 0 }), InvalidArgumentError);
  const tls = { credentials: credentials.createInsecure(), rootCertificates: Buffer.alloc(0) };
  assert.throws(() => new Crossfade("a:1", tls), InvalidArgumentError);
});
