// The numbers that an operator looks at first.

import { h } from "./dom.js";
import { count, many, seconds, share } from "./format.js";

const BAD = ["wrong", "stale", "missing", "extra"];

export function verdictSums(state, points) {
  const now = { compared: 0, bad: 0 };
  for (const each of state.stand.status.verdicts) {
    if (each.verdict === "error") continue;
    now.compared += each.count;
    if (BAD.includes(each.verdict)) now.bad += each.count;
  }
  const recent = { match: 0, behind: 0, bad: 0, error: 0 };
  for (const point of points) {
    for (const [verdict, n] of Object.entries(point.verdicts[""] ?? {})) {
      recent[BAD.includes(verdict) ? "bad" : verdict] += n;
    }
  }
  return { ...now, recent };
}

export function tiles(state, points) {
  const { status, groups } = state.stand;
  const known = !status.backlog_unknown;
  const sum = (field) => groups.reduce((all, group) => all + group[field], 0);
  const [pending, dead, loses] = ["pending", "dead_letters", "rollback_loses"].map(sum);
  const oldest = Math.max(status.oldest_pending_seconds, groups.length > 1 ? state.drift?.oldest_pending_seconds ?? 0 : 0);
  const sums = verdictSums(state, points);
  const last = state.latency?.[""];
  const reads = last ? last.firestore[0] + last.postgresql[0] : 0;
  const answered = status.reads_by_store;
  const all = (answered.firestore ?? 0) + (answered.postgresql ?? 0);
  return h("section", { key: "tiles", class: "tiles", "aria-label": "At a glance" },
    tile("Pending", known ? count(pending) : "–",
      known ? (pending ? `the oldest for ${seconds(oldest)}` : "the mirror is up to date") : "not known",
      known && pending && oldest > 2 ? "wait" : ""),
    tile("Dead letters", known ? count(dead) : "–",
      dead ? "look at them first" : "nothing was given up", dead ? "bad" : ""),
    tile("Differences", count(sums.bad), `of ${many(sums.compared, "comparison")} (${share(sums.bad, sums.compared)})`,
      sums.bad ? "bad" : ""),
    tile("PostgreSQL answers", share(answered.postgresql ?? 0, all), `of ${many(all, "read")} since the start`),
    tile("Store reads", `${rate(reads / 60)}/s`, "of both stores, shadows too"),
    tile("Lost by a rollback", known ? count(loses) : "–",
      known ? `${count(status.forced_rollback_loses)} by force` : "not known", loses ? "bad" : ""),
    tile("Fallback reads", count(status.fallback_reads), `${count(status.shadow_dropped)} shadow reads shed`,
      status.fallback_reads ? "wait" : ""));
}

const rate = (value) => (value >= 100 ? count(Math.round(value)) : value.toFixed(1));

function tile(name, value, note, tone = "") {
  return h("div", { key: name, class: `tile ${tone}` },
    h("p", { class: "tile-name" }, name), h("p", { class: "tile-value" }, value), h("p", { class: "tile-note" }, note));
}

export { BAD };
