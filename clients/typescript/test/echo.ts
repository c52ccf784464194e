/**
 * Reads the document at the first path and writes it to the second, in either way of numbers.
 * The Python client wrote the one and compares the other.
 */

import { Crossfade } from "../src/index.js";

const [from, to] = process.argv.slice(2) as [string, string];
const crossfade = new Crossfade(process.env["CROSSFADE_TARGET"]!, { timeout: 20_000, numbers: "exact" });
await crossfade.set(to, (await crossfade.get(from)).fields);
crossfade.close();
