// Asks for a token, where the server has any. It is kept for this tab alone.

import { ask, keepToken, token } from "./api.js";
import { open } from "./dialog.js";
import { h } from "./dom.js";

export function signIn(error, done) {
  const had = token() !== "";
  keepToken("");
  const why = !had ? "This sidecar asks for a token with the role admin."
    : error.status === 403 ? `Your token does not allow this: ${error.message}.`
      : "Your token has expired, or was taken back. Sign in again.";
  const dialog = open("Sign in", (self) => ({
    body: [
      h("p", { id: "why-sign-in", class: had ? "bad-text" : "" }, why),
      h("label", { class: "row" }, h("span", {}, "Token"),
        h("input", { type: "password", name: "token", required: true, maxlength: "600", autocomplete: "off", "aria-describedby": "why-sign-in", autofocus: true })),
      h("p", { class: "muted" }, "It is kept in this tab until you close it, and sent to nobody else."),
    ],
    naming: false,
    confirm: {
      text: "Sign in",
      run: async (form) => {
        keepToken(String(form.get("token") ?? "").trim());
        try {
          await ask("stages");
        } catch (refused) {
          keepToken("");
          throw refused;
        }
        self.close();
        done();
      },
    },
  }), { fixed: true });
  return dialog;
}
