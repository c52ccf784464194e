// The dialogs that change something: each shows first what would happen.

import { Refused, ask } from "./api.js";
import { open, who } from "./dialog.js";
import { h } from "./dom.js";
import { collectionName, many, percent, stageName, storeName } from "./format.js";
import { differences } from "./lists.js";
import { badge, button, checkList } from "./marks.js";
import { STAGES } from "./stages.js";

const text = (form, name) => String(form.get(name) ?? "").trim();

// --- stages

export function changeStage(group, target, done) {
  let wanted = target ?? STAGES[STAGES.indexOf(group.stage) - 1] ?? group.next;
  let answer = null;
  let force = false;

  async function look() {
    const asked = wanted;
    answer = null;
    dialog.problem = "";
    dialog.draw();
    try {
      const found = await ask("stages/set", "POST", { stage: asked, group: group.group, dry_run: true });
      if (asked === wanted) answer = found;
    } catch (error) {
      if (asked === wanted) dialog.problem = error.message;
    }
    dialog.draw();
  }

  const dialog = open("Move to another stage", (self) => ({
    body: [
      h("label", { class: "row" }, h("span", {}, "From ", h("strong", {}, stageName(group.stage)), " to"),
        h("select", { name: "stage", disabled: self.busy, onchange: (event) => { wanted = event.target.value; force = false; look(); } },
          STAGES.filter((name) => name !== group.stage).map((name) =>
            h("option", { key: name, value: name, selected: name === wanted }, stageName(name))))),
      h("p", { class: "note" }, crossing(group.stage, wanted)),
      h("div", { class: "looked", "aria-live": "polite" }, looked(answer, self.problem, wanted)),
      answer && !answer.passed && h("label", { class: "tick" },
        h("input", { type: "checkbox", name: "force", checked: force, onchange: (event) => { force = event.target.checked; self.draw(); } }),
        h("span", {}, "Go on against the checks. The audit trail keeps what they said.")),
    ],
    confirm: {
      text: force ? `Force ${stageName(wanted)}` : `Move to ${stageName(wanted)}`,
      danger: force,
      disabled: !answer || (!answer.passed && !force),
      run: async (form) => {
        await ask("stages/set", "POST", { stage: wanted, group: group.group, force, reason: text(form, "reason"), who: who() });
        self.close();
        done(`The stage is ${stageName(wanted)} now.`);
      },
    },
  }));
  look();
}

function looked(answer, problem, wanted) {
  if (problem) return null;
  if (!answer) return h("p", { class: "muted" }, "Asking the checks…");
  if (!answer.checks.length) return h("p", { class: "good-text" }, `Dry run: nothing is asked before ${stageName(wanted)}.`);
  const result = answer.passed ? "all checks pass" : `${many(answer.checks.filter((check) => check.outcome !== "pass").length, "check")} of ${answer.checks.length} would refuse it`;
  return [h("p", { class: answer.passed ? "good-text" : "bad-text" }, `Dry run: ${result}.`), checkList(answer.checks, "What the checks say")];
}

const decides = (stage) => (STAGES.indexOf(stage) < STAGES.indexOf("live") ? "firestore" : "postgresql");

function crossing(from, to) {
  if (to === "complete") return "Firestore is not written any more: from then on a rollback loses what was written since.";
  if (from === "complete") return "From complete there is no way back that keeps what was written since.";
  if (decides(from) !== decides(to)) {
    return `${storeName[decides(to)]} will decide. New writes wait, seconds at most, until nothing is pending; none fails.`;
  }
  return "Who decides does not change; no write waits.";
}

export function rollBack(group, status, done) {
  const crosses = decides(group.stage) === "postgresql";
  let force = false;
  open("Roll back", (self) => ({
    body: [
      h("ul", { class: "plain" },
        crosses && h("li", {}, "The stage becomes ", h("strong", {}, "shadow"), ": Firestore decides again. New writes wait for seconds at most."),
        h("li", {}, "Every read percent becomes 0, and running ramps stop."),
        h("li", {}, "PostgreSQL is still written: the way forward stays open."),
        h("li", {}, "Acknowledged writes that this loses now: ",
          h("strong", { class: group.rollback_loses ? "bad-text" : "good-text" },
            status.backlog_unknown ? "not known" : String(group.rollback_loses)))),
      crosses && status.backlog_unknown && h("label", { class: "tick" },
        h("input", { type: "checkbox", name: "force", checked: force, onchange: (event) => { force = event.target.checked; self.draw(); } }),
        h("span", {}, `PostgreSQL does not answer: go back without it. What it had not sent on to Firestore is lost (${many(status.forced_rollback_loses, "write")}, as far as is known).`)),
    ],
    confirm: {
      text: "Roll back", danger: true,
      run: async (form) => {
        await ask("stages/rollback", "POST", { group: group.group, force, reason: text(form, "reason") || "rollback", who: who() });
        self.close();
        done("Rolled back: Firestore decides and answers all reads.");
      },
    },
  }));
}

// --- traffic

const STEPS = [0, 1, 5, 25, 50, 100];

