// The tokens, and asking for them. They live as long as the tab.

import { byId, clientsUrl, needs, setText, show } from "./dom.js";

const ONE = "Watching this server, and ending sessions, needs its token.";
const WHY = clientsUrl ? { subscribe: ONE, publish: ONE } : {
  subscribe: "Watching this hub needs its subscribe token.",
  publish: "Publishing, and ending sessions, needs the publish token.",
};
const known = new Map();
let asked = null; // { kind, then }: what the form is for, and what to do with the answer

const key = (kind) => (clientsUrl ? "trio_sse token" : `trio_sse ${kind} token`);

function stored(kind) {
  try {
    return sessionStorage.getItem(key(kind));
  } catch {
    return null; // the browser keeps nothing: the page's own memory has to do
  }
}

export const token = (kind) => known.get(key(kind)) ?? stored(kind);

/** Whether the server wants a token that is not here. */
export const lacks = (kind) => needs.has(kind) && !token(kind);

/** Headers for a request; without a token of its kind, none. */
export const authorization = (kind) =>
  token(kind) ? { Authorization: `Bearer ${token(kind)}` } : {};

function keep(kind, value) {
  known.set(key(kind), value);
  try {
    sessionStorage.setItem(key(kind), value);
  } catch {
    // As above.
  }
}

/** Show the form; call `then` when it has been filled in. A later call takes its place. */
export function ask(kind, then) {
  const first = !token(kind);
  asked = { kind, then };
  setText(byId("token-why"), first ? WHY[kind] : `That token was not accepted. ${WHY[kind]}`);
  byId("token-input").value = "";
  show(byId("token"), true);
  byId("token-input").focus();
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const { kind, then } = asked;
  keep(kind, byId("token-input").value.trim());
  byId("token-input").value = "";
  show(byId("token"), false);
  then();
});

/** Send a request that needs a token, asking for it where it is missing or wrong. */
export async function fetchWithToken(kind, url, options) {
  if (lacks(kind)) await new Promise((then) => ask(kind, then));
  for (;;) {
    const headers = { ...options.headers, ...authorization(kind) };
    const response = await fetch(url, { ...options, headers, cache: "no-store" });
    if (response.status !== 401) return response;
    await new Promise((then) => ask(kind, then));
  }
}
