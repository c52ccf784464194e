// Work over all documents: how far it is, when it will be done, and stopping it.

import { h } from "./dom.js";
import { ago, count, many, percent, seconds } from "./format.js";
import { badge, button, card, unknown } from "./marks.js";

const WINDOW_MS = 60_000;
const TONES = { running: "busy", done: "good", failed: "bad", paused: "wait" };
// Documents done, by job, as they were seen: what the last minute did says when the rest will be done.
const seen = new Map();

export function note(jobs, now = Date.now()) {
  for (const job of jobs) {
    const held = (seen.get(job.id) ?? []).filter((each) => now - each.at < WINDOW_MS);
    seen.set(job.id, [...held, { at: now, documents: job.documents }]);
  }
}

function speed(job) {
  const held = seen.get(job.id) ?? [];
  if (held.length < 2) return null;
  const passed = (held.at(-1).at - held[0].at) / 1000;
  return passed ? (held.at(-1).documents - held[0].documents) / passed : null;
}

const total = (numbers) => Object.values(numbers).reduce((sum, each) => sum + each, 0);

export function jobsCard(state, act) {
  const found = state.jobs?.jobs;
  return card("jobs", "Backfill and other jobs", null,
    !found ? unknown(state.unknown.jobs)
      : !found.length ? h("p", { class: "empty" }, "None so far. ", h("code", {}, "crossfade backfill"), " begins one.")
        : h("ul", { class: "jobs" }, found.map((job) => row(job, act))));
}

function row(job, act) {
  const done = job.state === "done" ? 1 : job.estimate ? Math.min(1, job.documents / job.estimate) : job.partitions ? job.partitions_done / job.partitions : 0;
  const name = `${job.kind} ${job.id}`;
  const pace = job.state === "running" ? speed(job) : null;
  const left = pace > 0 && job.estimate ? Math.max(0, job.estimate - job.documents) / pace : null;
  return h("li", { key: job.id },
    h("div", { class: "job-head" },
      h("strong", {}, name), badge(job.state, TONES[job.state] ?? ""),
      h("span", { class: "muted" }, [job.collections.join(", ") || "everything", job.group && job.group !== "default" ? `group ${job.group}` : ""].filter(Boolean).join(", ")),
      h("span", { class: "job-acts" },
        job.state === "running" && button("Pause…", () => act.job(job, "pause"), { "aria-label": `Pause ${name}` }),
        job.state === "paused" && button("Resume…", () => act.job(job, "resume"), { "aria-label": `Resume ${name}` }),
        ["running", "paused"].includes(job.state) && button("Cancel…", () => act.job(job, "cancel"), { class: "danger", "aria-label": `Cancel ${name}` }))),
    h("div", { class: "progress", role: "progressbar", "aria-label": `Progress of ${name}`, "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": String(Math.floor(100 * done)) },
      h("span", { style: { width: `${100 * done}%` } })),
    h("p", { class: "muted" }, [
      `${percent(100 * done)}: ${count(job.documents)}${job.estimate === null ? "" : ` of about ${count(job.estimate)}`} documents`,
      pace !== null && `${count(Math.round(pace))} a second`,
      left !== null && `done in about ${seconds(left)}`,
      job.letters ? `${many(job.letters, "dead letter")}` : "",
      job.state === "running" && many(job.processes, "process", "processes"),
      total(job.retries) > 0 && `${many(total(job.retries), "page")} read again`,
      total(job.waited) >= 1 && `waited ${seconds(total(job.waited))} (${Object.keys(job.waited).join(", ")})`,
      job.ended_at ? `ended ${ago(job.ended_at)}` : `begun ${ago(job.begun_at)}`,
      job.reason,
    ].filter(Boolean).join(", ")));
}
