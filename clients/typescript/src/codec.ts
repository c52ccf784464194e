/**
 * JavaScript values to protobuf values and back.
 *
 * Errors name the field and never quote its value: they end up in logs.
 */

import { InternalError, InvalidArgumentError } from "./errors.js";
import type { Document, Value as Message } from "./gen/crossfade/v1/document.js";
import { NullValue } from "./gen/google/protobuf/struct.js";
import type { Timestamp as TimestampMessage } from "./gen/google/protobuf/timestamp.js";
import { Transform } from "./transforms.js";
import {
  Double,
  type Fields,
  GeoPoint,
  type Numbers,
  Reference,
  Snapshot,
  Timestamp,
  type Value,
  Vector,
} from "./values.js";

const INT64 = 2n ** 63n;
/** Firestore allows 20; a structure that holds itself ends here. */
const DEEPEST = 100;
const VECTOR = "__vector__";
const LONE_SURROGATE = /\p{Surrogate}/u;

type Type = NonNullable<Message["valueType"]>;

/** Names on the way to a value, for the error. */
type Where = readonly string[];

// --- encoding --------------------------------------------------------------------------------

/** Throws InvalidArgumentError naming `field`. */
export function encodeValue(value: unknown, numbers: Numbers, field: string): Message {
  return encode(value, numbers, [field]);
}

/** Throws InvalidArgumentError. */
export function encodeFields(fields: object, numbers: Numbers): Map<string, Message> {
  return fill(fields, numbers, []);
}

/** Whether the value is a map of the document: an object that is of no class. */
export function isMap(value: unknown): value is { [name: string]: unknown } {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    return false;
  }
  const prototype: unknown = Object.getPrototypeOf(value);
  // The prototype of an object from elsewhere (another context) is not this Object's.
  return prototype === null || Object.getPrototypeOf(prototype) === null;
}

function encode(value: unknown, numbers: Numbers, where: Where): Message {
  return { valueType: typed(value, numbers, where) };
}

function typed(value: unknown, numbers: Numbers, where: Where): Type {
  switch (typeof value) {
    case "string":
      return { $case: "stringValue", value: wellFormed(value, where) };
    case "boolean":
      return { $case: "booleanValue", value };
    case "number":
      return numbers === "plain" && Number.isSafeInteger(value) && !Object.is(value, -0)
        ? { $case: "integerValue", value: BigInt(value) }
        : { $case: "doubleValue", value };
    case "bigint":
      if (value < -INT64 || value >= INT64) {
        throw illegal(where, "the integer does not fit 64 bits");
      }
      return { $case: "integerValue", value };
    case "object":
      return value === null
        ? { $case: "nullValue", value: NullValue.NULL_VALUE }
        : typedObject(value, numbers, where);
    default:
      throw illegal(where, `a value of type ${typeof value} cannot be stored`);
  }
}

function typedObject(value: object, numbers: Numbers, where: Where): Type {
  if (where.length > DEEPEST) {
    throw illegal(where.slice(0, 3), "maps and arrays lie too deep inside each other");
  }
  if (Array.isArray(value)) {
    // Array.from: a hole is undefined, which is refused, and not passed over.
    const values = Array.from(value as unknown[], (item, index) =>
      encode(item, numbers, [...where, `[${index}]`]),
    );
    return { $case: "arrayValue", value: { values } };
  }
  if (isMap(value)) {
    return { $case: "mapValue", value: { fields: fill(value, numbers, where) } };
  }
  if (value instanceof Timestamp) {
    return { $case: "timestampValue", value: encodeTime(value) };
  }
  if (value instanceof Date) {
    return { $case: "timestampValue", value: encodeTime(fromDate(value, where)) };
  }
  if (value instanceof Uint8Array) {
    return { $case: "bytesValue", value };
  }
  if (value instanceof Reference) {
    return { $case: "referenceValue", value: value.name };
  }
  if (value instanceof GeoPoint) {
    const { latitude, longitude } = value;
    return { $case: "geoPointValue", value: { latitude, longitude } };
  }
  if (value instanceof Double) {
    return { $case: "doubleValue", value: value.value };
  }
  if (value instanceof Vector) {
    return { $case: "mapValue", value: { fields: encodeVector(value) } };
  }
  const name = value.constructor?.name ?? "object";
  throw value instanceof Transform
    ? illegal(where, `${value.kind} may stand in a map of the document only`)
    : illegal(where, `a value of type ${name} cannot be stored`);
}

