// Where each group of collections stands, and whether it is safe to go on.

import { h } from "./dom.js";
import { many, stageName, storeName } from "./format.js";
import { button, checkList, icon } from "./marks.js";
import { safety } from "./verdict.js";

const STAGES = ["off", "dual_write", "shadow", "live", "ramp_down", "complete"];
const WHAT = {
  off: "Firestore alone",
  dual_write: "both are written",
  shadow: "reads are compared",
  live: "PostgreSQL decides",
  ramp_down: "Firestore follows",
  complete: "PostgreSQL alone",
};

export function stagesCard(state, cut, act) {
  return h("div", { key: "stages", class: "stages" },
    state.stand.groups.map((group) => groupCard(group, state, cut, act)));
}

function groupCard(group, state, cut, act) {
  const now = safety(group, state, cut);
  const id = `group-${group.group}`;
  const { status } = state.stand;
  const several = state.stand.groups.length > 1;
  return h("section", { key: id, class: `card hero ${now.tone}`, "aria-labelledby": `${id}-title` },
    h("div", { class: "hero-top" },
      h("span", { class: "hero-icon" }, icon(now.tone)),
      h("div", { class: "hero-words" },
        several && h("p", { class: "group" }, `Group ${group.group}: ${group.collections.join(", ") || "all other collections"}`),
        h("h2", { id: `${id}-title`, class: "verdict" }, now.title),
        h("p", { class: "why" }, now.reason)),
      h("div", { class: "hero-actions" },
        group.next && button(`Go on to ${stageName(group.next)}…`, () => act.stage(group, group.next), { class: now.tone === "good" ? "primary" : "", "data-act": "next" }),
        button("Other stage…", () => act.stage(group, null), { "data-act": "stage" }),
        !["off", "complete"].includes(group.stage) &&
          button("Roll back…", () => act.rollback(group), { class: "danger", "data-act": "rollback" }))),
    track(group),
    h("p", { class: "decides" },
      h("span", {}, "Decides: ", h("strong", { class: `store ${group.authority}` }, storeName[group.authority])),
      h("span", {}, "Epoch ", h("strong", {}, String(group.epoch))),
      h("span", {}, "A rollback now would lose ",
        h("strong", { class: group.rollback_loses ? "bad-text" : "good-text" },
          status.backlog_unknown ? "an unknown number of writes" : many(group.rollback_loses, "write")),
        !several && status.forced_rollback_loses > 0 && ` (${many(status.forced_rollback_loses, "write")} by force)`)),
    group.next && group.checks.length > 0 && [
      h("h3", { class: "small-title" }, `Before ${stageName(group.next)}`),
      checkList(worstFirst(group.checks), `What the checks say about ${stageName(group.next)}`)]);
}

function track(group) {
  const at = STAGES.indexOf(group.stage);
  return h("ol", { class: "track", "aria-label": "Stages" },
    STAGES.map((name, index) =>
      h("li", {
        key: name,
        class: index < at ? "done" : index === at ? "now" : "",
        "aria-current": index === at ? "step" : undefined,
      },
        h("span", { class: "knob", "aria-hidden": "true" }),
        h("span", { class: "step-name" }, stageName(name)),
        h("span", { class: "step-what" }, WHAT[name]))));
}

const WORST = ["fail", "hold", "pass"];

const worstFirst = (checks) => [...checks].sort((a, b) => WORST.indexOf(a.outcome) - WORST.indexOf(b.outcome));

export { STAGES };
