import assert from "node:assert/strict";
import { test } from "node:test";

import { request as aggregateRequest } from "../src/aggregates.js";
import { and, average, count, InvalidArgumentError, or, Query, Snapshot, sum, Timestamp, where } from "../src/index.js";
import { parse, spell } from "../src/paths.js";
import { request } from "../src/query.js";

const structured = (query: Query) => request(query, "plain").query!;
const snapshot = (fields: object) =>
  new Snapshot("projects/p/databases/d/documents/a/x", fields, Timestamp.now(), Timestamp.now());

test("a query is not changed by its methods", () => {
  const all = new Query("tasks");
  all.where("a", "==", 1).orderBy("a").limit(1).offset(1).select("a").startAt(1);
  assert.deepStrictEqual(structured(all), structured(new Query("tasks")));
});

test("the collection may lie inside a document, or anywhere", () => {
  const inside = request(new Query("a/b/c", { group: true }), "plain");
  assert.equal(inside.parent, "a/b");
  assert.deepStrictEqual(inside.query!.from, [{ collectionId: "c", allDescendants: true }]);
  for (const wrong of ["", "a/b", "a/"]) {
    assert.throws(() => request(wrong, "plain"), InvalidArgumentError);
  }
});

test("filters: one alone, several as and, or inside", () => {
  const one = structured(new Query("a").where("x", ">", 1)).where!.filterType!;
  assert.equal(one.$case, "fieldFilter");
  const several = new Query("a")
    .where("x", "==", null)
    .where(or(where("y", "!=", Number.NaN), and(where("z", "in", [1]))));
  const whole = structured(several).where!.filterType!;
  assert.ok(whole.$case === "compositeFilter");
  assert.deepStrictEqual(
    whole.value.filters.map(({ filterType }) => filterType?.$case),
    ["unaryFilter", "compositeFilter"],
  );
  assert.throws(() => or(), InvalidArgumentError);
  assert.throws(() => where("x", "=" as never, 1), /"=" is not an operator/);
});

test("a path stands for the document at __name__", () => {
  const query = new Query("a").where("__name__", "in", ["a/1"]).startAt("a/2");
  const { where: filter, startAt } = structured(query);
  assert.ok(filter?.filterType?.$case === "fieldFilter");
  const operand = filter.filterType.value.value?.valueType;
  assert.ok(operand?.$case === "arrayValue");
  assert.deepStrictEqual(operand.value.values[0]?.valueType, { $case: "referenceValue", value: "a/1" });
  assert.deepStrictEqual(startAt?.values[0]?.valueType, { $case: "referenceValue", value: "a/2" });
});

test("a snapshot as a cursor spells out the implicit orders", () => {
  const query = new Query("a").where("n", ">", 1).where("ä", "<", 1).orderBy("m", "desc");
  const { orderBy, startAt } = structured(query.startAfter(snapshot({ n: 2, m: 3, ä: 0 })));
  assert.deepStrictEqual(
    orderBy.map(({ field }) => field?.fieldPath),
    ["m", "`ä`", "n", "__name__"],
  );
  assert.equal(new Set(orderBy.map(({ direction }) => direction)).size, 1);
  assert.equal(startAt?.values.length, 4);
  assert.equal(startAt?.before, false);
  assert.throws(() => structured(query.endAt(snapshot({ n: 2 }))), /lacks the field m/);
});

test("numbers that no limit can be are refused", () => {
  for (const wrong of [1.5, 2 ** 31, Number.NaN]) {
    assert.throws(() => new Query("a").limit(wrong), InvalidArgumentError);
  }
});

test("field paths there and back", () => {
  for (const [text, names] of [
    ["a.b", ["a", "b"]],
    ["`odd name`.b", ["odd name", "b"]],
    ["`a\\`b\\\\c`", ["a`b\\c"]],
    ["``", [""]],
  ] as [string, string[]][]) {
    assert.deepStrictEqual(parse(text), names);
    assert.equal(spell(names), text);
  }
  for (const wrong of ["", ".", "a.", ".a", "a..b", "`a", "`a`b"]) {
    assert.throws(() => parse(wrong), InvalidArgumentError, wrong);
  }
  assert.throws(() => parse([]), InvalidArgumentError);
});

test("aggregations go by their names", () => {
  const asked = { n: count(5), all: sum("a.b"), mean: average(["odd name"]) };
  const { aggregations } = aggregateRequest("tasks", asked, "plain").query!;
  assert.deepStrictEqual(
    aggregations.map(({ alias, operator }) => [alias, operator?.$case]),
    [
      ["n", "count"],
      ["all", "sum"],
      ["mean", "avg"],
    ],
  );
  assert.throws(() => aggregateRequest("tasks", {}, "plain"), InvalidArgumentError);
  assert.throws(() => aggregateRequest("tasks", { n: count(0.5) }, "plain"), InvalidArgumentError);
});