function fill(fields: object, numbers: Numbers, where: Where): Map<string, Message> {
  const filled = new Map<string, Message>();
  for (const [name, value] of Object.entries(fields)) {
    const inside = [...where, wellFormed(name, where, "a field name")];
    filled.set(name, encode(value, numbers, inside));
  }
  return filled;
}

function encodeVector(vector: Vector): Map<string, Message> {
  const values = vector.values.map((value): Message => ({ valueType: { $case: "doubleValue", value } }));
  return new Map<string, Message>([
    ["__type__", { valueType: { $case: "stringValue", value: VECTOR } }],
    ["value", { valueType: { $case: "arrayValue", value: { values } } }],
  ]);
}

function fromDate(value: Date, where: Where): Timestamp {
  try {
    return Timestamp.fromDate(value);
  } catch {
    throw illegal(where, "the Date is not valid, or not between the years 1 and 9999");
  }
}

function wellFormed(text: string, where: Where, what = "the text"): string {
  if (LONE_SURROGATE.test(text)) {
    throw illegal(where, `${what} is not valid Unicode`);
  }
  return text;
}

function illegal(where: Where, reason: string): InvalidArgumentError {
  const spelled = where.reduce((path, name) => path + (name.startsWith("[") || !path ? "" : ".") + name, "");
  return new InvalidArgumentError(`field ${spelled}: ${reason}`);
}

export function encodeTime(time: Timestamp): TimestampMessage {
  const seconds = BigInt.asIntN(64, (time.microseconds - modulo(time.microseconds)) / 1_000_000n);
  return { seconds, nanos: Number(modulo(time.microseconds)) * 1000 };
}

function modulo(microseconds: bigint): bigint {
  return ((microseconds % 1_000_000n) + 1_000_000n) % 1_000_000n;
}

// --- decoding --------------------------------------------------------------------------------

/** Throws InternalError for a value without a type: data is never guessed. */
export function decodeValue(message: Message, numbers: Numbers): Value {
  const type = message.valueType;
  switch (type?.$case) {
    case "nullValue":
      return null;
    case "integerValue":
      return numbers === "exact" ? type.value : smallest(type.value);
    case "booleanValue":
    case "doubleValue":
    case "stringValue":
      return type.value;
    case "bytesValue":
      // A copy: the original is a window on the whole message and would keep it alive.
      return new Uint8Array(type.value);
    case "timestampValue":
      return decodeTime(type.value);
    case "referenceValue":
      return new Reference(type.value);
    case "geoPointValue":
      return new GeoPoint(type.value.latitude, type.value.longitude);
    case "arrayValue":
      return type.value.values.map((item) => decodeValue(item, numbers));
    case "mapValue":
      return vectorOf(type.value.fields) ?? decodeFields(type.value.fields, numbers);
    default:
      throw new InternalError("the reply holds a value of a type that this client does not know");
  }
}

function smallest(integer: bigint): number | bigint {
  const number = Number(integer);
  return Number.isSafeInteger(number) ? number : integer;
}

export function decodeFields(fields: Map<string, Message>, numbers: Numbers): Fields {
  const decoded: Fields = {};
  for (const [name, message] of fields) {
    const value = decodeValue(message, numbers);
    if (name === "__proto__") {
      Object.defineProperty(decoded, name, { value, enumerable: true, writable: true, configurable: true });
    } else {
      decoded[name] = value;
    }
  }
  return decoded;
}

/** Undefined where the map is no vector. */
function vectorOf(fields: Map<string, Message>): Vector | undefined {
  const type = fields.get("__type__")?.valueType;
  const value = fields.get("value")?.valueType;
  if (fields.size !== 2 || type?.$case !== "stringValue" || type.value !== VECTOR) {
    return undefined;
  }
  if (value?.$case !== "arrayValue") {
    return undefined;
  }
  const numbers: number[] = [];
  for (const { valueType: item } of value.value.values) {
    if (item?.$case !== "doubleValue") {
      return undefined;
    }
    numbers.push(item.value);
  }
  return new Vector(numbers);
}

/** To the microsecond. An absent time is a defect of the server. */
export function decodeTime(message: TimestampMessage | undefined): Timestamp {
  if (message === undefined) {
    throw new InternalError("the reply lacks a time");
  }
  return new Timestamp(message.seconds * 1_000_000n + BigInt(Math.floor(message.nanos / 1000)));
}

export function decodeDocument<T extends object>(message: Document, numbers: Numbers): Snapshot<T> {
  return new Snapshot<T>(
    message.name,
    decodeFields(message.fields, numbers) as T,
    decodeTime(message.createTime),
    decodeTime(message.updateTime),
  );
}
