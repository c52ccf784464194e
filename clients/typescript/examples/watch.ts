/**
 * A query is watched while somebody else writes.
 *
 * CROSSFADE_TARGET says where the sidecar is (127.0.0.1:7600 without it).
 */

import { randomUUID } from "node:crypto";

import { Crossfade, Query } from "crossfade-client";

const crossfade = new Crossfade(process.env["CROSSFADE_TARGET"] ?? "127.0.0.1:7600", { timeout: 10_000 });
const room = `room-${randomUUID()}`;
const [first, second] = [`messages/${room}-1`, `messages/${room}-2`];

await crossfade.set(first, { room, text: "hello" });
let moment = 0;
for await (const { changed, removed } of crossfade.watch(new Query("messages").where("room", "==", room))) {
  moment += 1;
  console.log(
    changed.map(({ fields }) => fields["text"]),
    removed.length,
  );
  if (moment === 1) {
    await crossfade.set(second, { room, text: "anybody?" });
  } else if (moment === 2) {
    await crossfade.delete(first);
  } else {
    break;
  }
}
await crossfade.delete(second);
crossfade.close();
