/** Transactions: what they read, what they write, and what happens when they meet. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { FieldValue } from "@google-cloud/firestore";

import { Code, connect, ids } from "./client.js";

const db = connect();

// Where conflicts are found at the commit, the client waits about a second before it tries again.
describe("transactions", { timeout: 60_000 }, () => {
  test("reads documents and queries, then writes", async () => {
    const accounts = db.collection("accounts");
    await accounts.doc("a").set({ amount: 10 });
    await accounts.doc("b").set({ amount: 1 });
    const answer = await db.runTransaction(async (transaction) => {
      const [a, missing] = await transaction.getAll(accounts.doc("a"), accounts.doc("none"));
      const rich = await transaction.get(accounts.where("amount", ">", 5));
      const count = await transaction.get(accounts.count());
      assert.equal(missing.exists, false);
      assert.deepEqual(ids(rich), ["a"]);
      assert.equal(count.data().count, 2);
      transaction
        .update(a.ref, { amount: a.get("amount") - 4 })
        .update(accounts.doc("b"), { amount: FieldValue.increment(4) })
        .create(accounts.doc("log"), { moved: 4 });
      return "moved";
    });
    assert.equal(answer, "moved");
    const read = await accounts.get();
    assert.deepEqual(read.docs.map((doc) => doc.data()), [{ amount: 6 }, { amount: 5 }, { moved: 4 }]);
  });

  test("what throws is rolled back, once", async () => {
    const ref = db.doc("rollback/one");
    await ref.set({ n: 1 });
    let attempts = 0;
    const run = db.runTransaction(async (transaction) => {
      attempts += 1;
      await transaction.get(ref);
      transaction.set(ref, { n: 2 });
      throw new RangeError("changed my mind");
    });
    await assert.rejects(run, RangeError);
    assert.equal(attempts, 1);
    assert.deepEqual((await ref.get()).data(), { n: 1 });
    await ref.set({ n: 3 });
  });

  test("without a read", async () => {
    const ref = db.doc("blind/one");
    await db.runTransaction(async (transaction) => {
      transaction.set(ref, { n: 1 });
    });
    assert.deepEqual((await ref.get()).data(), { n: 1 });
    await db.runTransaction(async () => {});
  });

  test("concurrent ones on one document are applied one after the other", async () => {
    const ref = db.doc("counter/one");
    await ref.set({ n: 0 });
    const increase = () =>
      db.runTransaction(
        async (transaction) => {
          const read = await transaction.get(ref);
          await sleep(50);
          transaction.update(ref, { n: read.get("n") + 1 });
        },
        { maxAttempts: 20 },
      );
    await Promise.all([increase(), increase(), increase()]);
    assert.equal((await ref.get()).get("n"), 3);
  });

  test("a write from outside while one is under way is not lost", async () => {
    const ref = db.doc("outside/one");
    await ref.set({ n: 1 });
    let outside;
    await db.runTransaction(async (transaction) => {
      const read = await transaction.get(ref);
      // A server with locks lets it wait for this transaction, one without aborts this one.
      outside ??= ref.update({ n: FieldValue.increment(10) });
      await sleep(300);
      transaction.update(ref, { n: read.get("n") * 2 });
    });
    await outside;
    const { n } = (await ref.get()).data();
    assert.ok(n === 12 || n === 22, `one after the other, not ${n}`);
  });

  test("a document that appears in a query's result is a conflict too", async () => {
    const queue = db.collection("queue");
    const claim = (name) =>
      db.runTransaction(
        async (transaction) => {
          const taken = await transaction.get(queue.where("slot", "==", 1));
          await sleep(50);
          if (taken.empty) transaction.create(queue.doc(name), { slot: 1 });
          return taken.empty;
        },
        { maxAttempts: 20 },
      );
    const claims = await Promise.all([claim("x"), claim("y")]);
    assert.deepEqual(claims.sort(), [false, true]);
    assert.equal((await queue.get()).size, 1);
  });

  test("a read-only one sees the state of its time", async () => {
    const ref = db.doc("past/one");
    const { writeTime } = await ref.set({ n: 1 });
    await ref.set({ n: 2 });
    const read = (options) =>
      db.runTransaction(async (transaction) => {
        const [doc, query] = await Promise.all([
          transaction.get(ref),
          transaction.get(db.collection("past")),
        ]);
        return [doc.get("n"), query.docs[0].get("n")];
      }, options);
    assert.deepEqual(await read({ readOnly: true }), [2, 2]);
    const past = read({ readOnly: true, readTime: writeTime });
    if (process.env.CROSSFADE_NODE_NO_PAST) {
      await assert.rejects(past, { code: Code.FAILED_PRECONDITION });
    } else {
      assert.deepEqual(await past, [1, 1]);
    }
  });
});
