/** violet.v1, against the real sidecar at CROSSFADE_TARGET. */

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { after, test } from "node:test";

import { AlreadyExistsError, InvalidArgumentError, NotFoundError, Violet } from "../src/index.js";

const target = process.env["CROSSFADE_TARGET"];
if (!target) {
  throw new Error("CROSSFADE_TARGET has to say where the sidecar is");
}
const violet = new Violet(target, { timeout: 20_000 });
after(() => violet.close());

const fresh = () => randomBytes(6).toString("hex");

test("a task from its creation to a miner's response", async () => {
  const taskId = fresh();
  const uid = Number.parseInt(fresh().slice(0, 6), 16);
  const fields = violet.fieldsFor({ task_type: "tts", required_miner_count: 1 });
  const made = await violet.tasks.createTask({ taskId, fields });
  assert.equal(violet.fieldsOf<{ status: string }>(made.document).status, "pending");

  const status = { is_serving: true, current_load: 0, max_capacity: 5 };
  await violet.miners.upsertMinerStatus({ uid: BigInt(uid), fields: violet.fieldsFor(status) });
  const assigned = await violet.tasks.assignTask({ taskId, minerUids: [BigInt(uid)] });
  assert.deepStrictEqual(assigned.assigned, [BigInt(uid)]);
  const response = violet.fieldsFor({ output: "text" });
  const answered = await violet.tasks.addMinerResponse({ taskId, minerUid: BigInt(uid), response });
  assert.equal(answered.outcome, "accepted");

  const found = await violet.tasks.getTask({ id: taskId });
  assert.equal(violet.fieldsOf<{ task_id: string }>(found.document).task_id, taskId);
  const listed = await violet.tasks.listTasks({ minerUid: BigInt(uid) });
  assert.equal(listed.documents.length, 1);
});

test("errors are the client's own", async () => {
  await assert.rejects(violet.tasks.getTask({ id: fresh() }), NotFoundError);
  await assert.rejects(violet.users.createUser(), InvalidArgumentError);
  assert.throws(() => violet.fieldsOf(undefined), /no document/);
});

test("a request_id makes a repeated call one", async () => {
  const email = `${fresh()}@example.com`;
  const request = { email, role: "client", requestId: fresh() };
  const first = await violet.users.createUser(request);
  const again = await violet.users.createUser(request);
  assert.equal(again.replayed, true);
  assert.equal(again.userId, first.userId);
  await assert.rejects(violet.users.createUser({ email, role: "client" }), AlreadyExistsError);
});

test("content, with what a request leaves out", async () => {
  const voices = await violet.content.listVoices();
  assert.ok(Array.isArray(voices.documents));
});
