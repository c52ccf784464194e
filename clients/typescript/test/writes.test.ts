import assert from "node:assert/strict";
import { test } from "node:test";

import { decodeFields } from "../src/codec.js";
import {
  arrayRemove,
  arrayUnion,
  DELETE_FIELD,
  Double,
  increment,
  InvalidArgumentError,
  maximum,
  SERVER_TIMESTAMP,
  Timestamp,
  Write,
} from "../src/index.js";

/** The parts of a write's message, readable. */
function parts(write: Write): object {
  const { operation, updateMask, updateTransforms, currentDocument } = write.message("plain");
  return {
    fields: operation?.$case === "update" ? decodeFields(operation.value.fields, "plain") : undefined,
    mask: updateMask?.fieldPaths,
    transforms: updateTransforms.map(({ fieldPath, transformType }) => [fieldPath, transformType?.$case]),
    condition: currentDocument?.conditionType?.$case,
  };
}

test("set takes transforms out of maps and has no mask", () => {
  const fields = { n: increment(1), a: { at: SERVER_TIMESTAMP }, b: { c: 1, d: arrayUnion(1) } };
  assert.deepStrictEqual(parts(Write.set("a/b", fields)), {
    fields: { b: { c: 1 } },
    mask: undefined,
    transforms: [
      ["n", "increment"],
      ["a.at", "setToServerValue"],
      ["b.d", "appendMissingElements"],
    ],
    condition: undefined,
  });
});

test("create demands that there is none", () => {
  assert.deepStrictEqual(Write.create("a/b", {}).message("plain").currentDocument, {
    conditionType: { $case: "exists", value: false },
  });
});

test("merge names the leaves", () => {
  const fields = { a: { b: 1, c: {} }, "odd.": [1], gone: DELETE_FIELD, max: maximum(2.5) };
  assert.deepStrictEqual(parts(Write.merge("a/b", fields)), {
    fields: { a: { b: 1, c: {} }, "odd.": [1] },
    mask: ["a.b", "a.c", "`odd.`", "gone"],
    transforms: [["max", "maximum"]],
    condition: undefined,
  });
});

test("update names the paths it is given, and demands the document", () => {
  const changes = { "a.b": { c: 1, at: SERVER_TIMESTAMP }, "`odd name`": 2, gone: DELETE_FIELD };
  assert.deepStrictEqual(parts(Write.update("a/b", changes)), {
    fields: { a: { b: { c: 1 } }, "odd name": 2 },
    mask: ["a.b", "`odd name`", "gone"],
    transforms: [["a.b.at", "setToServerValue"]],
    condition: "exists",
  });
  const names = new Map([[["a.b", "__proto__"], 1]]);
  const updateTime = Timestamp.now();
  const found = parts(Write.update("a/b", names, { updateTime })) as { mask: string[]; condition: string };
  assert.deepStrictEqual(found.mask, ["`a.b`.__proto__"]);
  assert.equal(found.condition, "updateTime");
});

test("the numbers of a transform are encoded like all others", () => {
  const write = Write.set("a/b", { a: increment(1), b: increment(new Double(1)), c: arrayRemove(1) });
  const kinds = (numbers: "plain" | "exact") =>
    write.message(numbers).updateTransforms.map(({ transformType }) => {
      const value = transformType?.value;
      assert.ok(typeof value === "object");
      return "values" in value ? value.values[0]!.valueType?.$case : value.valueType?.$case;
    });
  assert.deepStrictEqual(kinds("plain"), ["integerValue", "doubleValue", "integerValue"]);
  assert.deepStrictEqual(kinds("exact"), ["doubleValue", "doubleValue", "doubleValue"]);
});

const circular: { inside: unknown } = { inside: undefined };
circular.inside = circular;

for (const [what, write, message] of [
  ["an update of nothing", Write.update("a/b", {}), /without fields/],
  ["an update of a field and what lies in it", Write.update("a/b", { "a.b": 1, a: 1 }), /names a and a\.b/],
  ["a field named twice", Write.update("a/b", { a: 1, "`a`": 2 }), /twice/],
  ["DELETE_FIELD in a set", Write.set("a/b", { a: { b: DELETE_FIELD } }), /field a\.b: DELETE_FIELD/],
  ["DELETE_FIELD inside an update's map", Write.update("a/b", { a: { b: DELETE_FIELD } }), /a\.b/],
  ["a path that is none", Write.update("a/b", { "a..b": 1 }), /not a field path/],
  ["fields that are an array", Write.set("a/b", [1]), /plain object/],
  ["an increment by text", Write.set("a/b", { n: increment("1" as never) }), /needs a number/],
  ["a transform in a transform", Write.set("a/b", { n: arrayUnion(increment(1)) }), /field n\[0\]/],
  ["two conditions", Write.delete("a/b", { exists: true, updateTime: Timestamp.now() }), /not both/],
  ["a map that holds itself", Write.set("a/b", circular), /too deep/],
] as [string, Write, RegExp][]) {
  test(`${what} is refused`, () => {
    assert.throws(
      () => write.message("plain"),
      (error: Error) => error instanceof InvalidArgumentError && message.test(error.message),
    );
  });
}
