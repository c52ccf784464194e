/** Against the real sidecar at CROSSFADE_TARGET; tests/integration/test_typescript_client.py starts one. */

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { after, test } from "node:test";

import {
  AlreadyExistsError,
  arrayRemove,
  arrayUnion,
  average,
  count,
  Crossfade,
  DELETE_FIELD,
  Double,
  FailedPreconditionError,
  GeoPoint,
  increment,
  InvalidArgumentError,
  maximum,
  minimum,
  NotFoundError,
  or,
  Query,
  SERVER_TIMESTAMP,
  sum,
  Timestamp,
  Vector,
  where,
  Write,
} from "../src/index.js";

const target = process.env["CROSSFADE_TARGET"];
if (!target) {
  throw new Error("CROSSFADE_TARGET has to say where the sidecar is");
}
const crossfade = new Crossfade(target, { timeout: 20_000 });
const exact = new Crossfade(target, { timeout: 20_000, numbers: "exact" });
after(() => {
  crossfade.close();
  exact.close();
});

/** A collection of the test's own: in the generic table. */
const fresh = () => `c${randomBytes(6).toString("hex")}`;

async function ids(query: Query): Promise<string[]> {
  const found = [];
  for await (const { id } of crossfade.query(query)) {
    found.push(id);
  }
  return found;
}

test("every type of Firestore goes there and back", async () => {
  const path = `${fresh()}/1`;
  const reference = (await crossfade.set(path, {}), await crossfade.get(path)).reference;
  const fields = {
    null: null,
    boolean: true,
    integer: 3n,
    large: -(2n ** 63n),
    double: 3,
    special: [Number.NaN, Number.NEGATIVE_INFINITY, -0],
    text: "naïve \u{1F600} \u0000",
    bytes: new Uint8Array([0, 255]),
    time: new Timestamp(1_760_000_000_123_456n),
    reference,
    place: new GeoPoint(-33.5, 151),
    vector: new Vector([1, -0.5]),
    map: { list: [{ deep: "x" }], empty: {} },
  };
  await exact.set(path, fields);
  assert.deepStrictEqual((await exact.get(path)).fields, fields);
  const plain = (await crossfade.get(path)).fields;
  assert.deepStrictEqual(plain, { ...fields, integer: 3 });
});

test("a document has its names and times", async () => {
  const collection = fresh();
  const written = await crossfade.create(`${collection}/1`, { at: SERVER_TIMESTAMP });
  const found = await crossfade.get<{ at: Timestamp }>(`${collection}/1`);
  assert.equal(found.path, `${collection}/1`);
  assert.equal(found.id, "1");
  assert.equal(found.reference.path, found.path);
  assert.ok(written.updateTime?.equals(found.updateTime));
  assert.ok(found.createTime.equals(found.updateTime));
  assert.equal(found.fields.at.toMillis(), (written.writes[0]!.transformResults[0] as Timestamp).toMillis());
});

test("what is not there is an error of get and undefined of find and getAll", async () => {
  const collection = fresh();
  await crossfade.set(`${collection}/1`, { n: 1 });
  await assert.rejects(crossfade.get(`${collection}/2`), NotFoundError);
  assert.equal(await crossfade.find(`${collection}/2`), undefined);
  const found = await crossfade.getAll([1, 2, 1].map((id) => `${collection}/${id}`));
  assert.deepStrictEqual(
    found.map((snapshot) => snapshot?.fields),
    [{ n: 1 }, undefined, { n: 1 }],
  );
});

test("merge, update, transforms and delete", async () => {
  const path = `${fresh()}/1`;
  await assert.rejects(crossfade.update(path, { n: 1 }), NotFoundError);
  await crossfade.merge(path, { n: increment(2), a: { b: 1, c: 1 }, list: arrayUnion(1, "x") });
  await crossfade.merge(path, { a: { b: DELETE_FIELD }, n: increment(new Double(0.5)) });
  await crossfade.update(path, {
    "a.d": { e: 1 },
    list: arrayRemove(1),
    high: maximum(5),
    low: minimum(-5),
    "`odd name`": true,
  });
  assert.deepStrictEqual((await crossfade.get(path)).fields, {
    n: 2.5,
    a: { c: 1, d: { e: 1 } },
    list: ["x"],
    high: 5,
    low: -5,
    "odd name": true,
  });
  assert.equal((await crossfade.delete(path)).updateTime, undefined);
  assert.equal(await crossfade.find(path), undefined);
  await crossfade.delete(path);
  await assert.rejects(crossfade.delete(path, { exists: true }), NotFoundError);
});

test("conditions hold or nothing is done", async () => {
  const path = `${fresh()}/1`;
  const first = await crossfade.create(path, { n: 1 });
  await assert.rejects(crossfade.create(path, { n: 2 }), AlreadyExistsError);
  const condition = { updateTime: first.updateTime! };
  await crossfade.update(path, { n: 2 }, condition);
  await assert.rejects(crossfade.set(path, { n: 3 }, condition), FailedPreconditionError);
  assert.deepStrictEqual((await crossfade.get(path)).fields, { n: 2 });
});

