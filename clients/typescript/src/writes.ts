/**
 * Writes: what one of them asks for, and its message.
 *
 * A write's fields may hold transforms where values would stand, at any depth of maps; they are
 * taken out here and sent apart, as the protocol has them.
 */

import { encodeFields, encodeTime, encodeValue, isMap } from "./codec.js";
import { InvalidArgumentError } from "./errors.js";
import type {
  DocumentTransform_FieldTransform as FieldTransform,
  Precondition,
  Write as Message,
} from "./gen/crossfade/v1/document.js";
import { DocumentTransform_FieldTransform_ServerValue as ServerValue } from "./gen/crossfade/v1/document.js";
import * as paths from "./paths.js";
import { DELETE_FIELD, Transform } from "./transforms.js";
import { Double, type FieldPath, type Numbers, type Timestamp } from "./values.js";

type Names = readonly string[];

/** What must hold of the stored document, or nothing is done. At most one of the two. */
export interface Condition {
  /** Whether it is there. */
  exists?: boolean;
  /** That this is its version; FailedPreconditionError otherwise. */
  updateTime?: Timestamp;
}

/** What an update writes, by field path: an object, or a Map where names hold odd signs. */
export type Changes = object | ReadonlyMap<FieldPath, unknown>;

/** One write of a commit, made by one of the five static methods. */
export class Write {
  private constructor(
    readonly path: string,
    /** Its message. Throws InvalidArgumentError for what cannot be encoded. */
    readonly message: (numbers: Numbers) => Message,
  ) {}

  /** The whole document becomes `fields`, whatever was there. */
  static set(path: string, fields: object, condition: Pick<Condition, "updateTime"> = {}): Write {
    return Write.#whole(path, fields, condition);
  }

  /** As `set`; AlreadyExistsError where there is a document. */
  static create(path: string, fields: object): Write {
    return Write.#whole(path, fields, { exists: false });
  }

  /**
   * Sets the given fields, inside maps too, and leaves all others; makes the document where there
   * is none. An empty map, and any array, replaces what was there.
   */
  static merge(path: string, fields: object, condition: Condition = {}): Write {
    return new Write(path, (numbers) => {
      const parts = new Parts();
      parts.plain = parts.strip(checkedMap(path, fields), []);
      return parts.message(path, numbers, condition, [...parts.leaves, ...parts.deleted]);
    });
  }

  /**
   * Sets the given field paths ("a.b" is b inside the map a) and leaves all others; a map given
   * as a value replaces the stored one. NotFoundError where there is no document.
   */
  static update(path: string, changes: Changes, condition: Pick<Condition, "updateTime"> = {}): Write {
    const required = condition.updateTime === undefined ? { exists: true } : condition;
    return new Write(path, (numbers) => {
      const { parts, mask } = placed(path, changes);
      return parts.message(path, numbers, required, mask);
    });
  }

  /** No document afterwards; none before is fine unless `exists` is true. */
  static delete(path: string, condition: Condition = {}): Write {
    return new Write(path, () => ({
      operation: { $case: "delete", value: path },
      updateMask: undefined,
      updateTransforms: [],
      currentDocument: precondition(condition),
    }));
  }

  static #whole(path: string, fields: object, condition: Condition): Write {
    return new Write(path, (numbers) => {
      const parts = new Parts();
      parts.plain = parts.strip(checkedMap(path, fields), []);
      parts.refuseDeleted("is for merge and update");
      return parts.message(path, numbers, condition);
    });
  }
}

/** The parts of an update, and the paths it writes. */
function placed(path: string, changes: Changes): { parts: Parts; mask: Names[] } {
  const entries: [Names, unknown][] =
    changes instanceof Map
      ? [...changes].map(([key, value]) => [paths.parse(key as FieldPath), value])
      : Object.entries(checkedMap(path, changes)).map(([key, value]) => [paths.parse(key), value]);
  if (entries.length === 0) {
    throw new InvalidArgumentError(`document ${path}: an update without fields`);
  }
  refuseOverlap(path, entries.map(([names]) => names));
  const parts = new Parts();
  const mask: Names[] = [];
  for (const [names, value] of entries) {
    if (value instanceof Transform && value !== DELETE_FIELD) {
      parts.transforms.push([names, value]);
      continue;
    }
    mask.push(names);
    if (isMap(value)) {
      parts.place(names, parts.strip(value, names));
      parts.refuseDeleted("inside a map; give the field path as the key");
    } else if (value !== DELETE_FIELD) {
      parts.place(names, value);
    }
  }
  return { parts, mask };
}

type Plain = { [name: string]: unknown };

/** Without a prototype: a field may be called "__proto__". */
const empty = (): Plain => Object.create(null) as Plain;

