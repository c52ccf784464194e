/** Single documents, batches, transforms, bulk writes, listing. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { FieldPath, FieldValue, GeoPoint, Timestamp } from "@google-cloud/firestore";

import { Code, connect } from "./client.js";

const db = connect();

describe("documents", { timeout: 30_000 }, () => {
  test("a value of every type comes back as it was written", async () => {
    const ref = db.doc("types/all");
    const value = {
      nothing: null,
      yes: true,
      integer: 42,
      double: 0.5,
      notANumber: NaN,
      infinite: -Infinity,
      text: "zwölf ☃",
      bytes: Buffer.from([0, 1, 255]),
      time: new Timestamp(1_700_000_000, 123_456_000),
      place: new GeoPoint(45.5, -90),
      reference: db.doc("types/other"),
      vector: FieldValue.vector([1, 2.5]),
      list: [1, "two", { three: 3 }],
      map: { deep: { deeper: {} }, "dots.and `ticks`": 1 },
    };
    const written = await ref.set(value);
    const read = await ref.get();
    assert.deepEqual(read.data(), value);
    assert.ok(read.updateTime.isEqual(written.writeTime));
    assert.ok(read.createTime.isEqual(written.writeTime));
  });

  test("a document that is not there", async () => {
    const read = await db.doc("nowhere/none").get();
    assert.equal(read.exists, false);
    assert.equal(read.data(), undefined);
    assert.ok(read.readTime.toMillis() > 0);
  });

  test("create refuses what exists, update what does not", async () => {
    const ref = db.doc("create/once");
    await assert.rejects(ref.update({ n: 1 }), { code: Code.NOT_FOUND });
    await ref.create({ n: 1 });
    await assert.rejects(ref.create({ n: 2 }), { code: Code.ALREADY_EXISTS });
    assert.deepEqual((await ref.get()).data(), { n: 1 });
  });

  test("set replaces, merge keeps, update reaches into maps", async () => {
    const ref = db.doc("set/one");
    await ref.set({ a: 1, map: { x: 1, y: 1 } });
    await ref.set({ map: { x: 2 } }, { merge: true });
    assert.deepEqual((await ref.get()).data(), { a: 1, map: { x: 2, y: 1 } });
    await ref.set({ a: 3, b: 3 }, { mergeFields: ["b"] });
    assert.deepEqual((await ref.get()).data(), { a: 1, b: 3, map: { x: 2, y: 1 } });
    await ref.update({ "map.z": 4, a: FieldValue.delete() });
    await ref.update(new FieldPath("map", "with.dot"), 5);
    assert.deepEqual((await ref.get()).data(), { b: 3, map: { x: 2, y: 1, z: 4, "with.dot": 5 } });
    await ref.set({ only: true });
    assert.deepEqual((await ref.get()).data(), { only: true });
  });

  test("delete, and delete again", async () => {
    const ref = db.doc("delete/one");
    await ref.set({});
    const first = await ref.delete();
    const second = await ref.delete();
    assert.equal((await ref.get()).exists, false);
    assert.ok(first.writeTime.valueOf() < second.writeTime.valueOf());
    await assert.rejects(ref.delete({ exists: true }), { code: Code.NOT_FOUND });
  });

  test("a stale update time is refused", async () => {
    const ref = db.doc("stale/one");
    const { writeTime } = await ref.set({ n: 1 });
    await ref.update({ n: 2 }, { lastUpdateTime: writeTime });
    await assert.rejects(ref.update({ n: 3 }, { lastUpdateTime: writeTime }), {
      code: Code.FAILED_PRECONDITION,
    });
    assert.equal((await ref.get()).get("n"), 2);
  });

  test("a reserved name is refused", async () => {
    await assert.rejects(db.doc("reserved/__x__").set({}), { code: Code.INVALID_ARGUMENT });
  });

  test("transforms", async () => {
    const ref = db.doc("transforms/one");
    await ref.set({ n: 1, tags: ["a", "b"], kept: true });
    const { writeTime } = await ref.update({
      n: FieldValue.increment(2.5),
      fresh: FieldValue.increment(7),
      tags: FieldValue.arrayUnion("b", "c"),
      at: FieldValue.serverTimestamp(),
    });
    await ref.update({ tags: FieldValue.arrayRemove("a") });
    const { at, ...rest } = (await ref.get()).data();
    assert.deepEqual(rest, { n: 3.5, fresh: 7, tags: ["b", "c"], kept: true });
    assert.ok(Math.abs(at.toMillis() - writeTime.toMillis()) < 1000);
  });

  test("a batch is applied whole or not at all", async () => {
    const [made, changed, gone] = ["made", "changed", "gone"].map((id) => db.doc(`batch/${id}`));
    await changed.set({ n: 1 });
    await gone.set({});
    const results = await db
      .batch()
      .create(made, { n: 0 })
      .update(changed, { n: 2 })
      .delete(gone)
      .commit();
    assert.equal(results.length, 3);
    assert.deepEqual((await made.get()).data(), { n: 0 });
    assert.deepEqual((await changed.get()).data(), { n: 2 });
    assert.equal((await gone.get()).exists, false);

    const refused = db.batch().update(changed, { n: 3 }).create(made, { n: 3 }).commit();
    await assert.rejects(refused, { code: Code.ALREADY_EXISTS });
    assert.deepEqual((await changed.get()).data(), { n: 2 });
  });

  test("getAll keeps the order asked for, with a mask", async () => {
    const refs = ["b", "missing", "a"].map((id) => db.doc(`all/${id}`));
    await refs[0].set({ n: 2, m: { x: 1, y: 2 } });
    await refs[2].set({ n: 1 });
    const read = await db.getAll(...refs, { fieldMask: ["n", "m.x"] });
    assert.deepEqual(
      read.map((doc) => [doc.id, doc.data()]),
      [
        ["b", { n: 2, m: { x: 1 } }],
        ["missing", undefined],
        ["a", { n: 1 }],
      ],
    );
  });

  test("listing shows documents that only have children", async () => {
    await db.doc("list/there/below/x").set({});
    await db.doc("list/there").set({});
    await db.doc("list/missing/below/y").set({});
    await db.doc("list/missing/beside/z").set({});
    const documents = await db.collection("list").listDocuments();
    assert.deepEqual(documents.map((ref) => ref.id).sort(), ["missing", "there"]);
    const collections = await db.doc("list/missing").listCollections();
    assert.deepEqual(collections.map((ref) => ref.id).sort(), ["below", "beside"]);
    const roots = await db.listCollections();
    assert.ok(roots.some((ref) => ref.id === "list"));
  });

  test("the bulk writer reports each write apart", async () => {
    const collection = db.collection("bulk");
    await collection.doc("5").set({ taken: true });
    const writer = db.bulkWriter();
    const refused = [];
    writer.onWriteError((error) => {
      refused.push([error.documentRef.id, error.code]);
      return false;
    });
    const writes = [];
    for (let n = 0; n < 45; n += 1) {
      writes.push(writer.create(collection.doc(String(n)), { n }).catch(() => "refused"));
    }
    await writer.close();
    const outcomes = await Promise.all(writes);
    assert.deepEqual(refused, [["5", Code.ALREADY_EXISTS]]);
    assert.equal(outcomes.filter((outcome) => outcome === "refused").length, 1);
    assert.equal((await collection.count().get()).data().count, 45);
  });

  test("recursiveDelete takes what lies below, and nothing beside", async () => {
    const paths = ["tree/a", "tree/a/leaves/x", "tree/a/leaves/x/veins/y", "tree/b/leaves/z"];
    await Promise.all([...paths, "tree-beside/a"].map((path) => db.doc(path).set({})));
    await db.recursiveDelete(db.doc("tree/a"));
    const left = async () => {
      const read = await db.getAll(...paths.map((path) => db.doc(path)));
      return read.filter((doc) => doc.exists).map((doc) => doc.ref.path);
    };
    assert.deepEqual(await left(), ["tree/b/leaves/z"]);
    await db.recursiveDelete(db.collection("tree"));
    assert.deepEqual(await left(), []);
    assert.ok((await db.doc("tree-beside/a").get()).exists);
  });
});
