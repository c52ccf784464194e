/**
 * Firestore has integers of 64 bits beside its doubles; the two ways of carrying them here.
 *
 * CROSSFADE_TARGET says where the sidecar is (127.0.0.1:7600 without it).
 */

import { randomUUID } from "node:crypto";

import { Crossfade, Double } from "crossfade-client";

const target = process.env["CROSSFADE_TARGET"] ?? "127.0.0.1:7600";
const plain = new Crossfade(target, { timeout: 10_000 });
const exact = new Crossfade(target, { timeout: 10_000, numbers: "exact" });
const path = `examples/${randomUUID()}`;

// An integer, one that no number holds exactly, a double, and a double without a fraction.
await plain.set(path, { a: 1, b: 9_007_199_254_740_993n, c: 1.5, d: new Double(2) });

const one = (await plain.get(path)).fields;
console.log("plain:", one["a"], one["b"], one["c"]);

const other = (await exact.get(path)).fields;
console.log("exact:", other["a"], other["b"], other["c"]);

// What was read exactly is written back as it was: d is still a double.
await exact.set(path, other);
console.log("as it was:", typeof (await exact.get(path)).fields["d"] === "number");

await plain.delete(path);
plain.close();
exact.close();
