/**
 * The values that have no twin among JavaScript's own types, and what calls answer with.
 *
 *     null null · boolean boolean · integer number or bigint · double number · string string
 *     bytes Uint8Array · timestamp Timestamp · reference Reference · geo point GeoPoint
 *     vector Vector · array Array · map plain object
 *
 * JavaScript has one type of number where Firestore has two; `Numbers` says what becomes of that.
 */

import { InvalidArgumentError } from "./errors.js";

/**
 * `plain` (the default), as in Firestore's own client: a safe integer is read as a number and a
 * number without a fraction is written as an integer. An integer that a number cannot hold
 * exactly is read as a bigint. A double without a fraction is read as a number as well, and
 * becomes an integer when it is written back; `new Double(1)` stays a double.
 *
 * `exact`: every integer is a bigint and every number a double, both ways, so that what was read
 * is written back as it was.
 */
export type Numbers = "plain" | "exact";

/** Forces a number to be written as a double. Never read. */
export class Double {
  constructor(readonly value: number) {}
}

const SECOND = 1_000_000n;
const FIRST = -62_135_596_800n * SECOND;
const LAST = 253_402_300_800n * SECOND - 1n;

/** A moment, to the microsecond, which is what both stores keep. From year 1 to 9999. */
export class Timestamp {
  /** Microseconds since 1970, UTC. */
  readonly microseconds: bigint;

  /** Throws InvalidArgumentError outside of the years. */
  constructor(microseconds: bigint) {
    if (microseconds < FIRST || microseconds > LAST) {
      throw new InvalidArgumentError("timestamp: not between the years 1 and 9999");
    }
    this.microseconds = microseconds;
  }

  /** A Date has milliseconds. */
  static fromDate(date: Date): Timestamp {
    return Timestamp.fromMillis(date.getTime());
  }

  static fromMillis(milliseconds: number): Timestamp {
    if (!Number.isFinite(milliseconds)) {
      throw new InvalidArgumentError("timestamp: not a date");
    }
    return new Timestamp(BigInt(Math.floor(milliseconds * 1000)));
  }

  static now(): Timestamp {
    return Timestamp.fromMillis(Date.now());
  }

  /** Without what is below a millisecond. */
  toDate(): Date {
    return new Date(this.toMillis());
  }

  toMillis(): number {
    return Number(floorDivide(this.microseconds, 1000n));
  }

  equals(other: Timestamp): boolean {
    return this.microseconds === other.microseconds;
  }

  /** ISO 8601 with all six digits: "2026-01-02T03:04:05.000006Z". */
  toString(): string {
    const fraction = this.microseconds - floorDivide(this.microseconds, SECOND) * SECOND;
    return this.toDate().toISOString().replace(/\.\d+Z$/, `.${String(fraction).padStart(6, "0")}Z`);
  }

  toJSON(): string {
    return this.toString();
  }

  /** So that < and > compare moments. */
  valueOf(): bigint {
    return this.microseconds;
  }
}

function floorDivide(value: bigint, by: bigint): bigint {
  const quotient = value / by;
  return value < 0n && quotient * by !== value ? quotient - 1n : quotient;
}

/**
 * A pointer to a document. Stored values hold the full name (`Snapshot.reference` has it); as an
 * operand for `__name__` the path ("tasks/1") does.
 */
export class Reference {
  constructor(readonly name: string) {}

  /** Relative to the database: "tasks/1". */
  get path(): string {
    return relative(this.name);
  }
}

/** Degrees; latitude -90..90, longitude -180..180. */
export class GeoPoint {
  constructor(
    readonly latitude: number,
    readonly longitude: number,
  ) {}
}

/** An embedding: doubles, which Firestore keeps as a map of its own kind. */
export class Vector {
  readonly values: readonly number[];

  constructor(values: Iterable<number>) {
    this.values = Object.freeze([...values]);
  }
}

/** What a field holds when it is read. */
export type Value =
  | null
  | boolean
  | number
  | bigint
  | string
  | Uint8Array
  | Timestamp
  | Reference
  | GeoPoint
  | Vector
  | Value[]
  | { [name: string]: Value };

/** The fields of a document as they are read. */
export type Fields = { [name: string]: Value };

/** Firestore's notation ("a.b.`odd name`") or the names themselves (["a", "b", "odd name"]). */
export type FieldPath = string | readonly string[];

// --- answers ---------------------------------------------------------------------------------

/** A document as it was read. `T` is the caller's word for its fields; nothing checks it. */
export class Snapshot<T extends object = Fields> {
  constructor(
    /** The full name. */
    readonly name: string,
    readonly fields: T,
    readonly createTime: Timestamp,
    readonly updateTime: Timestamp,
  ) {}

  /** Relative to the database: "tasks/1". */
  get path(): string {
    return relative(this.name);
  }

  get id(): string {
    return this.name.slice(this.name.lastIndexOf("/") + 1);
  }

  /** What a field of another document holds to point here. */
  get reference(): Reference {
    return new Reference(this.name);
  }
}

export interface WriteResult {
  /** Not there after a delete. */
  readonly updateTime: Timestamp | undefined;
  /** One value per transform, in the order of the fields. */
  readonly transformResults: readonly Value[];
}

export interface CommitResult {
  readonly commitTime: Timestamp;
  /** One per write, in order. */
  readonly writes: readonly WriteResult[];
  /** Of the first write, which is the only one of `set`, `update` and their kin. */
  readonly updateTime: Timestamp | undefined;
  /**
   * This requestId had been committed before: nothing was done now and `transformResults` are
   * empty.
   */
  readonly replayed: boolean;
}

/** The path of a full document name; a path is returned as it is. */
export function relative(name: string): string {
  if (!name.startsWith("projects/")) {
    return name;
  }
  const mark = "/documents/";
  const at = name.indexOf(mark);
  return at < 0 ? "" : name.slice(at + mark.length);
}