test("all writes or none", async () => {
  const collection = fresh();
  const batch = crossfade.batch().set(`${collection}/1`, { n: 1 }).update(`${collection}/2`, { n: 1 });
  assert.equal(batch.size, 2);
  await assert.rejects(batch.commit(), NotFoundError);
  assert.deepStrictEqual(await ids(new Query(collection)), []);
  const done = await crossfade.batch().create(`${collection}/1`, {}).merge(`${collection}/2`, { n: 1 }).commit();
  assert.equal(done.writes.length, 2);
  assert.deepStrictEqual(await ids(new Query(collection)), ["1", "2"]);
});

test("a commit repeated with its requestId is done once", async () => {
  const path = `${fresh()}/1`;
  const requestId = randomBytes(8).toString("hex");
  assert.equal((await crossfade.merge(path, { n: increment(1) }, { requestId })).replayed, false);
  assert.equal((await crossfade.merge(path, { n: increment(1) }, { requestId })).replayed, true);
  assert.deepStrictEqual((await crossfade.get(path)).fields, { n: 1 });
});

/** tasks: a mapped collection; the other one is not. */
for (const collection of ["tasks", fresh()]) {
  test(`queries of ${collection === "tasks" ? "a mapped" : "any other"} collection`, async () => {
    const run = fresh();
    const path = (i: number) => `${collection}/${run}${i}`;
    await crossfade.commit(
      [0, 1, 2, 3, 4].map((i) =>
        Write.set(path(i), { status: i % 2 ? "odd" : "even", run, n: i, tags: [`t${i}`], half: i / 2 }),
      ),
    );
    const mine = new Query(collection).where("run", "==", run);
    const found = async (query: Query) => (await ids(query)).map((id) => Number(id.slice(run.length)));
    assert.deepStrictEqual(await found(mine), [0, 1, 2, 3, 4]);
    assert.deepStrictEqual(await found(mine.where("status", "==", "odd")), [1, 3]);
    assert.deepStrictEqual(await found(mine.where("n", "in", [4, 0])), [0, 4]);
    assert.deepStrictEqual(await found(mine.where("tags", "array-contains", "t2")), [2]);
    assert.deepStrictEqual(await found(mine.where("n", ">", 1).orderBy("n", "desc")), [4, 3, 2]);
    assert.deepStrictEqual(await found(mine.where(or(where("n", "==", 0), where("half", "==", 1.5)))), [0, 3]);
    const byName = where("__name__", "in", [path(1), path(2)]);
    assert.deepStrictEqual(await found(new Query(collection).where(byName)), [1, 2]);

    const ordered = mine.orderBy("n").limit(2);
    const page = [];
    for await (const snapshot of crossfade.query<{ n: number }>(ordered)) {
      page.push(snapshot);
    }
    assert.deepStrictEqual(
      page.map(({ fields }) => fields.n),
      [0, 1],
    );
    assert.deepStrictEqual(await found(ordered.startAfter(page.at(-1))), [2, 3]);
    assert.deepStrictEqual(await found(mine.orderBy("n").offset(1).endBefore(3)), [1, 2]);
    for await (const { fields } of crossfade.query(mine.select("n").limit(1))) {
      assert.deepStrictEqual(fields, { n: 0 });
    }

    const odd = mine.where("status", "==", "odd");
    assert.equal(await crossfade.count(odd), 2);
    assert.equal(await crossfade.count(mine, { upTo: 3 }), 3);
    assert.equal(await crossfade.sum(mine, "n"), 10);
    assert.equal(await exact.sum(mine, "n"), 10n);
    assert.equal(await crossfade.average(odd, "half"), 1);
    assert.equal(await crossfade.average(mine, "status"), null);
    assert.deepStrictEqual(await crossfade.aggregate(odd, { n: count(), all: sum("half"), mean: average("n") }), {
      n: 2,
      all: 2,
      mean: 2,
    });
  });
}

test("a collection is watched from moment to moment", async () => {
  const collection = fresh();
  const path = (id: string) => `${collection}/${id}`;
  await crossfade.set(path("a"), { n: 1 });
  const known = new Map<string, number>();
  const watching = crossfade.watch<{ n: number }>(collection);
  const until = async (expected: [string, number][]) => {
    while (JSON.stringify([...known].sort()) !== JSON.stringify(expected)) {
      const { value } = await watching.next();
      value?.changed.forEach(({ id, fields }) => known.set(id, fields.n));
      value?.removed.forEach((each) => known.delete(each.slice(collection.length + 1)));
    }
  };
  await until([["a", 1]]);
  await crossfade.batch().update(path("a"), { n: 2 }).set(path("b"), { n: 3 }).commit();
  await until([
    ["a", 2],
    ["b", 3],
  ]);
  await crossfade.delete(path("a"));
  await until([["b", 3]]);
  await watching.return();
});

test("subcollections and groups of them", async () => {
  const [parents, children] = [fresh(), fresh()];
  await crossfade.commit([1, 2].map((i) => Write.set(`${parents}/${i}/${children}/x`, { i })));
  assert.deepStrictEqual(await ids(new Query(`${parents}/1/${children}`)), ["x"]);
  assert.equal(await crossfade.count(new Query(children, { group: true })), 2);
});

test("what the sidecar refuses is an error by its class", async () => {
  await assert.rejects(ids(new Query(fresh()).limit(-1)), InvalidArgumentError);
  await assert.rejects(crossfade.get("not-a-document"), InvalidArgumentError);
  await assert.rejects(crossfade.set(`${fresh()}/1`, { a: [[1]] }), InvalidArgumentError);
});
