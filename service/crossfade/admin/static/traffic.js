// Which share of each collection's reads PostgreSQL answers, and the ramps that move it.

import { h } from "./dom.js";
import { collectionName, count, ms, percent, seconds, share } from "./format.js";
import { badge, button, card, table } from "./marks.js";
import { BAD } from "./tiles.js";

export function trafficCard(state, act) {
  const { status } = state.stand;
  const ramps = new Map((state.ramps?.ramps ?? []).map((ramp) => [ramp.collection, ramp]));
  const set = new Map(status.traffic.map((each) => [each.collection, each]));
  const { groups } = state.stand;
  const defaults = new Map(status.traffic.filter((each) => !each.collection).map((each) => [each.group, each]));
  const groupOf = (name) => groups.find((each) => each.collections.includes(name))?.group ?? groups[0].group;
  const seen = Object.keys(state.latency ?? {}).filter(Boolean);
  const names = [...new Set([...[...set.keys()].filter(Boolean), ...ramps.keys(), ...seen])].filter(Boolean).sort();
  const columns = [
    { title: "Collection" }, { title: "Sent to PostgreSQL" }, { title: "In effect", number: true },
    { title: "Compared", number: true }, { title: "Differences", number: true },
    { title: "p99, last minute", number: true }, { title: "Ramp" }, { title: "" },
  ];
  return card("traffic", "Reads, by collection",
    button("Other collection…", () => act.traffic(null), { class: "quiet", "data-act": "traffic-other" }),
    table("Reads by collection", columns,
      [
        ...names.map((name) => row(name, name, set.get(name) ?? defaults.get(groupOf(name)), set.has(name), ramps.get(name), state, act)),
        ...[...defaults.values()].map((each) =>
          row("", groups.length > 1 ? `all others of ${each.group}` : collectionName(""), each, true, ramps.get(""), state, act))],
      "No collection has been read yet."));
}

function row(name, title, traffic, own, ramp, state, act) {
  const verdicts = state.stand.status.verdicts.filter((each) => each.collection === name && each.verdict !== "error");
  const compared = verdicts.reduce((sum, each) => sum + each.count, 0);
  const bad = verdicts.filter((each) => BAD.includes(each.verdict)).reduce((sum, each) => sum + each.count, 0);
  const last = state.latency?.[name];
  const really = state.stand.status.effective_percent[name];
  return h("tr", { key: name || `* ${traffic.group}` },
    h("th", { scope: "row" }, title, !own && name && h("span", { class: "muted" }, " by default")),
    h("td", {}, h("span", { class: "meter" },
      h("span", { class: "meter-bar", "aria-hidden": "true" },
        h("span", { class: "meter-fill", style: { width: `${traffic.read_percent}%` } })),
      h("strong", {}, percent(traffic.read_percent, 2)))),
    h("td", { class: "number" }, name ? percent(really) : ""),
    h("td", { class: "number" }, percent(100 * traffic.shadow_rate, 2)),
    h("td", { class: `number ${bad ? "bad-text" : ""}` },
      name && compared ? `${count(bad)} (${share(bad, compared)})` : ""),
    h("td", { class: "number pair" }, name && last && [
      h("span", { class: "store firestore" }, h("span", { class: "unseen" }, "Firestore "), ms(last.firestore[4])),
      " ",
      h("span", { class: "store postgresql" }, h("span", { class: "unseen" }, "PostgreSQL "), ms(last.postgresql[4]))]),
    h("td", {}, ramp && [badge(ramp.status, ramp.status === "running" ? "busy" : ""),
      h("span", { class: "muted ramp-note", title: ramp.reason },
        `at ${percent(ramp.percent, 2)} for ${seconds((Date.now() - Date.parse(ramp.since)) / 1000)}: ${ramp.reason}`)]),
    h("td", { class: "actions" },
      button("Change…", () => act.traffic(name, traffic.group), {
        "aria-label": `Change the reads of ${title}`, "data-act": `traffic-${name || traffic.group}`,
      })));
}
