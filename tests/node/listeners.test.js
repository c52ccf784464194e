/** Listeners on documents and queries. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { Code, connect, ids } from "./client.js";

const db = connect();

/** Listens: `next()` is the next snapshot, in the order they came. Stops with the test. */
function listen(context, target) {
  const come = [];
  const waiting = [];
  const settle = (take) => {
    const waiter = waiting.shift();
    if (waiter) take(waiter);
    else come.push(take);
  };
  const stop = target.onSnapshot(
    (snapshot) => settle((waiter) => waiter.resolve(snapshot)),
    (error) => settle((waiter) => waiter.reject(error)),
  );
  context.after(stop);
  const next = () =>
    new Promise((resolve, reject) => {
      const take = come.shift();
      if (take) take({ resolve, reject });
      else waiting.push({ resolve, reject });
    });
  return { next, stop, pending: () => come.length };
}

const changes = (snapshot) =>
  snapshot.docChanges().map(({ type, doc, oldIndex, newIndex }) => [type, doc.id, oldIndex, newIndex]);

describe("listeners", { timeout: 30_000 }, () => {
  test("a document: there, changed, gone, there again", async (context) => {
    const ref = db.doc("watched/one");
    const listener = listen(context, ref);
    assert.equal((await listener.next()).exists, false);
    const { writeTime } = await ref.set({ n: 1 });
    const first = await listener.next();
    assert.deepEqual(first.data(), { n: 1 });
    assert.ok(first.updateTime.isEqual(writeTime));
    assert.ok(first.readTime.valueOf() >= writeTime.valueOf());
    await ref.update({ n: 2 });
    assert.deepEqual((await listener.next()).data(), { n: 2 });
    await ref.delete();
    assert.equal((await listener.next()).exists, false);
    await ref.set({ n: 3 });
    assert.deepEqual((await listener.next()).data(), { n: 3 });
  });

  test("a query: added, modified, removed", async (context) => {
    const tasks = db.collection("tasks");
    await tasks.doc("a").set({ open: true, rank: 1 });
    await tasks.doc("c").set({ open: true, rank: 3 });
    await tasks.doc("z").set({ open: false, rank: 0 });
    const listener = listen(context, tasks.where("open", "==", true).orderBy("rank"));

    assert.deepEqual(changes(await listener.next()), [
      ["added", "a", -1, 0],
      ["added", "c", -1, 1],
    ]);
    await tasks.doc("b").set({ open: true, rank: 2 });
    assert.deepEqual(changes(await listener.next()), [["added", "b", -1, 1]]);
    await tasks.doc("a").update({ rank: 4 });
    const moved = await listener.next();
    assert.deepEqual(changes(moved), [["modified", "a", 0, 2]]);
    assert.deepEqual(ids(moved), ["b", "c", "a"]);
    await tasks.doc("c").update({ open: false });
    assert.deepEqual(changes(await listener.next()), [["removed", "c", 1, -1]], "matches no more");
    await tasks.doc("b").delete();
    const last = await listener.next();
    assert.deepEqual(changes(last), [["removed", "b", 0, -1]], "is gone");
    assert.deepEqual(ids(last), ["a"]);
  });

  test("a batch comes as one snapshot", async (context) => {
    const items = db.collection("items");
    const listener = listen(context, items);
    assert.ok((await listener.next()).empty);
    const batch = db.batch();
    for (const id of ["a", "b", "c"]) batch.set(items.doc(id), {});
    await batch.commit();
    assert.deepEqual(ids(await listener.next()), ["a", "b", "c"]);
  });

  test("a limit: the next one moves up", async (context) => {
    const race = db.collection("race");
    for (const [id, time] of [["a", 1], ["b", 2], ["c", 3]]) await race.doc(id).set({ time });
    const listener = listen(context, race.orderBy("time").limit(2));
    assert.deepEqual(ids(await listener.next()), ["a", "b"]);
    await race.doc("a").delete();
    const moved = await listener.next();
    assert.deepEqual(ids(moved), ["b", "c"]);
    assert.deepEqual(
      changes(moved).map(([type, id]) => [type, id]),
      [["removed", "a"], ["added", "c"]],
    );
  });

  test("a collection group", async (context) => {
    const listener = listen(context, db.collectionGroup("comments"));
    assert.ok((await listener.next()).empty);
    await db.doc("posts/1/comments/x").set({});
    assert.deepEqual(ids(await listener.next()), ["x"]);
    await db.doc("posts/1/remarks/y").set({});
    await db.doc("posts/2/deep/3/comments/z").set({});
    assert.deepEqual(ids(await listener.next()), ["x", "z"]);
  });

  test("several listeners, and one that stops", async (context) => {
    const ref = db.doc("several/one");
    await ref.set({ n: 1 });
    const first = listen(context, ref);
    const second = listen(context, db.collection("several"));
    await Promise.all([first.next(), second.next()]);
    first.stop();
    // The official emulator may fail a commit that meets a listener on its way out.
    await sleep(200);
    await ref.set({ n: 2 });
    assert.equal((await second.next()).docs[0].get("n"), 2);
    assert.equal(first.pending(), 0);
  });

  test("a query the rules forbid is told to the listener", async (context) => {
    const query = db.collection("c").where("a", "!=", 1).where("b", "not-in", [1]);
    await assert.rejects(
      listen(context, query).next(),
      (error) => error.code === Code.INVALID_ARGUMENT || error.message.startsWith("Error 3:"),
    );
  });
});
