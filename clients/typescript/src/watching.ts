/** What a caller of `watch` is told, moment by moment. */

import { status } from "@grpc/grpc-js";

import { Attempts } from "./attempts.js";
import { decodeDocument, decodeTime } from "./codec.js";
import { InvalidArgumentError } from "./errors.js";
import type { WatchReply, WatchRequest } from "./gen/crossfade/v1/crossfade.js";
import { Query, request as queryRequest } from "./query.js";
import { type Fields, type Numbers, relative, type Snapshot, type Timestamp } from "./values.js";

/** What became of the watched documents from the moment told before to `readTime`. */
export interface Moment<T extends object = Fields> {
  /** New, or other than they were. */
  readonly changed: readonly Snapshot<T>[];
  /**
   * The paths of those that are deleted, or not found by the query any more; the first time also
   * of the missing ones among documents that are watched by name.
   */
  readonly removed: readonly string[];
  readonly readTime: Timestamp;
}

/** A query, a collection by its path, or documents by theirs. */
export type Watchable = Query | string | readonly string[];

/** Throws InvalidArgumentError for what cannot be encoded. */
export function request(target: Watchable, numbers: Numbers): WatchRequest {
  if (typeof target === "string" || target instanceof Query) {
    return { target: { $case: "query", value: queryRequest(target, numbers) } };
  }
  if (target.length === 0) {
    throw new InvalidArgumentError("watch: no documents");
  }
  return { target: { $case: "documents", value: { names: [...target] } } };
}

/** What the caller knows, and what it is told next; when a stream that broke is opened again. */
export class Watching<T extends object> {
  readonly #patience: number;
  readonly #numbers: Numbers;
  #attempts: Attempts;
  #steady = false;
  /** When each document that the caller knows of was updated; undefined before the first moment. */
  #known: Map<string, bigint> | undefined;
  #changed = new Map<string, Snapshot<T>>();
  #removed = new Set<string>();
  /** The stream begins again with all there is: what it does not mention is gone. */
  #anew = false;

  constructor(patience: number, numbers: Numbers) {
    this.#patience = patience;
    this.#numbers = numbers;
    this.#attempts = new Attempts(patience, Number.POSITIVE_INFINITY);
  }

  /** The next moment, where the reply completes one and something is other than before. */
  told(reply: WatchReply): Moment<T> | undefined {
    for (const document of reply.changed) {
      const snapshot = decodeDocument<T>(document, this.#numbers);
      this.#removed.delete(snapshot.path);
      this.#changed.set(snapshot.path, snapshot);
    }
    for (const path of reply.removed.map(relative)) {
      this.#changed.delete(path);
      this.#removed.add(path);
    }
    return reply.consistent ? this.#moment(decodeTime(reply.readTime)) : undefined;
  }

  #moment(readTime: Timestamp): Moment<T> | undefined {
    this.#steady = true;
    const first = this.#known === undefined;
    const known = (this.#known ??= new Map<string, bigint>());
    if (this.#anew) {
      [...known.keys()].filter((path) => !this.#changed.has(path)).forEach((path) => this.#removed.add(path));
    }
    const changed = [...this.#changed.values()].filter(
      ({ path, updateTime }) => known.get(path) !== updateTime.microseconds,
    );
    const removed = [...this.#removed].filter((path) => first || known.has(path));
    for (const path of removed) {
      known.delete(path);
    }
    for (const { path, updateTime } of changed) {
      known.set(path, updateTime.microseconds);
    }
    this.#anew = false;
    this.#forget();
    return first || changed.length > 0 || removed.length > 0
      ? { changed, removed, readTime }
      : undefined;
  }

  /** How long to wait before the stream is opened again; undefined: it is not. */
  broken(code: status, hint?: number): number | undefined {
    if (this.#steady) {
      this.#attempts = new Attempts(this.#patience, Number.POSITIVE_INFINITY);
    }
    this.#steady = false;
    this.#anew = true;
    this.#forget();
    // A server that stops may say either.
    const stopped = code === status.UNAVAILABLE || code === status.CANCELLED;
    return this.#attempts.pause(stopped ? status.UNAVAILABLE : code, hint);
  }

  #forget(): void {
    this.#changed = new Map();
    this.#removed = new Set();
  }
}
