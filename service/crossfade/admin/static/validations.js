// What comparing both stores whole has found, and whether a change of stage may go by it.

import { h } from "./dom.js";
import { ago, count, many, moment, seconds } from "./format.js";
import { badge, card, table, unknown } from "./marks.js";

const MODES = { full: "by content", quick: "by version", since: "what was written lately" };
const COLUMNS = ["firestore", "postgresql", "match", "wrong", "stale", "missing", "extra", "behind"];
const TITLES = { firestore: "Firestore", postgresql: "PostgreSQL" };
const BAD = ["wrong", "stale", "missing", "extra"];

export function validationsCard(state) {
  const found = state.validations?.validations;
  const grouped = (state.stand?.groups ?? []).length > 1;
  return card("validations", "Validations", null,
    !found ? unknown(state.unknown.validations)
      : !found.length ? h("p", { class: "empty" }, "None so far. ", h("code", {}, "crossfade validate"), " compares every document.")
        : h("ul", { class: "folds" }, found.map((each) => validation(each, grouped))));
}

function validation(each, grouped) {
  const name = `Validation ${each.job}`;
  const differing = each.by_collection.reduce((sum, one) => sum + BAD.reduce((all, word) => all + one[word], 0), 0);
  const documents = each.by_collection.reduce((sum, one) => sum + one.compared, 0);
  return h("li", { key: each.job },
    h("details", { class: "fold" },
      h("summary", {},
        each.equal ? badge("equal", "good") : badge("different", "bad"),
        h("span", { class: "fold-title" }, h("strong", {}, name), " ",
          h("span", { class: "fields" }, [each.collections.join(", ") || "everything", MODES[each.mode], grouped && `group ${each.group}`].filter(Boolean).join(", "))),
        each.certificate && badge("certificate", "good"),
        h("span", { class: "fold-count" }, many(documents, "document")),
        h("span", { class: "muted fold-when" }, ago(each.ended_at))),
      h("div", { class: "fold-body" },
        h("p", { class: each.certificate ? "good-text" : "muted" },
          each.certificate ? "The change to stage live goes by this one." : `It is no certificate: it ${each.why_not}.`),
        h("p", { class: "muted" }, [
          `Ended ${moment(each.ended_at)} after ${seconds(each.seconds)}`,
          differing ? `${many(differing, "document differs", "documents differ")}` : "no document differs",
          each.moving ? `${count(each.moving)} never stood still` : "",
          each.dead_letters ? many(each.dead_letters, "dead letter") : "",
          each.breaches ? `${many(each.breaches, "document violates", "documents violate")} integrity` : "",
        ].filter(Boolean).join("; "), "."),
        table(`${name}, by collection`,
          [{ title: "Collection" }, ...COLUMNS.map((word) => ({ title: TITLES[word] ?? word, number: true }))],
          each.by_collection.map((one) => h("tr", { key: one.collection },
            h("th", { scope: "row" }, one.collection),
            COLUMNS.map((word) => h("td", { key: word, "data-word": TITLES[word] ?? word, class: BAD.includes(word) && one[word] ? "number bad-text" : "number" }, count(one[word]))))),
          "It met no document."))));
}
