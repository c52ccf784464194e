// What is wrong with a page, a line each. See looking.py.
() => {
  const wrong = [];
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) =>
    [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const page = rgba(getComputedStyle(document.body).backgroundColor);
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      layers.push(colour);
      if (colour[3] === 1 || at.localName === "dialog") break;
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), page);
  };
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };

  const root = document.querySelector("dialog[open]") ?? document.body;
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const told = new Set();
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim();
    const element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility({ visibilityProperty: true })) continue;
    if (element.closest(".unseen, noscript, option, :disabled")) continue;
    const style = getComputedStyle(element);
    const ground = behind(element);
    const drawn = element.namespaceURI.endsWith("svg");
    const ink = over(rgba(drawn ? style.fill : style.color), ground);
    const [high, low] = [light(ink), light(ground)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) {
      told.add(`contrast ${ratio.toFixed(2)}: "${text.slice(0, 40)}" (${element.localName})`);
    }
  }
  wrong.push(...told);

  const textOf = (id) => document.getElementById(id)?.textContent ?? "";
  const controls = "button, input, select, a[href], summary, [tabindex='0'], img";
  for (const element of document.querySelectorAll(controls)) {
    if (!element.checkVisibility()) continue;
    const labels = [...(element.labels ?? [])].map((label) => label.textContent).join(" ");
    const by = (element.getAttribute("aria-labelledby") ?? "").split(" ").map(textOf).join(" ");
    const own = element.matches("input, select") ? "" : element.textContent;
    const name = [element.getAttribute("aria-label") ?? "", by, labels, own].join("").trim();
    const named = element.localName === "img" ? element.hasAttribute("alt") : name;
    if (!named) wrong.push(`no name: ${element.outerHTML.slice(0, 100)}`);
  }

  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  const twice = ids.filter((id, i) => ids.indexOf(id) !== i);
  wrong.push(...twice.map((id) => `twice: id ${id}`));
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) wrong.push(`wider than the window: ${wide} > ${innerWidth}`);
  // Figures that are there, and that nobody sees who does not scroll sideways.
  for (const region of document.querySelectorAll(".scroll")) {
    const over = region.scrollWidth - region.clientWidth;
    if (over > 0) wrong.push(`cut off by ${over}: ${region.getAttribute("aria-label")}`);
  }
  if (document.documentElement.lang !== "en") wrong.push("no language");
  return wrong;
}
