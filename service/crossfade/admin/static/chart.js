// Plots over time, as SVG: lines, or bars that stand on one another.

import { h } from "./dom.js";
import { clock } from "./format.js";

const LEFT = 56;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 22;

// `series`: [{name, kind, values}], a value or null for each of `times` (seconds since 1970).
// `cursor`: the index that is pointed at, or null; `onCursor` is told when that changes.
export function plot({ width, height, times, series, span, format, stacked = false, whole = stacked, label, cursor, onCursor }) {
  const inner = { width: width - LEFT - RIGHT, height: height - TOP - BOTTOM };
  const end = times.at(-1) ?? Date.now() / 1000;
  const x = (time) => LEFT + inner.width * (1 - (end - time) / span);
  const sums = times.map((_, i) => series.reduce((sum, each) => sum + (each.values[i] ?? 0), 0));
  const highest = Math.max(0, ...(stacked ? sums : series.flatMap((each) => each.values.map((v) => v ?? 0))));
  const ticks = scale(highest, whole);
  const top = ticks.at(-1);
  const y = (value) => TOP + inner.height * (1 - value / top);
  const drawn = stacked ? bars(times, series, x, y, inner.width / (span / 5)) : lines(times, series, x, y);
  const move = (index) => onCursor(index === null ? null : Math.max(0, Math.min(times.length - 1, index)));
  return h("svg", {
    class: "plot", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", tabindex: "0",
    "aria-label": label,
    onpointermove: (event) => {
      const box = event.currentTarget.getBoundingClientRect();
      const time = end - span * (1 - (event.clientX - box.left - LEFT) / inner.width);
      move(nearest(times, time));
    },
    onpointerleave: () => move(null),
    onblur: () => move(null),
    onkeydown: (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step === undefined || !times.length) return;
      event.preventDefault();
      move((cursor ?? times.length) + step);
    },
  },
    ticks.map((tick) => h("g", { key: `y${tick}`, class: "tick" },
      h("line", { x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
      h("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, format(tick)))),
    [0, 0.5, 1].map((part) => h("text", {
      key: `x${part}`, class: "tick-text", x: LEFT + inner.width * part, y: height - 5,
      "text-anchor": part === 1 ? "end" : part === 0 ? "start" : "middle",
    }, part === 1 ? "now" : `−${Number(((span * (1 - part)) / 60).toFixed(1))} min`)),
    drawn,
    cursor !== null && times[cursor] !== undefined && h("line", {
      key: "cursor", class: "cursor", x1: x(times[cursor]), x2: x(times[cursor]), y1: TOP, y2: height - BOTTOM,
    }));
}

function lines(times, series, x, y) {
  return series.map((each) => {
    let path = "";
    let pen = false;
    each.values.forEach((value, i) => {
      if (value === null || x(times[i]) < LEFT) {
        pen = false;
        return;
      }
      path += `${pen ? "L" : "M"}${x(times[i]).toFixed(1)} ${y(value).toFixed(1)}`;
      if (!pen) path += "h0.01"; // a point alone is seen, too
      pen = true;
    });
    return h("path", { key: `line-${each.kind}`, class: `line ${each.kind}`, d: path || "M0 0" });
  });
}

function bars(times, series, x, y, step) {
  const wide = Math.max(1, step - 1);
  return times.map((time, i) => {
    if (x(time) - wide < LEFT) return null;
    let low = 0;
    return h("g", { key: `bar${time}` }, series.map((each) => {
      const value = each.values[i] ?? 0;
      const from = low;
      low += value;
      if (!value) return null;
      // What is rare must be seen beside what is not.
      const tall = Math.max(each.seen ? 3 : 0, y(from) - y(low));
      return h("rect", { key: each.kind, class: `bar-part ${each.kind}`, x: x(time) - wide, y: y(from) - tall, width: wide, height: tall });
    }));
  });
}

function scale(highest, whole) {
  if (highest <= 0) return [0, 1];
  const rough = whole ? Math.max(1, highest / 3) : highest / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= rough && (!whole || Number.isInteger(n)));
  const ticks = [];
  for (let i = 0; i <= Math.ceil(highest / step); i += 1) ticks.push(Number((i * step).toPrecision(6)));
  return ticks;
}

function nearest(times, time) {
  if (!times.length) return null;
  let best = 0;
  times.forEach((each, i) => {
    if (Math.abs(each - time) < Math.abs(times[best] - time)) best = i;
  });
  return best;
}

export function legend(items, at) {
  return h("p", { class: "legend" },
    items.map((item) => h("span", { key: item.kind, class: `key ${item.kind}` }, h("i", { "aria-hidden": "true" }), item.name,
      item.value !== undefined && h("strong", {}, ` ${item.value}`))),
    h("span", { class: "muted" }, at ? clock(at * 1000) : ""));
}
