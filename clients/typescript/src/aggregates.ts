/** Counts, sums and averages over what a query finds, and their message. */

import { decodeValue } from "./codec.js";
import { InternalError, InvalidArgumentError } from "./errors.js";
import type { AggregateReply, AggregateRequest } from "./gen/crossfade/v1/crossfade.js";
import type { StructuredAggregationQuery_Aggregation as Message } from "./gen/crossfade/v1/query.js";
import * as paths from "./paths.js";
import { type Query, request as queryRequest } from "./query.js";
import type { FieldPath, Numbers } from "./values.js";

/** What `count`, `sum` and `average` make. */
export class Aggregation {
  /** @internal */
  constructor(
    readonly kind: "count" | "sum" | "avg",
    readonly field?: FieldPath,
    readonly upTo?: number,
  ) {}
}

/** How many documents there are; counting ends at `upTo`. */
export function count(upTo?: number): Aggregation {
  return new Aggregation("count", undefined, upTo);
}

/** The sum of the numbers in a field; 0 where there is none. */
export function sum(field: FieldPath): Aggregation {
  return new Aggregation("sum", field);
}

/** The average of the numbers in a field; null where there is none. */
export function average(field: FieldPath): Aggregation {
  return new Aggregation("avg", field);
}

/** Results by the names they were asked under. */
export type Aggregates<T> = { [K in keyof T]: number | bigint | null };

type Asked = { readonly [name: string]: Aggregation };

/** Throws InvalidArgumentError for no aggregations and for what cannot be encoded. */
export function request(query: Query | string, asked: Asked, numbers: Numbers): AggregateRequest {
  const entries = Object.entries(asked);
  if (entries.length === 0) {
    throw new InvalidArgumentError("aggregate: no aggregations");
  }
  const { parent, query: structured } = queryRequest(query, numbers);
  const queryType = structured && ({ $case: "structuredQuery", value: structured } as const);
  const aggregations = entries.map(
    ([alias, aggregation]): Message => ({ alias, operator: operator(aggregation) }),
  );
  return { parent, query: { queryType, aggregations } };
}

function operator({ kind, field, upTo }: Aggregation): NonNullable<Message["operator"]> {
  if (kind === "count") {
    if (upTo !== undefined && !Number.isSafeInteger(upTo)) {
      throw new InvalidArgumentError("aggregate: upTo is not a whole number");
    }
    return { $case: "count", value: { upTo: upTo === undefined ? undefined : BigInt(upTo) } };
  }
  return { $case: kind, value: { field: { fieldPath: paths.spelled(field!) } } };
}

/** Throws InternalError for a reply that leaves one out: nothing said is not zero. */
export function result<T extends Asked>(
  reply: AggregateReply,
  asked: T,
  numbers: Numbers,
): Aggregates<T> {
  const fields = reply.result?.aggregateFields;
  const found = Object.keys(asked).map((alias) => {
    const message = fields?.get(alias);
    const value = message && decodeValue(message, numbers);
    if (value !== null && typeof value !== "number" && typeof value !== "bigint") {
      throw new InternalError("the reply lacks an aggregation, or holds what is no number");
    }
    return [alias, value] as const;
  });
  return Object.fromEntries(found) as Aggregates<T>;
}
