// Small things that many parts show: outcomes, badges, cards, icons.

import { h } from "./dom.js";

const PATHS = {
  good: "M3.5 8.5l3 3 6-7",
  pass: "M3.5 8.5l3 3 6-7",
  wait: "M8 4v4.5l3 1.8",
  hold: "M8 4v4.5l3 1.8",
  bad: "M4.5 4.5l7 7m0-7l-7 7",
  fail: "M4.5 4.5l7 7m0-7l-7 7",
  busy: "M3 8h2m3 0h0.1m3 0h2",
};
const WORDS = { pass: "passes", hold: "holds", fail: "fails" };

export function icon(tone) {
  return h("svg", { class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true" },
    h("path", { d: PATHS[tone], fill: "none", stroke: "currentColor", "stroke-width": "2", "stroke-linecap": "round", "stroke-linejoin": "round" }));
}

export const tone = (outcome) => ({ pass: "good", hold: "wait", fail: "bad" })[outcome] ?? "wait";

export function checkList(checks, label) {
  return h("ul", { class: "checks", "aria-label": label },
    checks.map((check) =>
      h("li", { key: check.name, class: `check ${tone(check.outcome)}` },
        h("span", { class: "dot" }, icon(check.outcome)),
        h("span", { class: "check-text" },
          h("strong", {}, check.name),
          h("span", { class: "unseen" }, ` ${WORDS[check.outcome]}: `),
          h("span", { class: "why" }, check.reason)))));
}

export function card(id, title, head, ...body) {
  return h("section", { key: id, id, class: "card", "aria-labelledby": `${id}-title` },
    h("div", { class: "card-head" }, h("h2", { id: `${id}-title` }, title), head),
    ...body);
}

// `kind` "cards": on a phone each row is a small card, whose cells say their column.
export function table(label, columns, rows, empty, kind = "") {
  if (!rows.length) return h("p", { class: "empty" }, empty);
  for (const row of rows) {
    row.children.forEach((cell, index) => {
      if (cell.tag === "td" && columns[index].title) cell.props["data-name"] ??= columns[index].title.toLowerCase();
    });
  }
  // Scrolls by itself, so it has to be reachable without a mouse.
  return h("div", { class: `scroll ${kind}`, tabindex: "0", role: "region", "aria-label": label },
    h("table", {},
      h("caption", { class: "unseen" }, label),
      h("thead", {}, h("tr", {}, columns.map((column) =>
        h("th", { scope: "col", class: column.number ? "number" : undefined }, column.title)))),
      h("tbody", {}, rows)));
}

export const unknown = (reason) => h("p", { class: "empty" }, `Not known now: ${reason}`);

export const button = (text, onclick, props = {}) =>
  h("button", { type: "button", onclick, ...props }, text);

export const badge = (text, kind = "") => h("span", { class: `badge ${kind}` }, text);
