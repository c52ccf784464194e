/** Queries: a frozen builder, and its message. */

import { encodeValue } from "./codec.js";
import { InvalidArgumentError } from "./errors.js";
import type { QueryRequest } from "./gen/crossfade/v1/crossfade.js";
import {
  type Cursor as CursorMessage,
  type StructuredQuery_Filter as FilterMessage,
  type StructuredQuery_Order as OrderMessage,
  StructuredQuery_CompositeFilter_Operator as CompositeOperator,
  StructuredQuery_Direction as Direction,
  StructuredQuery_FieldFilter_Operator as FieldOperator,
  StructuredQuery_UnaryFilter_Operator as UnaryOperator,
} from "./gen/crossfade/v1/query.js";
import * as paths from "./paths.js";
import { type FieldPath, type Numbers, Reference, Snapshot } from "./values.js";

const NAME = "__name__";
const OPERATORS = {
  "<": FieldOperator.LESS_THAN,
  "<=": FieldOperator.LESS_THAN_OR_EQUAL,
  ">": FieldOperator.GREATER_THAN,
  ">=": FieldOperator.GREATER_THAN_OR_EQUAL,
  "==": FieldOperator.EQUAL,
  "!=": FieldOperator.NOT_EQUAL,
  "array-contains": FieldOperator.ARRAY_CONTAINS,
  "array-contains-any": FieldOperator.ARRAY_CONTAINS_ANY,
  in: FieldOperator.IN,
  "not-in": FieldOperator.NOT_IN,
} as const;

export type Operator = keyof typeof OPERATORS;

const INEQUALITIES: ReadonlySet<Operator> = new Set<Operator>(["<", "<=", ">", ">=", "!=", "not-in"]);

interface Leaf {
  readonly field: FieldPath;
  readonly op: Operator;
  readonly value: unknown;
}

interface Composite {
  readonly all: boolean;
  readonly filters: readonly Filter[];
}

/** What `where`, `and` and `or` make. */
export class Filter {
  /** @internal */
  constructor(readonly content: Leaf | Composite) {}
}

/**
 * Comparing with null or NaN by == and != asks for null and NaN, as in Firestore.
 * Throws InvalidArgumentError for an operator that is none.
 */
export function where(field: FieldPath, op: Operator, value: unknown): Filter {
  if (!Object.hasOwn(OPERATORS, op)) {
    const known = Object.keys(OPERATORS).join(" ");
    throw new InvalidArgumentError(`query: "${op}" is not an operator; one of ${known}`);
  }
  return new Filter({ field, op, value });
}

/** Every filter holds. */
export function and(...filters: readonly Filter[]): Filter {
  return composite(true, filters);
}

/** At least one filter holds. */
export function or(...filters: readonly Filter[]): Filter {
  return composite(false, filters);
}

function composite(all: boolean, filters: readonly Filter[]): Filter {
  if (filters.length === 0) {
    throw new InvalidArgumentError(`query: ${all ? "and" : "or"} of no filters`);
  }
  return new Filter({ all, filters });
}

interface Cursor {
  readonly values: readonly unknown[];
  readonly before: boolean;
}

interface Parts {
  readonly filters: readonly Filter[];
  readonly orders: readonly { readonly field: FieldPath; readonly descending: boolean }[];
  readonly start?: Cursor;
  readonly end?: Cursor;
  readonly offset: number;
  readonly limit?: number;
  readonly fields?: readonly FieldPath[];
}

/**
 * A query over a collection ("tasks", "tasks/1/audio_chunks"), or over every collection of that
 * id with `{ group: true }`. Each method returns a new query.
 *
 * Without an order, documents come by their ids.
 */
export class Query {
  readonly collection: string;
  readonly group: boolean;
  /** @internal */
  readonly parts: Parts;

