// The page: one state, drawn whole on every change.

import { keepToken, token } from "./api.js";
import { changeStage, changeTraffic, compareSchema, controlJob, explain, retryLetters, rollBack } from "./changes.js";
import { announce, h, render } from "./dom.js";
import { clock, seconds, stageName } from "./format.js";
import { jobsCard, note } from "./jobs.js";
import { auditCard, driftCard, lettersCard, mismatchesCard } from "./lists.js";
import { signIn } from "./login.js";
import { button } from "./marks.js";
import { backlogCard, latencyCard, verdictsCard } from "./plots.js";
import { stagesCard } from "./stages.js";
import { follow } from "./stream.js";
import { tiles } from "./tiles.js";
import { trafficCard } from "./traffic.js";
import { validationsCard } from "./validations.js";
import { safety } from "./verdict.js";

const KEPT = 180;
const OLD_MS = 12_000;
const GUTTER = 2 * 18;

const page = { state: null, points: [], arrived: 0, connected: false, cut: false, reason: "", tones: new Map(), note: "", stop: null };
const view = {
  quantile: "p95",
  collection: "",
  cursor: { latency: null, verdicts: null, backlog: null },
  set(changes) {
    Object.assign(view, changes);
    draw();
  },
  point: (name) => (index) => {
    if (view.cursor[name] === index) return;
    view.cursor[name] = index;
    draw();
  },
};

const act = {
  stage: (group, target) => changeStage(group, target, changed),
  rollback: (group) => rollBack(group, page.state.stand.status, changed),
  traffic: (name, group = null) => changeTraffic(name, group, page.state, changed),
  job: (job, action) => controlJob(job, action, changed),
  retry: (which) => retryLetters(which, changed),
  explain,
  schema: compareSchema,
};

function changed(text) {
  page.note = text;
  announce(text);
  draw();
  setTimeout(() => {
    if (page.note !== text) return;
    page.note = "";
    draw();
  }, 8_000);
}

const cut = () => !page.connected || Date.now() - page.arrived > OLD_MS;

function start() {
  page.stop?.();
  page.stop = follow({
    open: () => {
      page.points = [];
      page.connected = true;
      draw();
    },
    event: (name, data) => {
      if (name === "points") page.points = [...page.points, ...data].slice(-KEPT);
      if (name !== "state") return;
      if (page.cut) announce("The sidecar answers again.");
      page.cut = false;
      page.state = data;
      note(data.jobs?.jobs ?? []);
      page.arrived = Date.now();
      page.connected = true;
      draw();
      tell();
    },
    cut: (reason) => {
      if (!page.cut) announce("The connection is cut. What is shown is the last known state.");
      page.cut = true;
      page.connected = false;
      page.reason = reason;
      draw();
    },
    denied: (error) => {
      page.connected = false;
      page.state = null;
      render(document.getElementById("main"));
      draw();
      signIn(error, start);
    },
  });
}

// Changes that somebody who does not look at the page should hear of.
function tell() {
  const groups = page.state.stand?.groups ?? [];
  for (const group of groups) {
    const now = safety(group, page.state, false);
    const told = `${group.stage} ${now.tone}`;
    const before = page.tones.get(group.group);
    const of = groups.length > 1 ? ` of ${group.group}` : "";
    if (before && before !== told) announce(`Stage${of} ${stageName(group.stage)}. ${now.title}. ${now.reason}`);
    page.tones.set(group.group, told);
    if (group === groups[0]) document.title = `${stageName(group.stage)}: ${now.title} – Crossfade`;
  }
}

function draw() {
  drawBar();
  const { state, points } = page;
  if (!state) return;
  const main = document.getElementById("main");
  const wide = main.clientWidth;
  const half = wide >= 980 ? (wide - 18) / 2 : wide;
  if (wide < 200) return; // it is not laid out yet, and will be drawn when it is
  if (!state.stand) {
    render(main, h("p", { class: "empty" }, `The status is not known: ${state.unknown.stand}`));
    return;
  }
  main.classList.toggle("stale", cut());
  render(main,
    stagesCard(state, cut(), act),
    tiles(state, points),
    trafficCard(state, act),
    h("div", { key: "plots", class: "columns" },
      latencyCard(state, points, view, Math.floor(half - GUTTER)),
      h("div", { key: "right", class: "stack" },
        verdictsCard(state, points, view, Math.floor(half - GUTTER)),
        backlogCard(state, points, view, Math.floor(half - GUTTER)),
        jobsCard(state, act))),
    validationsCard(state),
    mismatchesCard(state, act),
    lettersCard(state, act),
    h("div", { key: "last", class: "columns loose" }, auditCard(state), driftCard(state, act)));
}

function drawBar() {
  const old = cut();
  render(document.getElementById("bar"),
    page.note && h("span", { key: "note", class: "note-now" }, page.note),
    page.state && h("span", { key: "pill", class: `pill ${old ? "wait" : "good"}` },
      h("i", { "aria-hidden": "true" }), old ? "last known" : "up to date"),
    token() && button("Sign out", () => {
      keepToken("");
      location.reload();
    }, { key: "out", class: "quiet" }));
  render(document.getElementById("cut"), page.state && old && h("p", { class: "cut" },
    `Last known state, of ${clock(page.arrived)} (${seconds((Date.now() - page.arrived) / 1000)} ago). ` +
    `${page.connected ? "The sidecar is slow to answer." : `Trying again: ${page.reason}.`}`));
}

new ResizeObserver(() => draw()).observe(document.getElementById("main"));
setInterval(draw, 1_000);
start();
