import assert from "node:assert/strict";
import { test } from "node:test";

import { decodeFields, encodeFields } from "../src/codec.js";
import { Document } from "../src/gen/crossfade/v1/document.js";
import {
  DELETE_FIELD,
  Double,
  GeoPoint,
  InternalError,
  InvalidArgumentError,
  type Numbers,
  Reference,
  Timestamp,
  Vector,
} from "../src/index.js";

/** There and back through the bytes of a message. */
function carried(fields: object, numbers: Numbers = "plain"): object {
  const times = { createTime: undefined, updateTime: undefined };
  const document = { name: "a/b", fields: encodeFields(fields, numbers), ...times };
  const bytes = Document.encode(document).finish();
  return decodeFields(Document.decode(bytes).fields, numbers);
}

function type(value: unknown, numbers: Numbers = "plain"): string | undefined {
  return encodeFields({ value }, numbers).get("value")?.valueType?.$case;
}

test("every type of Firestore goes there and back", () => {
  const fields = {
    null: null,
    boolean: false,
    integer: -3,
    large: 9_223_372_036_854_775_807n,
    double: 0.1,
    special: [Number.NaN, Number.POSITIVE_INFINITY, -0],
    text: "naïve \u{1F600} \u0000",
    bytes: new Uint8Array([0, 255]),
    time: new Timestamp(1_760_000_000_123_456n),
    early: new Timestamp(-1n),
    reference: new Reference("projects/p/databases/(default)/documents/a/b"),
    place: new GeoPoint(-90, 180),
    vector: new Vector([1, -0.5]),
    array: [1, "two", { three: [] }],
    map: { empty: {}, "odd `name`.": { "": 1 } },
  };
  assert.deepStrictEqual(carried(fields), fields);
});

test("plain numbers: an integer where there is no fraction and a number holds it exactly", () => {
  assert.equal(type(1), "integerValue");
  assert.equal(type(Number.MAX_SAFE_INTEGER), "integerValue");
  assert.equal(type(2 ** 53), "doubleValue");
  assert.equal(type(1n), "integerValue");
  assert.equal(type(1.5), "doubleValue");
  assert.equal(type(-0), "doubleValue");
  assert.equal(type(new Double(1)), "doubleValue");
  assert.deepStrictEqual(carried({ a: 5n, b: 2n ** 53n, c: new Double(5) }), {
    a: 5,
    b: 2n ** 53n,
    c: 5,
  });
});

test("exact numbers: bigint is an integer and number a double, both ways", () => {
  assert.equal(type(1, "exact"), "doubleValue");
  assert.equal(type(1n, "exact"), "integerValue");
  const fields = { a: 5n, b: 5, c: [-(2n ** 63n), 2 ** 53] };
  assert.deepStrictEqual(carried(fields, "exact"), fields);
});

test("a Date is taken as a timestamp, a Buffer as bytes", () => {
  const date = new Date("2026-01-02T03:04:05.678Z");
  assert.deepStrictEqual(carried({ date, bytes: Buffer.from([1]) }), {
    date: Timestamp.fromDate(date),
    bytes: new Uint8Array([1]),
  });
});

test("a field may be called __proto__", () => {
  const fields = JSON.parse('{"__proto__": {"polluted": true}, "constructor": 1}') as object;
  const found = carried(fields) as { polluted?: boolean };
  assert.deepStrictEqual(Object.keys(found).sort(), ["__proto__", "constructor"]);
  assert.equal(found.polluted, undefined);
  assert.equal(Object.getPrototypeOf(found), Object.prototype);
});

test("a map that only looks like a vector stays a map", () => {
  const like = { a: { __type__: "__vector__", value: [1] }, b: { __type__: "__vector__" } };
  assert.deepStrictEqual(carried(like), like);
});

test("bytes do not hang on to the message that brought them", () => {
  const { bytes } = carried({ bytes: new Uint8Array(4) }) as { bytes: Uint8Array };
  assert.equal(bytes.buffer.byteLength, 4);
});

const circular: { inside: unknown } = { inside: undefined };
circular.inside = [circular];

for (const [what, fields, message] of [
  ["undefined", { a: { b: undefined } }, /field a\.b: .*undefined/],
  ["a hole", { a: new Array<string>(1) }, /field a\[0\]: .*undefined/],
  ["a function", { a: [() => "secret"] }, /field a\[0\]: .*function/],
  ["a symbol", { a: Symbol("secret") }, /field a: .*symbol/],
  ["an instance of a class", { a: new Map([["secret", 1]]) }, /field a: .*Map/],
  ["an integer over 64 bits", { a: 2n ** 63n }, /field a: .*64 bits/],
  ["half a surrogate pair", { a: "secret\ud800" }, /field a: .*Unicode/],
  ["a name of half a pair", { "\udc00": 1 }, /a field name is not valid Unicode/],
  ["a date that is none", { a: new Date("secret") }, /field a: .*Date/],
  ["a date past year 9999", { a: new Date(8.64e15) }, /field a: .*Date/],
  ["a transform in an array", { a: [DELETE_FIELD] }, /field a\[0\]: DELETE_FIELD/],
  ["a structure that holds itself", circular, /too deep/],
] as [string, object, RegExp][]) {
  test(`${what} is refused, by its name and without its value`, () => {
    assert.throws(
      () => encodeFields(fields, "plain"),
      (error: Error) => {
        assert.ok(error instanceof InvalidArgumentError);
        assert.match(error.message, message);
        assert.doesNotMatch(error.message, /secret/);
        return true;
      },
    );
  });
}

test("a value of no known type is an error, not a guess", () => {
  assert.throws(() => decodeFields(new Map([["a", { valueType: undefined }]]), "plain"), InternalError);
});

test("a timestamp keeps its microseconds", () => {
  const time = new Timestamp(1_767_323_045_000_006n);
  assert.equal(String(time), "2026-01-02T03:04:05.000006Z");
  assert.equal(JSON.stringify({ time }), '{"time":"2026-01-02T03:04:05.000006Z"}');
  assert.equal(time.toMillis(), 1_767_323_045_000);
  assert.ok(time > Timestamp.fromDate(time.toDate()));
  assert.ok(time.equals(new Timestamp(time.microseconds)));
  assert.equal(String(new Timestamp(-1n)), "1969-12-31T23:59:59.999999Z");
  assert.equal(String(Timestamp.fromMillis(-62_135_596_800_000)), "0001-01-01T00:00:00.000000Z");
  assert.throws(() => Timestamp.fromMillis(253_402_300_800_000), InvalidArgumentError);
});