  constructor(collection: string, { group = false }: { group?: boolean } = {}, parts?: Parts) {
    this.collection = collection;
    this.group = group;
    this.parts = parts ?? { filters: [], orders: [], offset: 0 };
  }

  /** Adds a filter that must hold too: `where("status", "==", "done")` or `where(or(...))`. */
  where(filter: Filter): Query;
  where(field: FieldPath, op: Operator, value: unknown): Query;
  where(field: FieldPath | Filter, op?: Operator, value?: unknown): Query {
    const added = field instanceof Filter ? field : where(field, op!, value);
    return this.#with({ filters: [...this.parts.filters, added] });
  }

  /** Documents without the field are left out. */
  orderBy(field: FieldPath, direction: "asc" | "desc" = "asc"): Query {
    const order = { field, descending: direction === "desc" };
    return this.#with({ orders: [...this.parts.orders, order] });
  }

  /** Begins at the position of the values of the orderBy fields, or of a Snapshot. */
  startAt(...values: readonly unknown[]): Query {
    return this.#with({ start: { values, before: true } });
  }

  startAfter(...values: readonly unknown[]): Query {
    return this.#with({ start: { values, before: false } });
  }

  endBefore(...values: readonly unknown[]): Query {
    return this.#with({ end: { values, before: true } });
  }

  endAt(...values: readonly unknown[]): Query {
    return this.#with({ end: { values, before: false } });
  }

  offset(count: number): Query {
    return this.#with({ offset: int32(count, "offset") });
  }

  limit(count: number): Query {
    return this.#with({ limit: int32(count, "limit") });
  }

  /** Only these fields of the documents; none given: no field. */
  select(...fields: readonly FieldPath[]): Query {
    return this.#with({ fields: fields.length > 0 ? fields : [NAME] });
  }

  #with(parts: Partial<Parts>): Query {
    return new Query(this.collection, { group: this.group }, { ...this.parts, ...parts });
  }
}

function int32(count: number, what: string): number {
  if (!Number.isInteger(count) || count !== (count | 0)) {
    throw new InvalidArgumentError(`query: ${what} is not a whole number of 32 bits`);
  }
  return count;
}

// --- the message -----------------------------------------------------------------------------

/** A whole collection may be given by its path. Throws InvalidArgumentError for what cannot be encoded. */
export function request(query: Query | string, numbers: Numbers): QueryRequest {
  const { collection, group, parts } = typeof query === "string" ? new Query(query) : query;
  const segments = collection.split("/");
  const id = segments.pop();
  if (!id || segments.length % 2 !== 0) {
    throw new InvalidArgumentError(`query: "${collection.slice(0, 120)}" is not the path of a collection`);
  }
  const orders = allOrders(parts);
  return {
    parent: segments.join("/"),
    query: {
      from: [{ collectionId: id, allDescendants: group }],
      where: whole(parts.filters, numbers),
      orderBy: orders.map(orderMessage),
      startAt: parts.start && cursorMessage(parts.start, orders, numbers),
      endAt: parts.end && cursorMessage(parts.end, orders, numbers),
      offset: parts.offset,
      limit: parts.limit,
      select: parts.fields && {
        fields: parts.fields.map((field) => ({ fieldPath: paths.spelled(field) })),
      },
    },
  };
}

interface Order {
  /** As `paths.spell` has it. */
  readonly path: string;
  readonly descending: boolean;
}

/**
 * The explicit orders; with a Snapshot as a cursor the implicit ones too, spelled out, since a
 * cursor may not have more values than the query has explicit orders.
 */