// `name`: null asks for it. `group`: of which group the defaults are meant, where no name is.
export function changeTraffic(name, group, state, done) {
  const { groups } = state.stand;
  const known = new Map(state.stand.status.traffic.map((each) => [`${each.group} ${each.collection}`, each]));
  const groupOf = (collection) => groups.find((each) => each.collections.includes(collection))?.group ?? groups[0].group;
  const ramp = (state.ramps?.ramps ?? []).find((each) => each.collection === name && each.status === "running");
  let collection = name ?? "";
  const now = () => {
    const of = collection ? groupOf(collection) : group ?? groups[0].group;
    return known.get(`${of} ${collection}`) ?? known.get(`${of} `);
  };
  const where = () => (collection ? { collection } : { collection, group: group ?? "" });
  let value = now().read_percent;
  let rate = now().shadow_rate;
  let way = "once";
  let answer = null;
  let timer = null;

  function look() {
    answer = null;
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const asked = { ...where(), read_percent: value, shadow_rate: rate, dry_run: true };
      try {
        const found = await ask("traffic", "PUT", asked);
        dialog.problem = "";
        if (asked.collection === collection && asked.read_percent === value) answer = found;
      } catch (error) {
        dialog.problem = error.message;
      }
      dialog.draw();
    }, 200);
    dialog.draw();
  }

  const change = (update) => { update(); look(); };
  const number = (event) => Math.min(100, Math.max(0, Number(event.target.value) || 0));

  const dialog = open(name === null ? "Reads of a collection" : `Reads of ${collectionName(name)}`, (self) => ({
    body: [
      name === null && h("label", { class: "row" }, h("span", {}, "Collection"),
        h("input", { type: "text", name: "collection", required: true, maxlength: "1500", oninput: (event) => change(() => { collection = event.target.value.trim(); }) })),
      h("fieldset", { class: "ways" }, h("legend", { class: "unseen" }, "How"),
        [["once", "At once"], ["ramp", "As a ramp"], ["reset", "As the settings say"]].map(([key, label]) =>
          h("label", { key }, h("input", { type: "radio", name: "way", value: key, checked: way === key, onchange: () => { way = key; self.draw(); } }), h("span", {}, label)))),
      way === "once" && [
        h("label", { class: "row", key: "percent" }, h("span", {}, "Reads that PostgreSQL answers, %"),
          h("span", { class: "slider" },
            h("input", { type: "range", min: "0", max: "100", step: "1", value: String(value), "aria-label": "Percent, by slider", oninput: (event) => change(() => { value = number(event); }) }),
            h("input", { type: "number", name: "percent", min: "0", max: "100", step: "0.01", value: String(value), "aria-label": "Percent", oninput: (event) => change(() => { value = number(event); }) }))),
        h("p", { class: "steps", key: "steps" }, STEPS.map((step) =>
          button(`${step} %`, () => change(() => { value = step; }), { key: step, "aria-pressed": String(step === value), class: "step", disabled: self.busy }))),
        h("label", { class: "row", key: "rate" }, h("span", {}, "Reads that are compared, 0 to 1"),
          h("input", { type: "number", min: "0", max: "1", step: "0.01", value: String(rate), oninput: (event) => change(() => { rate = Math.min(1, Math.max(0, Number(event.target.value) || 0)); }) }))],
      way === "ramp" && [
        h("p", { class: "note", key: "note" }, "It begins at 0 and goes a step on whenever all figures allow; one that fails takes it back by itself."),
        h("label", { class: "row", key: "ramp-steps" }, h("span", {}, "Steps, %"), h("input", { type: "text", name: "steps", value: "1, 5, 25, 50, 100" })),
        h("label", { class: "row", key: "bake" }, h("span", {}, "Each is looked at for, minutes"), h("input", { type: "number", name: "bake", min: "0.1", step: "any", value: "10" }))],
      way === "reset" && h("p", { class: "note" }, "Forgets what was set by command: the settings file is in force again."),
      ramp && h("p", { class: "note bad-text" }, "A ramp is running, and would set its own percent again. ",
        button("Stop the ramp", () => stop(self), { "data-act": "stop-ramp" })),
      h("div", { class: "looked", "aria-live": "polite" }, before(answer, way)),
    ],
    reason: way === "ramp" ? null : "",
    confirm: {
      text: { once: `Set ${percent(value, 2)}`, ramp: "Start the ramp", reset: "Use the settings" }[way],
      disabled: (way === "once" && !answer) || (name === null && !collection),
      run: async (form) => {
        await run(form);
        self.close();
      },
    },
  }));

  async function run(form) {
    const named = collectionName(collection);
    if (way === "ramp") {
      const steps = text(form, "steps").split(/[\s,]+/).filter(Boolean).map(Number);
      if (steps.some(Number.isNaN)) throw new Refused(0, { message: "steps: numbers, with commas between them" });
      await ask("ramps", "POST", { collection, steps, bake_seconds: 60 * Number(form.get("bake")), who: who() });
      done(`The ramp of ${named} has begun.`);
      return;
    }
    const values = way === "reset" ? { reset: true } : { read_percent: value, shadow_rate: rate };
    await ask("traffic", "PUT", { ...where(), ...values, reason: text(form, "reason"), who: who() });
    done(way === "reset" ? `The settings are in force for ${named}.` : `${percent(value, 2)} of the reads of ${named} go to PostgreSQL.`);
  }

  async function stop(self) {
    try {
      await ask("ramps/stop", "POST", { collection, who: who() });
      self.close();
      done(`The ramp of ${collectionName(collection)} is stopped.`);
    } catch (error) {
      self.problem = error.message;
      self.draw();
    }
  }

  look();
}

