// Server-sent events, read with fetch: EventSource could not send the token.

import { Refused, headers, refused } from "./api.js";

const SILENT_MS = 7_000; // the server says something every two seconds
const WAITS_MS = [500, 1_000, 2_000, 4_000, 5_000];

// Calls `on.event(name, data)`, `on.open()`, `on.cut(reason)`, and `on.denied(error)`, after which
// it ends; goes on otherwise until `stop` is called.
export function follow(on) {
  let stopped = false;
  let current = null;
  let failures = 0;

  async function run() {
    while (!stopped) {
      try {
        await once();
        on.cut("the stream ended");
      } catch (error) {
        if (stopped) return;
        if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
          on.denied(error);
          return;
        }
        on.cut(error instanceof Refused ? error.message : "the sidecar does not answer");
      }
      const wait = WAITS_MS[Math.min(failures, WAITS_MS.length - 1)];
      failures += 1;
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }

  async function once() {
    current = new AbortController();
    let silence = setTimeout(() => current.abort(), SILENT_MS);
    try {
      const answer = await fetch("api/v1/events", {
        headers: headers(), cache: "no-store", signal: current.signal,
      });
      if (!answer.ok) throw await refused(answer);
      on.open();
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        clearTimeout(silence);
        silence = setTimeout(() => current.abort(), SILENT_MS);
        failures = 0;
        text += value;
        const whole = text.split("\n\n");
        text = whole.pop();
        whole.forEach(dispatch);
      }
    } finally {
      clearTimeout(silence);
    }
  }

  function dispatch(block) {
    let name = "message";
    let data = "";
    if (block.startsWith(":")) return; // only says that it is still there
    for (const line of block.split("\n")) {
      if (line.startsWith("event: ")) name = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
    const value = JSON.parse(data);
    if (name === "refused") {
      throw new Refused(value.code === "UNAUTHENTICATED" ? 401 : 403, value);
    }
    on.event(name, value);
  }

  run();
  return () => {
    stopped = true;
    current?.abort();
  };
}
