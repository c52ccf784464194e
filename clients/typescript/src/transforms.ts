/** What stands in a written document where the value would: a change that the store computes. */

/** Made by the functions and constants of this file. */
export class Transform {
  constructor(
    readonly kind: string,
    readonly operand?: unknown,
  ) {}
}

/** The time of the commit. */
export const SERVER_TIMESTAMP = new Transform("SERVER_TIMESTAMP");

/** Takes the field away (in merge and update). */
export const DELETE_FIELD = new Transform("DELETE_FIELD");

type Operand = number | bigint | { readonly value: number };

/** Adds to the stored number; sets it where there is none. */
export function increment(amount: Operand): Transform {
  return new Transform("increment", amount);
}

/** Keeps the larger of the stored number and this one. */
export function maximum(value: Operand): Transform {
  return new Transform("maximum", value);
}

/** Keeps the smaller of the stored number and this one. */
export function minimum(value: Operand): Transform {
  return new Transform("minimum", value);
}

/** Appends those of the values that the stored array lacks. */
export function arrayUnion(...values: readonly unknown[]): Transform {
  return new Transform("arrayUnion", values);
}

/** Removes every element equal to one of the values. */
export function arrayRemove(...values: readonly unknown[]): Transform {
  return new Transform("arrayRemove", values);
}
