// The sessions, newest first, and ending one.

import { byId, bytes, clientsUrl, count, duration, element, isolated, plural, problemText, setText, show } from "./dom.js";
import { fetchWithToken } from "./token.js";

const body = byId("session-rows");
const rows = new Map(); // by id: { row, cells, button }
let own = ""; // the id of this page's session

// Those of the page's head: which are there depends on whether the hub has events.
const COLUMNS = [
  ["id", "Session", ""],
  ["client", "Client", ""],
  ["about", "Says it is", "", "clients"],
  ["topics", "Topics", "", "events"],
  ["age", "Age", "number"],
  ["queued", "Queued", "number", "events"],
  ["sent", "Sent", "number", "events"],
  ["dropped", "Dropped", "number", "events"],
  ["last", "Last event", "", "events"],
  ["action", "", "action"],
].filter(([, , , only]) => !only || only === (clientsUrl ? "clients" : "events"));

export function setOwn(id) {
  own = id;
}

function makeRow(session) {
  const row = element("tr");
  row.setAttribute("role", "row");
  const cells = {};
  for (const [name, label, className] of COLUMNS) {
    const cell = element("td", className);
    cell.setAttribute("role", "cell");
    if (label) cell.dataset.label = label;
    cells[name] = element("div", "value");
    cell.append(cells[name]);
    row.append(cell);
  }
  cells.id.append(isolated(session.id, "id"));
  if (session.console) {
    const what = session.id === own ? "this page" : "console";
    cells.id.append(" ", element("span", "tag", what));
  }
  cells.client.append(isolated(session.client || "–"));
  cells.topics?.append(...topics(session));
  if (session.id === own) row.classList.add("own");
  else cells.action.append(endButton(session.id));
  return { row, cells };
}

function topics(session) {
  if (session.topics === null) return [element("span", "quiet", "all")];
  if (!session.topics.length) return [element("span", "quiet", "none")];
  const tags = session.topics.map((topic) => isolated(topic, "topic"));
  const more = session.topic_count - session.topics.length;
  if (more > 0) tags.push(element("span", "quiet", `and ${count(more)} more`));
  return tags;
}

function endButton(id) {
  const button = element("button", "small", "End");
  button.type = "button";
  button.setAttribute("aria-label", `End session ${id}`);
  button.addEventListener("click", () => confirmEnd(id));
  return button;
}

function update({ cells }, session) {
  setText(cells.age, duration(session.age));
  if (clientsUrl) {
    if (cells.about.textContent !== (session.about || "–")) {
      cells.about.replaceChildren(isolated(session.about || "–"));
    }
    return;
  }
  setText(cells.queued, count(session.queued));
  cells.queued.title = session.queued ? bytes(session.queued_bytes) : "";
  setText(cells.sent, count(session.sent));
  setText(cells.dropped, count(session.dropped));
  cells.dropped.classList.toggle("bad", session.dropped > 0);
  if (cells.last.textContent !== (session.last_event_id || "–")) {
    cells.last.replaceChildren(isolated(session.last_event_id || "–", "id"));
  }
}

/** Show what a status says. Rows stay in place, and with them the focus. */
export function showSessions(status) {
  const present = new Set(status.sessions.map((session) => session.id));
  for (const [id, { row }] of rows) {
    if (!present.has(id)) {
      row.remove();
      rows.delete(id);
    }
  }
  let before = body.firstChild;
  for (const session of status.sessions) {
    let entry = rows.get(session.id);
    if (!entry) {
      entry = makeRow(session);
      rows.set(session.id, entry);
    }
    update(entry, session);
    if (entry.row === before) before = before.nextSibling;
    else body.insertBefore(entry.row, before);
  }
  const others = status.sessions.some((session) => !session.console);
  const total = status.counts.sessions;
  const shown = status.sessions.length;
  show(byId("sessions"), shown > 0);
  show(byId("sessions-empty"), !others && total === shown);
  setText(
    byId("sessions-count"),
    shown < total ? `the newest ${count(shown)} of ${count(total)}` : count(total),
  );
  const ended = Object.entries(status.ended).filter(([, number]) => number);
  ended.sort(([, a], [, b]) => b - a);
  setText(
    byId("sessions-ended"),
    ended.length
      ? `Ended so far, by reason: ${ended.map(([why, n]) => `${why} ${count(n)}`).join(", ")}.`
      : "",
  );
}

const dialog = byId("confirm");
let asked = ""; // the id that the dialog is about

function confirmEnd(id) {
  asked = id;
  setText(byId("confirm-heading"), `End session ${id}?`);
  dialog.returnValue = "keep";
  dialog.showModal();
}

dialog.addEventListener("close", () => {
  if (dialog.returnValue === "end") end(asked);
});

function tell(text, bad = false) {
  const result = byId("session-result");
  result.classList.toggle("bad", bad);
  setText(result, text);
}

async function end(id) {
  try {
    const url = `console/sessions/${encodeURIComponent(id)}`;
    const response = await fetchWithToken("publish", url, { method: "DELETE" });
    if (response.ok) tell(`Session ${id} was ended.`);
    else tell(`Session ${id} was not ended: ${await problemText(response)}`, true);
  } catch {
    tell(`Session ${id} was not ended: the server cannot be reached.`, true);
  }
}
