// One dialog at a time. The browser's own keeps the focus inside, and gives it back at the end.

import { h, render } from "./dom.js";
import { icon } from "./marks.js";

const NAME = "crossfade.who";
let close = () => {};

export const who = () => sessionStorage.getItem(NAME) ?? "";

// `draw(dialog)` returns {body, confirm?: {text, danger?, disabled?, run}}, and `reason: null` where
// the audit trail takes none, `naming: false` where there is nothing to sign; it is drawn again by
// `dialog.draw()`. `run` may throw what the API refused: it is shown, and the dialog stays.
export function open(title, draw, { fixed = false, onclose = () => {} } = {}) {
  close();
  const element = document.createElement("dialog");
  element.setAttribute("aria-labelledby", "dialog-title");
  const opener = document.activeElement;
  const dialog = { busy: false, problem: "", draw: paint, close: end };

  function paint() {
    const { body, confirm, cancel = "Cancel", naming = Boolean(confirm), reason = "" } = draw(dialog);
    render(element,
      h("form", { method: "dialog", novalidate: true, onsubmit: (event) => { event.preventDefault(); submit(confirm); } },
        h("h2", { id: "dialog-title" }, title),
        h("div", { class: "dialog-body" }, body),
        naming && h("div", { class: "signing" },
          reason !== null && h("label", { class: "row" }, h("span", {}, "Reason"),
            h("input", { type: "text", name: "reason", maxlength: "500" })),
          h("label", { class: "row" }, h("span", {}, "Your name, for the audit trail"),
            h("input", { type: "text", name: "who", maxlength: "100", autocomplete: "name", value: who(),
              onchange: (event) => sessionStorage.setItem(NAME, event.target.value.trim()) }))),
        h("div", { class: "problem-place", role: "alert" }, dialog.problem &&
          h("p", { class: "problem" }, icon("bad"), h("span", {}, dialog.problem))),
        h("div", { class: "dialog-foot" },
          !fixed && h("button", { type: "button", onclick: end, "data-act": "cancel" }, cancel),
          confirm && h("button", { type: "submit", class: confirm.danger ? "danger solid" : "primary", "data-act": "confirm",
            disabled: Boolean(confirm.disabled) || dialog.busy }, dialog.busy ? "One moment…" : confirm.text))));
  }

  async function submit(confirm) {
    if (!confirm || confirm.disabled || dialog.busy) return;
    dialog.busy = true;
    dialog.problem = "";
    const name = element.querySelector("input[name=who]");
    if (name) sessionStorage.setItem(NAME, name.value.trim());
    paint();
    try {
      await confirm.run(new FormData(element.querySelector("form")));
      dialog.busy = false;
    } catch (error) {
      dialog.busy = false;
      dialog.problem = error.message;
      if (element.isConnected) paint();
    }
  }

  function end() {
    if (!element.isConnected) return;
    element.close();
    element.remove();
    close = () => {};
    onclose();
    if (opener?.isConnected) opener.focus();
  }

  element.addEventListener("cancel", (event) => {
    event.preventDefault();
    if (!fixed) end();
  });
  paint();
  document.getElementById("dialogs").append(element);
  element.showModal();
  close = end;
  return dialog;
}
