// The admin API: requests with the token of this tab, and errors as it sends them.

const TOKEN = "crossfade.token";

export class Refused extends Error {
  constructor(status, problem) {
    super(problem.message);
    this.status = status;
    this.code = problem.code;
    this.field = problem.field;
  }
}

export const token = () => sessionStorage.getItem(TOKEN) ?? "";

export function keepToken(text) {
  if (text) sessionStorage.setItem(TOKEN, text);
  else sessionStorage.removeItem(TOKEN);
}

export function headers(more = {}) {
  const held = token();
  return held ? { authorization: `Bearer ${held}`, ...more } : more;
}

export async function ask(path, method = "GET", body = undefined) {
  const options = { method, headers: headers(), cache: "no-store" };
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(`api/v1/${path}`, options);
  } catch {
    throw new Refused(0, { code: "UNAVAILABLE", message: "the sidecar does not answer" });
  }
  if (answer.ok) return answer.json();
  throw await refused(answer);
}

export async function refused(answer) {
  let problem;
  try {
    problem = await answer.json();
  } catch {
    problem = {};
  }
  return new Refused(answer.status, {
    code: problem.code ?? "UNKNOWN",
    message: problem.message ?? `the sidecar answered ${answer.status}`,
    field: problem.field,
  });
}
