/** When a call is tried again. */

import { status } from "@grpc/grpc-js";

import { InvalidArgumentError } from "./errors.js";

const FIRST_PAUSE = 20;
const LONGEST_PAUSE = 1000;
/** setTimeout's and gRPC's timers go no further. */
const LONGEST_TIMEOUT = 2 ** 31 - 1;

/**
 * The deadline of one operation and what is left of its retries.
 *
 * UNAVAILABLE is tried again where `safe`: a read, or a commit with a requestId. Pauses double
 * from 20 ms to 1 s, each drawn evenly from zero to that, so that callers which failed together
 * do not come back together. RESOURCE_EXHAUSTED is tried again where the sidecar says after how
 * long: nothing was done then. All times in milliseconds.
 */
export class Attempts {
  readonly #clock: () => number;
  readonly #end: number;
  readonly #safe: boolean;
  #left: number;
  #pause = FIRST_PAUSE;

  constructor(timeout: number, retries: number, safe = true, clock = () => performance.now()) {
    if (!(timeout > 0 && timeout <= LONGEST_TIMEOUT)) {
      throw new InvalidArgumentError(`timeout: ${timeout} is not a number of milliseconds above 0`);
    }
    this.#clock = clock;
    this.#end = clock() + timeout;
    this.#safe = safe;
    this.#left = retries;
  }

  /** For the next attempt; a moment at least, so that gRPC itself ends the call. */
  remaining(): number {
    return Math.max(this.#end - this.#clock(), 1);
  }

  /** How long to wait before the next attempt; undefined: there is none. `hint`: the sidecar's. */
  pause(code: status, hint?: number): number | undefined {
    const refused = code === status.RESOURCE_EXHAUSTED && hint !== undefined;
    const away = code === status.UNAVAILABLE && this.#safe;
    if (!(refused || away) || this.#left <= 0) {
      return undefined;
    }
    const pause = (hint ?? 0) + Math.random() * this.#pause;
    if (this.#clock() + pause >= this.#end) {
      return undefined;
    }
    this.#left -= 1;
    this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE);
    return pause;
  }
}
