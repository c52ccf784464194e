// Elements as plain objects, and putting them into the page. What is there stays there, so that
// focus, scrolling and open details survive an update every two seconds. Text is only ever text.

const SVG = "http://www.w3.org/2000/svg";
const HELD = Symbol("props");
const KEY = Symbol("key");
// Set on the object, and only when the page's own idea of them changes: else typing would be undone.
const PROPERTIES = new Set(["value", "checked", "open", "disabled", "hidden", "selected", "min", "max", "step"]);

export function h(tag, props, ...children) {
  const { key, ...rest } = props ?? {};
  return { tag, key, props: rest, children: flat(children) };
}

function flat(children) {
  return children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false && child !== "")
    .map((child) => (typeof child === "object" ? child : String(child)));
}

export function render(parent, ...nodes) {
  const wanted = flat(nodes);
  const svg = parent.namespaceURI === SVG;
  const keyed = new Map();
  const rest = [];
  for (const node of parent.childNodes) {
    if (node[KEY] === undefined) rest.push(node);
    else keyed.set(node[KEY], node);
  }
  let place = parent.firstChild;
  for (const node of wanted) {
    const found = take(node, keyed, rest) ?? make(node, svg);
    if (found === place) place = place.nextSibling;
    else parent.insertBefore(found, place);
    update(found, node);
  }
  for (const node of [...keyed.values(), ...rest]) node.remove();
}

function take(node, keyed, rest) {
  if (typeof node === "string") {
    const index = rest.findIndex((each) => each.nodeType === Node.TEXT_NODE);
    return index < 0 ? undefined : rest.splice(index, 1)[0];
  }
  if (node.key !== undefined) {
    const found = keyed.get(node.key);
    if (found?.localName !== node.tag) return undefined;
    keyed.delete(node.key);
    return found;
  }
  const index = rest.findIndex((each) => each.localName === node.tag);
  return index < 0 ? undefined : rest.splice(index, 1)[0];
}

function make(node, svg) {
  if (typeof node === "string") return document.createTextNode(node);
  const element =
    svg || node.tag === "svg"
      ? document.createElementNS(SVG, node.tag)
      : document.createElement(node.tag);
  element[HELD] = {};
  if (node.key !== undefined) element[KEY] = node.key;
  return element;
}

function update(element, node) {
  if (typeof node === "string") {
    if (element.data !== node) element.data = node;
    return;
  }
  const before = element[HELD] ?? {};
  for (const name of Object.keys(before)) {
    if (!(name in node.props)) put(element, name, undefined);
  }
  for (const [name, value] of Object.entries(node.props)) {
    if (name === "style" || before[name] !== value) put(element, name, value);
  }
  element[HELD] = node.props;
  render(element, node.children);
}

function put(element, name, value) {
  if (name.startsWith("on")) {
    element[name] = value ?? null;
  } else if (name === "style") {
    for (const [property, text] of Object.entries(value ?? {})) {
      element.style.setProperty(property, text);
    }
  } else if (PROPERTIES.has(name) && element.namespaceURI !== SVG) {
    element[name] = value ?? (typeof element[name] === "boolean" ? false : "");
  } else if (value === undefined || value === null || value === false) {
    element.removeAttribute(name);
  } else {
    element.setAttribute(name, value === true ? "" : value);
  }
}

const TOLD_MS = 10_000;
let told = [];
let serial = 0;

// For those who do not see the page change. Additions are read out, so that of two things that
// happen at once neither is lost.
export function announce(text) {
  if (told.some((each) => each.text === text)) return;
  const said = { text, key: (serial += 1) };
  show([...told, said]);
  setTimeout(() => show(told.filter((each) => each !== said)), TOLD_MS);
}

function show(sentences) {
  told = sentences;
  render(document.getElementById("live"), told.map((each) => h("span", { key: each.key }, `${each.text} `)));
}