/** A written document, taken apart: plain values, the paths of its leaves, transforms. */
class Parts {
  plain: Plain = empty();
  readonly leaves: Names[] = [];
  readonly deleted: Names[] = [];
  readonly transforms: [Names, Transform][] = [];

  /**
   * The values of a map that stands at `prefix`; the rest is noted. A map of nothing but
   * transforms is left out: they make it.
   */
  strip(fields: Plain, prefix: Names): Plain {
    if (prefix.length > 100) {
      throw new InvalidArgumentError(`field ${prefix[0]}: maps lie too deep inside each other`);
    }
    const plain = empty();
    for (const [name, value] of Object.entries(fields)) {
      const names = [...prefix, name];
      if (value === DELETE_FIELD) {
        this.deleted.push(names);
      } else if (value instanceof Transform) {
        this.transforms.push([names, value]);
      } else if (isMap(value) && Object.keys(value).length > 0) {
        const inner = this.strip(value, names);
        if (Object.keys(inner).length > 0) {
          plain[name] = inner;
        }
      } else {
        plain[name] = value;
        this.leaves.push(names);
      }
    }
    return plain;
  }

  place(names: Names, value: unknown): void {
    let inner = this.plain;
    for (const name of names.slice(0, -1)) {
      inner = (inner[name] ??= empty()) as Plain;
    }
    inner[names.at(-1)!] = value;
  }

  refuseDeleted(why: string): void {
    const [first] = this.deleted;
    if (first !== undefined) {
      throw new InvalidArgumentError(`field ${paths.spell(first)}: DELETE_FIELD ${why}`);
    }
  }

  message(path: string, numbers: Numbers, condition: Condition, mask?: Names[]): Message {
    const fields = encodeFields(this.plain, numbers);
    const document = { name: path, fields, createTime: undefined, updateTime: undefined };
    return {
      operation: { $case: "update", value: document },
      updateMask: mask && { fieldPaths: mask.map(paths.spell) },
      updateTransforms: this.transforms.map(([names, transform]) => {
        const fieldPath = paths.spell(names);
        return { fieldPath, transformType: transformType(transform, numbers, fieldPath) };
      }),
      currentDocument: precondition(condition),
    };
  }
}

function transformType(
  transform: Transform,
  numbers: Numbers,
  field: string,
): NonNullable<FieldTransform["transformType"]> {
  const { kind, operand } = transform;
  switch (kind) {
    case "increment":
    case "maximum":
    case "minimum":
      if (typeof operand !== "number" && typeof operand !== "bigint" && !(operand instanceof Double)) {
        throw new InvalidArgumentError(`field ${field}: ${kind} needs a number`);
      }
      return { $case: kind, value: encodeValue(operand, numbers, field) };
    case "arrayUnion":
    case "arrayRemove": {
      const values = (operand as unknown[]).map((item, index) =>
        encodeValue(item, numbers, `${field}[${index}]`),
      );
      const $case = kind === "arrayUnion" ? "appendMissingElements" : "removeAllFromArray";
      return { $case, value: { values } };
    }
    case "SERVER_TIMESTAMP":
      return { $case: "setToServerValue", value: ServerValue.REQUEST_TIME };
    default:
      throw new InvalidArgumentError(`field ${field}: not a transform of this client`);
  }
}

function precondition({ exists, updateTime }: Condition): Precondition | undefined {
  if (exists !== undefined && updateTime !== undefined) {
    throw new InvalidArgumentError("precondition: give exists or updateTime, not both");
  }
  if (exists !== undefined) {
    return { conditionType: { $case: "exists", value: exists } };
  }
  if (updateTime !== undefined) {
    return { conditionType: { $case: "updateTime", value: encodeTime(updateTime) } };
  }
  return undefined;
}

function checkedMap(path: string, fields: object): Plain {
  if (!isMap(fields)) {
    throw new InvalidArgumentError(`document ${path}: its fields have to be a plain object`);
  }
  return fields;
}

/** Two keys of which one holds the other have no order, so no meaning. */
function refuseOverlap(path: string, keys: Names[]): void {
  const seen = new Set(keys.map((names) => JSON.stringify(names)));
  for (const names of keys) {
    for (let length = 1; length < names.length; length += 1) {
      const outer = names.slice(0, length);
      if (seen.has(JSON.stringify(outer))) {
        throw new InvalidArgumentError(
          `document ${path}: the update names ${paths.spell(outer)} and ${paths.spell(names)}, ` +
            "which lies inside it",
        );
      }
    }
  }
  if (seen.size < keys.length) {
    throw new InvalidArgumentError(`document ${path}: the update names a field twice`);
  }
}
