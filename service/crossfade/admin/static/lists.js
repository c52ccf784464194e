// What is not in order, and what was done: mismatches, dead letters, drift, the audit trail.

import { h } from "./dom.js";
import { ago, collectionName, count, many, moment, storeName } from "./format.js";
import { badge, button, card, checkList, table, unknown } from "./marks.js";

export function mismatchesCard(state, act) {
  const found = state.mismatches?.mismatches;
  return card("mismatches", "Differences between the stores",
    button("Compare a document…", () => act.explain(""), { class: "quiet", "data-act": "explain" }),
    !found ? unknown(state.unknown.mismatches)
      : !found.length ? h("p", { class: "empty good-text" }, "No shadow read found a difference.")
        : h("ul", { class: "folds" }, found.map((each) => mismatch(each, act))));
}

function mismatch(each, act) {
  return h("li", { key: `${each.collection} ${each.signature}` },
    h("details", { class: "fold" },
      h("summary", {},
        badge(each.verdict, "bad"),
        h("span", { class: "fold-title" }, h("strong", {}, each.collection), " ",
          h("span", { class: "fields" }, each.fields.join(", ") || "the whole")),
        h("span", { class: "fold-count" }, `${count(each.count)} ×`),
        h("span", { class: "muted fold-when" }, ago(each.latest.at))),
      h("div", { class: "fold-body" },
        each.given_up && h("p", { class: "bad-text" }, "Repaired so often in a row that it is only reported now."),
        h("p", { class: "muted" },
          `Latest: ${each.latest.path}, ${each.operation}, stage ${each.latest.stage}, epoch ${each.latest.epoch}; ` +
          `${storeName[each.latest.authority] ?? each.latest.authority} decides. First ${moment(each.first.at)}.`,
          each.latest.trace_id && ` Trace ${each.latest.trace_id}.`),
        differences(each.latest.differences),
        button("Compare it now", () => act.explain(each.path), { "aria-label": `Compare ${each.path} now` }))));
}

export function differences(found) {
  return table("Differences", [{ title: "Field" }, { title: "How" }, { title: "Authority" }, { title: "Mirror" }],
    found.map((each, index) => h("tr", { key: index },
      h("th", { scope: "row" }, h("code", {}, each.field || "(the whole)")),
      h("td", {}, each.kind), h("td", {}, value(each.authority)), h("td", {}, value(each.mirror)))),
    "Nothing differs.", "cards");
}

// Redacted as the API gives it: a type, and a hash that is equal where values are.
function value(shown) {
  if (!shown) return h("span", { class: "muted" }, "none");
  return [h("span", { class: "muted" }, `${shown.type}${shown.length === null ? "" : ` of ${count(shown.length)}`} `),
    h("code", {}, shown.value || (shown.hash ? `#${shown.hash}` : ""))];
}

export function lettersCard(state, act) {
  const found = state.dead_letters?.letters;
  return card("letters", "Dead letters",
    found?.length > 0 && button("Try all again…", () => act.retry({ all: true }), { class: "quiet", "data-act": "retry-all" }),
    !found ? unknown(state.unknown.dead_letters)
      : [table("Dead letters", [{ title: "Document" }, { title: "Why pending" }, { title: "Why it failed" },
        { title: "Attempts", number: true }, { title: "Since" }, { title: "" }],
      found.map((each) => h("tr", { key: each.path },
        h("th", { scope: "row" }, h("code", {}, each.path), each.foreign && [" ", badge("foreign", "bad")]),
        h("td", {}, each.reason), h("td", {}, each.cause), h("td", { class: "number" }, count(each.attempts)),
        h("td", {}, ago(each.since)),
        h("td", { class: "actions" }, button("Try again…", () => act.retry({ path: each.path, foreign: each.foreign }),
          { "aria-label": `Try ${each.path} again` })))),
      "Every document could be copied.", "cards"),
      state.dead_letters.more && h("p", { class: "muted" }, "There are more.")]);
}

export function driftCard(state, act) {
  const { drift } = state;
  if (!drift) return card("drift", "Beside the plan", null, unknown(state.unknown.drift));
  const followed = Object.entries(drift.followed);
  const kept = drift.misfits.filter((each) => each.cause !== "null");
  return card("drift", "Beside the plan",
    button("Compare the schema", () => act.schema(), { class: "quiet", "data-act": "schema" }),
    h("dl", { class: "facts" },
      h("dt", {}, "Written around the sidecars"),
      h("dd", {}, followed.length ? followed.map(([name, n]) => `${collectionName(name)} ${count(n)}`).join(", ")
        : drift.follower_lag_seconds === null ? "not followed" : "nothing found"),
      h("dt", {}, "Values beside their columns"),
      h("dd", {}, kept.length ? many(kept.reduce((sum, each) => sum + each.count, 0), "value") + " since the start" : "none since the start")),
    kept.length > 0 && table("Values beside their columns", [{ title: "Field" }, { title: "Cause" }, { title: "Values", number: true }],
      kept.map((each) => h("tr", { key: `${each.collection}.${each.field} ${each.cause}` },
        h("th", { scope: "row" }, h("code", {}, `${each.collection}.${each.field}`)),
        h("td", {}, each.cause), h("td", { class: "number" }, count(each.count)))), ""));
}

export function auditCard(state) {
  const found = state.audit?.entries;
  return card("audit", "Who changed what", null,
    !found ? unknown(state.unknown.audit)
      : !found.length ? h("p", { class: "empty" }, "Nothing was changed yet.")
        : h("ol", { class: "trail" }, found.map((each) => h("li", { key: `${each.at}${each.action}${each.collection}` },
          h("p", { class: "trail-what" }, badge(each.action, each.action),
            each.action !== "stage" && h("strong", {}, ` ${collectionName(each.collection)}`),
            h("span", {}, ` ${each.before} → ${each.after}`)),
          h("p", { class: "muted" }, `${each.who}, ${moment(each.at)}${each.reason ? `: ${each.reason}` : ""}`),
          each.checks.some((check) => check.outcome !== "pass") && h("details", { class: "against" },
            h("summary", {}, "against checks"),
            checkList(each.checks.filter((check) => check.outcome !== "pass"), "What the checks said"))))));
}
