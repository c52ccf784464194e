// Numbers and times, as people read them. A number and its unit stay on one line.

const whole = new Intl.NumberFormat("en");

export const count = (n) => (n === null || n === undefined ? "–" : whole.format(n));

export const many = (n, one, more = `${one}s`) => `${count(n)} ${n === 1 ? one : more}`;

export function percent(value, digits = 1) {
  if (value === null || value === undefined) return "–";
  return `${Number(value.toFixed(digits))}\u00a0%`;
}

// A share that may be tiny: "0 of 120,000" and "0.003 %" are not the same.
export function share(part, all) {
  if (!all) return "–";
  const value = (100 * part) / all;
  if (part && value < 0.01) return "<\u00a00.01\u00a0%";
  return `${Number(value.toFixed(value < 1 ? 2 : 1))}\u00a0%`;
}

export function ms(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1000) return `${(value / 1000).toFixed(value >= 10_000 ? 0 : 1)}\u00a0s`;
  if (value >= 100) return `${value.toFixed(0)}\u00a0ms`;
  if (value >= 10) return `${value.toFixed(1)}\u00a0ms`;
  return `${value.toFixed(2)}\u00a0ms`;
}

// For axes: as short as can be.
export function axisMs(value) {
  if (value >= 1000) return `${Number((value / 1000).toPrecision(3))}\u00a0s`;
  return value ? `${Number(value.toPrecision(3))}\u00a0ms` : "0";
}

export function axisSeconds(value) {
  if (value >= 7200) return `${Number((value / 3600).toPrecision(3))}\u00a0h`;
  if (value >= 120) return `${Number((value / 60).toPrecision(3))}\u00a0min`;
  return axisMs(1000 * value);
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10) return `${value.toFixed(1)}\u00a0s`;
  if (value < 120) return `${Math.round(value)}\u00a0s`;
  if (value < 7200) return `${Math.round(value / 60)}\u00a0min`;
  if (value < 172_800) return `${Math.round(value / 3600)}\u00a0h`;
  return `${Math.round(value / 86_400)}\u00a0d`;
}

export const ago = (when, now = Date.now()) =>
  `${seconds(Math.max(0, Math.round((now - Date.parse(when)) / 1000)))} ago`.replace(/^0\.0\ss ago$/, "now");

export const clock = (when) =>
  new Date(when).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const moment = (when) =>
  new Date(when).toLocaleString("en-GB", {
    day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit",
  });

export const stageName = (name) => name.replace("_", " ");

export const storeName = { firestore: "Firestore", postgresql: "PostgreSQL", none: "nobody now" };

export const collectionName = (name) => name || "all others";
