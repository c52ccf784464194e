/** `watch`, of a sidecar that plays a script. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { status } from "@grpc/grpc-js";

import { CallCancelledError, Crossfade, InvalidArgumentError, type Moment, UnavailableError } from "../src/index.js";
import type { WatchReply } from "../src/gen/crossfade/v1/crossfade.js";
import { document, Fake, named, pair } from "./fake.js";

const second = (at: number) => ({ seconds: BigInt(at), nanos: 0 });

/** A reply about the documents of these letters, updated `at` that second. */
function told(changed = "", removed = "", { consistent = true, at = 1 } = {}): WatchReply {
  return {
    changed: [...changed].map((letter) => document(letter, second(at))),
    removed: [...removed].map(named),
    consistent,
    readTime: second(at),
  };
}

/** The letters of the first moments. */
async function first(count: number, watching: AsyncIterable<Moment>): Promise<[string, string][]> {
  const seen: [string, string][] = [];
  for await (const { changed, removed } of watching) {
    seen.push([changed.map(({ id }) => id).join(""), removed.map((path) => path.slice(2)).join("")]);
    if (seen.length === count) {
      break;
    }
  }
  return seen;
}

test("replies are told when they make a moment", async () => {
  const [fake, crossfade] = await pair();
  const part = { consistent: false, at: 2 };
  fake.watches = [
    [told("ab", "", part), told("c", "z"), told(), told("d", "", part), told("", "d"), told("a", "b", { at: 3 })],
  ];
  assert.deepStrictEqual(await first(2, crossfade.watch("a")), [
    ["abc", "z"],
    ["a", "b"],
  ]);
  while (fake.cancelled === 0) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
});

test("an empty result is told once", async () => {
  const [fake, crossfade] = await pair();
  fake.watches = [[told(), told(), told("a")]];
  assert.deepStrictEqual(await first(2, crossfade.watch(["a/a"])), [
    ["", ""],
    ["a", ""],
  ]);
});

test("a stream that breaks is opened again unnoticed", async () => {
  const [fake, crossfade] = await pair();
  fake.watches = [
    [told("abc"), told("x", "", { consistent: false }), status.UNAVAILABLE],
    [status.UNAVAILABLE],
    [status.CANCELLED],
    [told("ac", "", { consistent: false }), told("d"), told("a", "", { at: 5 })],
  ];
  assert.deepStrictEqual(await first(3, crossfade.watch("a")), [
    ["abc", ""],
    ["d", "b"],
    ["a", ""],
  ]);
  assert.equal(fake.count("watch"), 4);
});

test("a sidecar that restarts goes unnoticed", async () => {
  const fake = new Fake();
  fake.watches = [[told("ab")]];
  const target = await fake.start();
  const crossfade = new Crossfade(target);
  const watching = crossfade.watch("a");
  assert.equal((await watching.next()).value?.changed.length, 2);
  fake.stop();
  const again = new Fake();
  again.watches = [[told("b")]];
  assert.equal(await again.start(target), target);
  assert.deepStrictEqual((await watching.next()).value?.removed, ["a/a"]);
  await watching.return();
  crossfade.close();
  again.stop();
});

test("what cannot be watched is an error, and patience ends", async () => {
  const [fake, crossfade] = await pair();
  fake.watches = [[told(), status.INVALID_ARGUMENT]];
  await assert.rejects(first(2, crossfade.watch("a")), InvalidArgumentError);
  assert.equal(fake.count("watch"), 1);
  for (const wrong of ["a/b", []]) {
    await assert.rejects(first(1, crossfade.watch(wrong)), InvalidArgumentError);
  }
  await assert.rejects(first(1, crossfade.watch("a", { patience: 300 })), UnavailableError);
  assert.ok(fake.count("watch") > 2);
});

test("a signal ends it, and so does closing the client", async () => {
  const [fake, crossfade] = await pair();
  const reason = new Error("enough");
  fake.watches = [[told()], [told()]];
  const controller = new AbortController();
  const watching = crossfade.watch("a", { signal: controller.signal });
  await watching.next();
  const next = watching.next();
  controller.abort(reason);
  await assert.rejects(next, reason);
  const other = crossfade.watch("a");
  await other.next();
  const waiting = other.next();
  crossfade.close();
  await assert.rejects(waiting, CallCancelledError);
});