function allOrders(parts: Parts): Order[] {
  const orders: Order[] = parts.orders.map(({ field, descending }) => ({
    path: paths.spelled(field),
    descending,
  }));
  const cursors = [...(parts.start?.values ?? []), ...(parts.end?.values ?? [])];
  if (!cursors.some((value) => value instanceof Snapshot)) {
    return orders;
  }
  const seen = new Set(orders.map(({ path }) => path));
  const descending = orders.at(-1)?.descending ?? false;
  const implicit = unequal(parts.filters).filter((path) => !seen.has(path) && path !== NAME);
  // In the order of their names in UTF-8, which is that of code points.
  const sorted = [...new Set(implicit)].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  orders.push(...sorted.map((path) => ({ path, descending })));
  if (!seen.has(NAME)) {
    orders.push({ path: NAME, descending });
  }
  return orders;
}

function unequal(filters: readonly Filter[]): string[] {
  return filters.flatMap(({ content }) => {
    if ("filters" in content) {
      return unequal(content.filters);
    }
    return INEQUALITIES.has(content.op) ? [paths.spelled(content.field)] : [];
  });
}

function orderMessage({ path, descending }: Order): OrderMessage {
  return {
    field: { fieldPath: path },
    direction: descending ? Direction.DESCENDING : Direction.ASCENDING,
  };
}

function cursorMessage({ values, before }: Cursor, orders: Order[], numbers: Numbers): CursorMessage {
  const [first] = values;
  const found =
    values.length === 1 && first instanceof Snapshot
      ? orders.map(({ path }) => ofSnapshot(first, path))
      : values;
  // Without an order, documents come by their names.
  const spelled = orders.length > 0 ? orders.map(({ path }) => path) : [NAME];
  return {
    before,
    values: found.map((value, index) =>
      encodeValue(spelled[index] === NAME ? reference(value) : value, numbers, `cursor[${index}]`),
    ),
  };
}

function ofSnapshot(snapshot: Snapshot<object>, path: string): unknown {
  if (path === NAME) {
    return snapshot.reference;
  }
  let value: unknown = snapshot.fields;
  for (const name of paths.parse(path)) {
    if (typeof value !== "object" || value === null || !Object.hasOwn(value, name)) {
      throw new InvalidArgumentError(`query: the snapshot that is the cursor lacks the field ${path}`);
    }
    value = (value as { [name: string]: unknown })[name];
  }
  return value;
}

/** An operand for `__name__`; a path is taken as well. */
function reference(value: unknown): unknown {
  if (Array.isArray(value)) {
    return value.map(reference);
  }
  return typeof value === "string" ? new Reference(value) : value;
}

function whole(filters: readonly Filter[], numbers: Numbers): FilterMessage | undefined {
  const [first, ...others] = filters;
  if (first === undefined) {
    return undefined;
  }
  return filterMessage(others.length > 0 ? and(...filters) : first, numbers);
}

function filterMessage({ content }: Filter, numbers: Numbers): FilterMessage {
  if ("filters" in content) {
    const op = content.all ? CompositeOperator.AND : CompositeOperator.OR;
    const filters = content.filters.map((filter) => filterMessage(filter, numbers));
    return { filterType: { $case: "compositeFilter", value: { op, filters } } };
  }
  const fieldPath = paths.spelled(content.field);
  const field = { fieldPath };
  const unary = unaryOperator(content);
  if (unary !== undefined) {
    const operandType = { $case: "field", value: field } as const;
    return { filterType: { $case: "unaryFilter", value: { op: unary, operandType } } };
  }
  const operand = fieldPath === NAME ? reference(content.value) : content.value;
  const value = encodeValue(operand, numbers, `filter ${fieldPath}`);
  return { filterType: { $case: "fieldFilter", value: { field, op: OPERATORS[content.op], value } } };
}

function unaryOperator({ op, value }: Leaf): UnaryOperator | undefined {
  if (op !== "==" && op !== "!=") {
    return undefined;
  }
  if (value === null) {
    return op === "==" ? UnaryOperator.IS_NULL : UnaryOperator.IS_NOT_NULL;
  }
  if (Number.isNaN(value)) {
    return op === "==" ? UnaryOperator.IS_NAN : UnaryOperator.IS_NOT_NAN;
  }
  return undefined;
}
