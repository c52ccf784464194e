// The sentence at the top: may the migration go on? From the state alone, so that it can be read.

import { many, stageName } from "./format.js";

// {tone: good | wait | bad | busy, title, reason}
export function safety(group, state, cut) {
  if (cut) return say("wait", "Not known now", "This is the last known state.");
  const { status } = state.stand;
  if (group.authority === "none") {
    return say("busy", "A change of authority is under way", "Writes wait for it; none fails.");
  }
  if (status.backlog_unknown) {
    return say("bad", "PostgreSQL does not answer", status.backlog_unknown);
  }
  if (group.next === null) {
    return say("good", "The migration is complete", "PostgreSQL decides; Firestore is not written any more.");
  }
  const next = stageName(group.next);
  const failed = group.checks.filter((check) => check.outcome === "fail");
  const held = group.checks.filter((check) => check.outcome === "hold");
  if (group.checks_unknown) return say("wait", `Not known whether ${next} may come`, group.checks_unknown);
  if (failed.length) {
    return say("bad", `Do not go on to ${next}`, `${many(failed.length, "check fails", "checks fail")}: ${names(failed)}.`);
  }
  if (held.length) {
    return say("wait", `Not yet: ${next} has to wait`, `${many(held.length, "check does", "checks do")} not know yet: ${names(held)}.`);
  }
  if (!group.checks.length) return say("good", `Nothing stands against ${next}`, "This step has no checks.");
  return say("good", `Safe to go on to ${next}`, `All ${group.checks.length} checks pass.`);
}

const say = (tone, title, reason) => ({ tone, title, reason });

const names = (checks) => checks.map((check) => check.name).join(", ");
