/** Writes collected one by one. */

import type { CommitOptions, Crossfade } from "./client.js";
import type { CommitResult } from "./values.js";
import { type Changes, type Condition, Write } from "./writes.js";

/** Collects writes; `commit` sends them as one. Each of the other methods returns the batch. */
export class Batch {
  readonly #client: Crossfade;
  readonly #writes: Write[] = [];

  /** See `Crossfade.batch`. */
  constructor(client: Crossfade) {
    this.#client = client;
  }

  get size(): number {
    return this.#writes.length;
  }

  set(path: string, fields: object, condition: Pick<Condition, "updateTime"> = {}): this {
    return this.add(Write.set(path, fields, condition));
  }

  create(path: string, fields: object): this {
    return this.add(Write.create(path, fields));
  }

  merge(path: string, fields: object, condition: Condition = {}): this {
    return this.add(Write.merge(path, fields, condition));
  }

  update(path: string, changes: Changes, condition: Pick<Condition, "updateTime"> = {}): this {
    return this.add(Write.update(path, changes, condition));
  }

  delete(path: string, condition: Condition = {}): this {
    return this.add(Write.delete(path, condition));
  }

  add(write: Write): this {
    this.#writes.push(write);
    return this;
  }

  /** See `Crossfade.commit`. */
  commit(options: CommitOptions = {}): Promise<CommitResult> {
    return this.#client.commit(this.#writes, options);
  }
}
