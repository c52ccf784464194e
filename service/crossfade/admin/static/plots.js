// The cards with plots: both stores' latency, verdicts, and what is pending.

import { legend, plot } from "./chart.js";
import { h } from "./dom.js";
import { axisMs, axisSeconds, count, many, ms, percent, seconds } from "./format.js";
import { card, table, unknown } from "./marks.js";
import { BAD, verdictSums } from "./tiles.js";

// As much time as there is something to show for, in steps: a plot that grows is not read well.
const SPANS = [120, 300, 900];

export function span(points) {
  const held = points.length ? points.at(-1).at - points[0].at : 0;
  return SPANS.find((seconds_) => held <= seconds_) ?? SPANS.at(-1);
}
const QUANTILES = { p50: 2, p95: 3, p99: 4 };

export function latencyCard(state, points, view, width) {
  const names = [...new Set(points.flatMap((point) => Object.keys(point.reads)))].filter(Boolean).sort();
  const chosen = names.includes(view.collection) ? view.collection : "";
  const index = QUANTILES[view.quantile];
  const value = (point, store) => {
    const found = point.reads[chosen]?.[store];
    return found?.[0] ? found[index] : null;
  };
  const times = points.map((point) => point.at);
  const series = [
    { name: "Firestore", kind: "firestore", values: points.map((point) => value(point, "firestore")) },
    { name: "PostgreSQL", kind: "postgresql", values: points.map((point) => value(point, "postgresql")) },
  ];
  const at = view.cursor.latency;
  const shown = at ?? points.length - 1;
  return card("latency", "Latency of both stores", h("span", { class: "controls" },
    h("label", {}, h("span", { class: "unseen" }, "Quantile"),
      h("select", { onchange: (event) => view.set({ quantile: event.target.value }) },
        Object.keys(QUANTILES).map((name) => h("option", { key: name, value: name, selected: name === view.quantile }, name)))),
    h("label", {}, h("span", { class: "unseen" }, "Collection"),
      h("select", { onchange: (event) => view.set({ collection: event.target.value }) },
        ["", ...names].map((name) => h("option", { key: name, value: name, selected: name === chosen }, name || "all collections"))))),
    legend(series.map((each) => ({ ...each, value: ms(each.values[shown] ?? null) })), times[shown]),
    plot({
      width, height: width < 480 ? 220 : 300, times, series, span: span(points), cursor: at, format: axisMs, onCursor: view.point("latency"),
      label: `${view.quantile} of reads over the last minutes: ${series.map((each) => `${each.name} ${ms(each.values.at(-1) ?? null)} now`).join(", ")}. The arrow keys read single points.`,
    }),
    quantiles(state.latency, chosen),
    paired(state.paired?.comparisons ?? [], chosen));
}

// The same reads by both stores: what a difference of quantiles does not say.
function paired(found, chosen) {
  const shown = found.filter((each) => !chosen || each.collection === chosen);
  if (!shown.length) return h("p", { class: "muted paired-note" }, "No read was made by both stores in the last 10 minutes.");
  return [h("h3", { class: "small-title" }, "The same reads by both, last 10 minutes: PostgreSQL minus Firestore"),
    table("Differences of the same reads", [{ title: "Reads" }, { title: "Number", number: true }, { title: "p50", number: true },
      { title: "p95", number: true }, { title: "p99", number: true }, { title: "Slower", number: true }, { title: "Spread" }],
    shown.map((each) => h("tr", { key: `${each.collection} ${each.operation}`, class: "same" },
      h("th", { scope: "row" }, each.collection, " ", h("span", { class: "muted" }, each.operation)),
      h("td", { class: "number" }, count(each.count)),
      ["p50_ms", "p95_ms", "p99_ms"].map((name) => h("td", { key: name, class: `number ${each.difference[name] > 0 ? "bad-text" : "good-text"}` }, signed(each.difference[name]))),
      h("td", { class: "number" }, percent(100 * each.slower)),
      h("td", { class: "picture" }, spread(each.buckets)))), "", "cards")];
}

