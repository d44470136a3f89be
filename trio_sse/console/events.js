// The last events, newest first.

import { byId, bytes, count, element, eventsUrl, isolated, needs, plural, setText, show } from "./dom.js";

const KEPT = 100;
const LONG = { characters: 400, lines: 6 };

const list = byId("event-list");
const filter = byId("filter");
const pauseButton = byId("pause");

let entries = []; // { event, node }, newest first; a note among them has no event
let waiting = []; // while paused: the same, oldest first
let missed = 0; // how many came while paused
let paused = false;
let epoch = ""; // of the newest event: the part of its id before the position
const ids = new Set(); // of all events in `entries` and `waiting`

const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });

function topicTags(event) {
  const tags = event.topics.map((topic) => isolated(topic, "topic"));
  const more = event.topic_count - event.topics.length;
  if (more > 0) tags.push(element("span", "quiet", `and ${count(more)} more`));
  return tags;
}

/** A word for those who hear the page; others see what is meant. */
const said = (word) => element("span", "hidden", ` ${word} `);

function when(past) {
  if (past) return element("span", "quiet", "earlier");
  const now = new Date();
  const made = element("time", "quiet", clock.format(now));
  made.dateTime = now.toISOString();
  return made;
}

/** The data; long data folded, with a button. */
function payload(event) {
  const text = event.data;
  if (!text) return [element("p", "quiet none", event.cut ? "too long to show" : "no data")];
  const data = element("pre", "data", text);
  data.dir = "auto";
  const parts = [data];
  if (text.length > LONG.characters || text.split("\n").length > LONG.lines) {
    data.classList.add("folded");
    parts.push(unfoldButton(data));
  }
  if (event.cut) {
    const note = `Cut here: ${plural(text.length, "character")} of an event of ${bytes(event.size)}.`;
    parts.push(element("p", "quiet cut", note));
  }
  return parts;
}

function unfoldButton(data) {
  const button = element("button", "link", "Show more");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => {
    const folded = data.classList.toggle("folded");
    button.setAttribute("aria-expanded", String(!folded));
    button.textContent = folded ? "Show more" : "Show less";
  });
  return button;
}

function entryNode(event, past) {
  const about = element("p", "about", when(past), said("topic"), ...topicTags(event));
  if (event.type !== "message") about.append(said("type"), isolated(event.type, "type"));
  about.append(said("id"), isolated(event.id, "id"));
  return element("li", "", about, ...payload(event));
}

const matches = (event) => {
  const wanted = filter.value.trim().toLowerCase();
  return !wanted || event.topics.some((topic) => topic.toLowerCase().includes(wanted));
};

const visible = ({ event }) => (event ? matches(event) : !filter.value.trim());

/** Take one published event; `past` if it was there before the page. */
export function addEvent(event, past) {
  if (ids.has(event.id)) return; // seen before the connection was lost
  ids.add(event.id);
  const itsEpoch = event.id.slice(0, event.id.lastIndexOf("."));
  if (epoch && itsEpoch !== epoch) addNote("The log began anew here.");
  epoch = itsEpoch;
  add({ event, node: entryNode(event, past) });
}

/** Events came faster than they are shown. */
export function addSkipped() {
  addNote("More events came here than are shown.");
}

function addNote(text) {
  const newest = paused ? waiting.at(-1) : entries[0];
  if (newest && !newest.event && newest.node.textContent === text) return;
  add({ event: null, node: element("li", "note", text) });
}

function forget(entry) {
  entry.node.remove();
  if (entry.event) ids.delete(entry.event.id);
}

function add(entry) {
  if (paused) {
    waiting.push(entry);
    if (entry.event) missed += 1;
    if (waiting.length > KEPT) forget(waiting.shift());
  } else {
    entries.unshift(entry);
    show(entry.node, visible(entry));
    list.prepend(entry.node);
    while (entries.length > KEPT) forget(entries.pop());
  }
  tell();
}

/** Bring everything around the list up to date. */
export function tell() {
  const events = entries.filter((entry) => entry.event);
  const shown = events.filter(visible).length;
  const filtered = Boolean(filter.value.trim());
  show(byId("events-empty"), !events.length);
  show(list, shown > 0);
  show(byId("events-none"), filtered && events.length > 0 && !shown);
  if (filtered && !shown) {
    const none = `None of the last ${plural(events.length, "event")} has a topic that contains this.`;
    setText(byId("events-none"), none);
  }
  show(byId("events-count"), filtered && shown > 0);
  setText(byId("events-count"), `${count(shown)} of the last ${count(events.length)}`);
  setText(pauseButton, !paused ? "Pause" : missed ? `Resume, ${count(missed)} new` : "Resume");
}

filter.addEventListener("input", () => {
  for (const entry of entries) show(entry.node, visible(entry));
  tell();
});

pauseButton.addEventListener("click", () => {
  paused = !paused;
  const held = waiting;
  waiting = [];
  missed = 0;
  for (const entry of held) add(entry);
  tell();
});

const authorised = (kind) => (needs.has(kind) ? ' -H "Authorization: Bearer $TOKEN"' : "");
setText(byId("hint-publish"), `curl${authorised("publish")} -d topic=news -d data=hello ${eventsUrl}`);
setText(byId("hint-listen"), `curl -N${authorised("subscribe")} ${eventsUrl}`);
