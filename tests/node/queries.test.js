/** Queries, cursors, collection groups, aggregations, vector search. */

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";

import { AggregateField, FieldPath, FieldValue, Filter } from "@google-cloud/firestore";

import { connect, ids } from "./client.js";

const db = connect();
const cities = db.collection("cities");

describe("queries", { timeout: 30_000 }, () => {
  before(async () => {
    const batch = db.batch();
    batch.set(cities.doc("ber"), { name: "Berlin", state: "BE", size: 3.7, tags: ["wall", "river"] });
    batch.set(cities.doc("bre"), { name: "Bremen", state: "HB", size: 0.5, tags: ["river"] });
    batch.set(cities.doc("ham"), { name: "Hamburg", state: "HH", size: 1.8, tags: ["river", "port"] });
    batch.set(cities.doc("muc"), { name: "Munich", state: "BY", size: 1.5, tags: [] });
    batch.set(cities.doc("nul"), { name: "Null Island", state: null });
    batch.set(cities.doc("ber/parts/mitte"), { name: "Mitte", size: 1 });
    batch.set(cities.doc("ham/parts/altona"), { name: "Altona", size: 2 });
    batch.set(db.doc("parts/root"), { name: "Root", size: 3 });
    await batch.commit();
  });

  const found = async (query) => ids(await query.get());

  test("filters", async () => {
    assert.deepEqual(await found(cities.where("state", "==", "BY")), ["muc"]);
    assert.deepEqual(await found(cities.where("state", "==", null)), ["nul"]);
    assert.deepEqual(await found(cities.where("state", "!=", "BE")), ["muc", "bre", "ham"]);
    assert.deepEqual(await found(cities.where("size", ">=", 1.5)), ["muc", "ham", "ber"]);
    assert.deepEqual(await found(cities.where("size", ">", 0.5).where("size", "<", 1.8)), ["muc"]);
    assert.deepEqual(await found(cities.where("state", "in", ["HB", "HH", "XX"])), ["bre", "ham"]);
    assert.deepEqual(await found(cities.where("state", "not-in", ["HB", "HH"])), ["ber", "muc"]);
    assert.deepEqual(await found(cities.where("tags", "array-contains", "port")), ["ham"]);
    assert.deepEqual(
      await found(cities.where("tags", "array-contains-any", ["port", "wall"])),
      ["ber", "ham"],
    );
    const id = FieldPath.documentId();
    assert.deepEqual(await found(cities.where(id, ">", "ham")), ["muc", "nul"]);
  });

  test("and, or", async () => {
    const either = Filter.or(
      Filter.where("state", "==", "BY"),
      Filter.and(Filter.where("size", ">", 1), Filter.where("tags", "array-contains", "port")),
    );
    assert.deepEqual(new Set(await found(cities.where(either))), new Set(["ham", "muc"]));
  });

  test("order, limit, offset, limitToLast", async () => {
    const bySize = cities.orderBy("size");
    assert.deepEqual(await found(bySize), ["bre", "muc", "ham", "ber"], "without the one lacking it");
    assert.deepEqual(await found(cities.orderBy("size", "desc").limit(2)), ["ber", "ham"]);
    assert.deepEqual(await found(bySize.offset(1).limit(2)), ["muc", "ham"]);
    assert.deepEqual(await found(bySize.limitToLast(2)), ["ham", "ber"]);
  });

  test("cursors of values and of documents", async () => {
    const bySize = cities.orderBy("size");
    assert.deepEqual(await found(bySize.startAt(1.5).endBefore(3.7)), ["muc", "ham"]);
    assert.deepEqual(await found(bySize.startAfter(1.5).endAt(3.7)), ["ham", "ber"]);
    const muc = await cities.doc("muc").get();
    assert.deepEqual(await found(bySize.startAfter(muc)), ["ham", "ber"]);
    assert.deepEqual(await found(bySize.endAt(muc)), ["bre", "muc"]);
    assert.deepEqual(await found(cities.startAfter(muc)), ["nul"]);
  });

  test("a projection", async () => {
    const read = await cities.where("state", "==", "HH").select("name").get();
    assert.deepEqual(read.docs.map((doc) => doc.data()), [{ name: "Hamburg" }]);
    const bare = await cities.where("state", "==", "HH").select().get();
    assert.deepEqual(bare.docs.map((doc) => doc.data()), [{}]);
  });

  test("a collection group", async () => {
    const parts = await db.collectionGroup("parts").orderBy("size", "desc").get();
    assert.deepEqual(
      parts.docs.map((doc) => doc.ref.path),
      ["parts/root", "cities/ham/parts/altona", "cities/ber/parts/mitte"],
    );
  });

  test("a stream, and the empty result", async () => {
    const names = [];
    for await (const doc of cities.orderBy("name").stream()) names.push(doc.id);
    assert.deepEqual(names, ["ber", "bre", "ham", "muc", "nul"]);
    const empty = await cities.where("state", "==", "nowhere").get();
    assert.ok(empty.empty);
    assert.ok(empty.readTime.toMillis() > 0);
  });

  test("more documents than fit into one frame", async () => {
    const many = db.collection("many");
    const batch = db.batch();
    for (let n = 0; n < 300; n += 1) batch.set(many.doc(), { n });
    await batch.commit();
    const read = await many.orderBy("n").get();
    assert.deepEqual(read.docs.map((doc) => doc.get("n")), Array.from({ length: 300 }, (_, n) => n));
  });

  test("count, sum and average", async () => {
    assert.deepEqual((await cities.count().get()).data(), { count: 5 });
    assert.deepEqual((await cities.where("size", ">", 1).limit(2).count().get()).data(), { count: 2 });
    const result = await cities
      .where("state", "in", ["HH", "BY"])
      .aggregate({
        all: AggregateField.count(),
        total: AggregateField.sum("size"),
        mean: AggregateField.average("size"),
      })
      .get();
    const { all, total, mean } = result.data();
    assert.equal(all, 2);
    assert.ok(Math.abs(total - 3.3) < 1e-9);
    assert.ok(Math.abs(mean - 1.65) < 1e-9);
    const none = await cities
      .where("state", "==", "nowhere")
      .aggregate({ total: AggregateField.sum("size"), mean: AggregateField.average("size") })
      .get();
    assert.deepEqual(none.data(), { total: 0, mean: null });
  });

  test("the nearest vectors", async () => {
    const points = db.collection("points");
    await points.doc("near").set({ at: FieldValue.vector([1, 1]) });
    await points.doc("far").set({ at: FieldValue.vector([9, 9]) });
    await points.doc("other").set({ at: FieldValue.vector([0, 0, 0]) });
    const read = await points
      .findNearest({
        vectorField: "at",
        queryVector: [1, 2],
        limit: 5,
        distanceMeasure: "EUCLIDEAN",
        distanceResultField: "distance",
      })
      .get();
    assert.deepEqual(ids(read), ["near", "far"]);
    assert.equal(read.docs[0].get("distance"), 1);
  });
});