const signed = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${ms(Math.abs(value))}`;

// Where PostgreSQL is faster to the left, where it is slower to the right.
function spread(buckets) {
  const highest = Math.max(...buckets.map((each) => each.count));
  const wide = Math.min(6, 72 / buckets.length);
  return h("svg", { class: "spread", viewBox: "0 0 72 24", width: 72, height: 24, role: "img",
    "aria-label": `From ${signed(buckets[0].to_ms)} to ${signed(buckets.at(-1).to_ms)}` },
  buckets.map((each, i) => {
    const tall = Math.max(2, (22 * each.count) / highest);
    return h("rect", { key: i, class: each.to_ms > 0 ? "slow" : "fast", x: i * wide, y: 24 - tall, width: Math.max(1, wide - 1), height: tall });
  }));
}

function quantiles(latency, chosen) {
  const last = latency?.[chosen];
  if (!last) return h("p", { class: "empty" }, "No reads in the last minute.");
  const row = (name, kind) => h("tr", { key: kind },
    h("th", { scope: "row" }, h("span", { class: `store ${kind}` }, name)),
    h("td", { class: "number" }, count(last[kind][0])), h("td", { class: "number" }, count(last[kind][1])),
    [2, 3, 4].map((i) => h("td", { class: "number", key: i }, ms(last[kind][i]))));
  const difference = h("tr", { key: "difference", class: "difference" },
    h("th", { scope: "row" }, "PostgreSQL is"), h("td", { class: "nothing" }), h("td", { class: "nothing" }),
    [2, 3, 4].map((i) => {
      const [a, b] = [last.firestore[i], last.postgresql[i]];
      if (a === null || b === null) return h("td", { key: i, class: "number" }, "–");
      return h("td", { key: i, class: `number ${b > a ? "slower" : "faster"}` },
        ms(Math.abs(b - a)), h("span", { class: "way" }, b > a ? " slower" : " faster"));
    }));
  return table("Reads of the last minute",
    [{ title: "Last minute" }, { title: "Reads", number: true }, { title: "Failed", number: true },
      { title: "p50", number: true }, { title: "p95", number: true }, { title: "p99", number: true }],
    [row("Firestore", "firestore"), row("PostgreSQL", "postgresql"), difference], "", "cards");
}

export function verdictsCard(state, points, view, width) {
  const times = points.map((point) => point.at);
  const of = (wanted) => points.map((point) =>
    wanted.reduce((sum, verdict) => sum + (point.verdicts[""]?.[verdict] ?? 0), 0));
  const series = [
    { name: "match", kind: "match", values: of(["match"]) },
    { name: "behind", kind: "behind", values: of(["behind"]) },
    { name: "differ", kind: "differ", values: of(BAD), seen: true },
    { name: "not read", kind: "failed", values: of(["error"]), seen: true },
  ];
  const at = view.cursor.verdicts;
  const { recent } = verdictSums(state, points);
  const sums = { match: recent.match, behind: recent.behind, differ: recent.bad, failed: recent.error };
  return card("verdicts", "Comparisons", null,
    legend(series.map((each) => ({ ...each, value: count(at === null ? sums[each.kind] : each.values[at]) })), times[at]),
    plot({
      width, height: 170, times, series, span: span(points), cursor: at, format: count, stacked: true, onCursor: view.point("verdicts"),
      label: `Verdicts of shadow reads over the last minutes: ${count(sums.match)} match, ${count(sums.behind)} behind, ${count(sums.differ)} differ, ${count(sums.failed)} could not be read.`,
    }));
}

// Below the plots: numbers that have no course worth a plot.
function keepingUp(found) {
  if (!found) return null;
  const lag = found.count
    ? `p50 ${ms(found.p50_ms)}, p99 ${ms(found.p99_ms)}, of ${many(found.count, "put")}` : "nothing was put";
  return h("dl", { class: "facts keeping" },
    h("dt", {}, "From commit to mirror, last minute"), h("dd", {}, lag),
    h("dt", {}, "Recopied, last minute"), h("dd", {}, many(found.recopied, "document")),
    found.budget_left !== null && [h("dt", { key: "b" }, "Budget for comparing"),
      h("dd", { key: "c", class: found.budget_left > 0 ? "" : "bad-text" },
        found.budget_left > 0 ? `${many(found.budget_left, "read")} left today` : "used up for today")]);
}

export function backlogCard(state, points, view, width) {
  if (state.stand.status.backlog_unknown) return card("backlog", "Pending, and its age", null, unknown(state.stand.status.backlog_unknown));
  const times = points.map((point) => point.at);
  const ages = [{ name: "age of the oldest", kind: "age", values: points.map((point) => point.oldest_seconds) }];
  const waiting = [{ name: "documents pending", kind: "pending", values: points.map((point) => point.pending) }];
  const at = view.cursor.backlog;
  const shown = at ?? points.length - 1;
  const pendingNow = state.stand.groups.reduce((all, group) => all + group.pending, 0);
  const oldestNow = state.stand.groups.length > 1 ? ages[0].values.at(-1) : state.stand.status.oldest_pending_seconds;
  // Ticks are round numbers of whatever unit the axis is in.
  const highest = Math.max(0, ...ages[0].values);
  const unit = highest >= 7200 ? 3600 : highest >= 120 ? 60 : 1;
  const scaled = [{ ...ages[0], values: ages[0].values.map((value) => (value === null ? null : value / unit)) }];
  const small = { width, height: 104, times, span: span(points), cursor: at, onCursor: view.point("backlog") };
  const now = at === null;
  return card("backlog", "Pending, and its age", null,
    legend([{ ...waiting[0], value: count(now ? pendingNow : waiting[0].values[shown]) }], times[at]),
    plot({ ...small, series: waiting, format: count, whole: true, label: `Documents pending over the last minutes: ${count(pendingNow)} now.` }),
    legend([{ ...ages[0], value: seconds(now ? oldestNow : ages[0].values[shown]) }], times[at]),
    plot({ ...small, series: scaled, format: (value) => axisSeconds(value * unit), label: `Age of the oldest pending document: ${seconds(oldestNow)} now.` }),
    keepingUp(state.keeping_up));
}
