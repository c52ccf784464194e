/** Field paths in Firestore's notation. */

import { InvalidArgumentError } from "./errors.js";
import type { FieldPath } from "./values.js";

const SIMPLE = /^[A-Za-z_][A-Za-z_0-9]*$/;
const SEGMENT = /(?:`((?:[^`\\]|\\.)*)`|([^.`]+))(?:\.(?=.)|$)/sy;

/** The names on the path. Throws InvalidArgumentError for a text that is none. */
export function parse(path: FieldPath): readonly string[] {
  if (typeof path !== "string") {
    if (path.length === 0) {
      throw new InvalidArgumentError("field path: no names");
    }
    return path;
  }
  const names: string[] = [];
  SEGMENT.lastIndex = 0;
  do {
    const match = SEGMENT.exec(path);
    if (match === null) {
      throw new InvalidArgumentError(`field path "${path.slice(0, 120)}": not a field path`);
    }
    names.push(match[2] ?? match[1]!.replace(/\\(.)/gs, "$1"));
  } while (SEGMENT.lastIndex < path.length);
  return names;
}

/** The inverse of `parse`. */
export function spell(names: readonly string[]): string {
  return names
    .map((name) => (SIMPLE.test(name) ? name : `\`${name.replace(/[\\`]/g, "\\$&")}\``))
    .join(".");
}

/** Firestore's notation, whichever way the path was given. */
export function spelled(path: FieldPath): string {
  return spell(parse(path));
}
