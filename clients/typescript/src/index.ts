/**
 * TypeScript client of the Crossfade sidecar.
 *
 *     const crossfade = new Crossfade("127.0.0.1:7600");
 *     const task = await crossfade.get("tasks/1");
 */

export { type Aggregates, Aggregation, average, count, sum } from "./aggregates.js";
export { Batch } from "./batch.js";
export type { CallMetadata, CallOptions, ClientOptions } from "./calls.js";
export { type CommitOptions, Crossfade, type WatchOptions } from "./client.js";
export * from "./errors.js";
export { and, Filter, type Operator, or, Query, where } from "./query.js";
export {
  arrayRemove,
  arrayUnion,
  DELETE_FIELD,
  increment,
  maximum,
  minimum,
  SERVER_TIMESTAMP,
  Transform,
} from "./transforms.js";
export {
  type CommitResult,
  Double,
  type FieldPath,
  type Fields,
  GeoPoint,
  type Numbers,
  Reference,
  Snapshot,
  Timestamp,
  type Value,
  Vector,
  type WriteResult,
} from "./values.js";
export type { Moment, Watchable } from "./watching.js";
export { type Methods, Violet } from "./violet.js";
export { type Changes, type Condition, Write } from "./writes.js";