function before(answer, way) {
  if (way === "reset") return null;
  if (!answer) return h("p", { class: "muted" }, "Looking at the figures…");
  const { before: from, after: to } = answer;
  return [
    way === "once" && h("p", {}, `Dry run: ${percent(from.read_percent, 2)} → `, h("strong", {}, percent(to.read_percent, 2)),
      ` of the reads, ${percent(100 * from.shadow_rate, 2)} → `, h("strong", {}, percent(100 * to.shadow_rate, 2)), " compared."),
    checkList(answer.checks, "What the figures say"),
    answer.checks.some((check) => check.outcome !== "pass") && way === "once" && to.read_percent > from.read_percent &&
      h("p", { class: "note bad-text" }, "Not every figure speaks for more reads there.")];
}

// --- documents

export function retryLetters(which, done) {
  let overwrite = false;
  open(which.all ? "Try all dead letters again" : "Try a dead letter again", (self) => ({
    body: [
      h("p", {}, which.all ? "Every dead letter is tried again." : [h("code", {}, which.path), " is tried again."]),
      (which.all || which.foreign) && h("label", { class: "tick" },
        h("input", { type: "checkbox", checked: overwrite, onchange: (event) => { overwrite = event.target.checked; self.draw(); } }),
        h("span", {}, "Where Firestore holds what nobody here wrote, PostgreSQL's document takes its place.")),
    ],
    naming: false,
    confirm: {
      text: "Try again", danger: overwrite,
      run: async () => {
        const which_ = which.all ? { all: true } : { path: which.path };
        const { retried } = await ask("dead-letters/retry", "POST", { ...which_, overwrite_foreign: overwrite });
        self.close();
        done(`${many(retried, "document is", "documents are")} tried again.`);
      },
    },
  }));
}

const JOB_WORDS = {
  pause: ["Pause", "It stops before its next page, and can go on from there.", "is paused"],
  resume: ["Resume", "It goes on where it stopped, as soon as somebody works on it.", "goes on"],
  cancel: ["Cancel", "It ends for good. What it has done so far stays.", "is cancelled"],
};

export function controlJob(job, action, done) {
  const [word, what, told] = JOB_WORDS[action];
  open(`${word} ${job.kind} ${job.id}`, (self) => ({
    body: h("p", {}, what),
    confirm: {
      text: word, danger: action === "cancel",
      run: async (form) => {
        await ask(`jobs/${job.id}/${action}`, "POST", { reason: text(form, "reason"), who: who() });
        self.close();
        done(`${job.kind} ${job.id} ${told}.`);
      },
    },
  }));
}

export function explain(path) {
  let found = null;
  let name = path;
  const dialog = open("Compare a document", (self) => ({
    body: [
      h("label", { class: "row" }, h("span", {}, "Path, as COLLECTION/ID"),
        h("input", { type: "text", name: "path", value: name, maxlength: "1500", oninput: (event) => { name = event.target.value.trim(); } })),
      h("div", { class: "looked", "aria-live": "polite" }, found && [
        h("p", {}, badge(found.verdict, found.verdict === "match" ? "good" : found.verdict === "behind" ? "wait" : "bad"),
          ` ${found.path}; ${storeName[found.authority]} decides. Firestore ${held(found.firestore)}, PostgreSQL ${held(found.postgresql)}.`),
        found.differences.length > 0 && differences(found.differences)]),
    ],
    cancel: "Close",
    naming: false,
    confirm: { text: "Read both now", run: () => look(self) },
  }));
  async function look(self) {
    found = await ask(`mismatches/explain?name=${encodeURIComponent(name)}`);
    self.busy = false;
    self.draw();
  }
  if (path) look(dialog).catch((error) => { dialog.problem = error.message; dialog.draw(); });
}

const held = (version) => (version?.exists ? "has it" : "has none");

export function compareSchema() {
  let lines = null;
  const dialog = open("Database and mapping", () => ({
    body: h("div", { class: "looked", "aria-live": "polite" },
      lines === null ? !dialog?.problem && h("p", { class: "muted" }, "Comparing…")
        : lines.length ? h("ul", { class: "plain" }, lines.map((line) => h("li", { key: line }, h("code", {}, line))))
          : h("p", { class: "good-text" }, "The database is as the models and the mapping say.")),
    cancel: "Close",
  }));
  ask("drift?schema=true").then((found) => { lines = found.schema_differences; dialog.draw(); })
    .catch((error) => { dialog.problem = error.message; dialog.draw(); });
}
