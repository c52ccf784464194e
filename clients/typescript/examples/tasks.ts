/**
 * Tasks: written together, changed, read page by page, counted, deleted.
 *
 * CROSSFADE_TARGET says where the sidecar is (127.0.0.1:7600 without it).
 */

import { randomUUID } from "node:crypto";

import {
  AlreadyExistsError,
  arrayUnion,
  Crossfade,
  increment,
  Query,
  SERVER_TIMESTAMP,
  type Snapshot,
} from "crossfade-client";

interface Task {
  status: string;
  response_count: number;
}

const crossfade = new Crossfade(process.env["CROSSFADE_TARGET"] ?? "127.0.0.1:7600", { timeout: 10_000 });
const run = `example-${randomUUID()}`;
const paths = [1, 2, 3].map((number) => `tasks/${run}-${number}`);
const first = paths[0]!;

const batch = crossfade.batch(); // all or none
for (const path of paths) {
  batch.create(path, { user_id: run, status: "pending", created_at: SERVER_TIMESTAMP, response_count: 0 });
}
await batch.commit();

try {
  await crossfade.create(first, { status: "stolen" });
} catch (error) {
  if (!(error instanceof AlreadyExistsError)) {
    throw error;
  }
  console.log("nobody else can create it");
}

await crossfade.update(first, {
  status: "processing",
  response_count: increment(1),
  miner_responses: arrayUnion({ miner_uid: 7 }),
});
const { fields } = await crossfade.get<Task>(first);
console.log(fields.status, fields.response_count);

const mine = new Query("tasks").where("user_id", "==", run);
let last: Snapshot<Task> | undefined;
for (let number = 1; ; number += 1) {
  const page: Snapshot<Task>[] = [];
  const query = mine.limit(2);
  for await (const task of crossfade.query<Task>(last ? query.startAfter(last) : query)) {
    page.push(task);
  }
  if (page.length > 0) {
    console.log(`page ${number}: ${page.length}`);
  }
  if (page.length < 2) {
    break;
  }
  last = page.at(-1);
}
console.log("counted", await crossfade.count(mine));

for (const path of paths) {
  await crossfade.delete(path);
}
console.log("left", await crossfade.find(first));
crossfade.close();
