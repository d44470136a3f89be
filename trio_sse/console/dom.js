// Small pieces that the other modules share. Text gets onto the page through these, as text.

export const byId = (id) => document.getElementById(id);

const meta = (name) => document.querySelector(`meta[name="${name}"]`).content;

/** Where events are published and subscribed to, as an absolute address. */
export const eventsUrl = new URL(meta("trio-sse-events"), document.baseURI).href;

/** Where clients are served, if the hub is one without events; else empty. */
export const clientsUrl = meta("trio-sse-clients") && new URL(meta("trio-sse-clients"), document.baseURI).href;

/** Which of "subscribe" and "publish" the server asks a token for. */
export const needs = new Set(meta("trio-sse-needs").split(" ").filter(Boolean));

/** A new element. Children are nodes, or strings, which become text. */
export function element(tag, className = "", ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** Text from elsewhere: its direction of writing stays its own. */
export function isolated(text, className = "") {
  const made = element("bdi", className, text);
  made.dir = "auto";
  return made;
}

/** Set a node's text; a screen reader hears of it only if it has changed. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (number) => whole.format(number);

/** At most five characters or so. */
export const short = (number) =>
  number < 10_000 ? new Intl.NumberFormat("en", { maximumFractionDigits: number < 10 ? 1 : 0 }).format(number)
    : compact.format(number);

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

export function bytes(number) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  while (number >= 1000 && unit < units.length - 1) {
    number /= 1000;
    unit += 1;
  }
  return `${short(number)} ${units[unit]}`;
}

/** A time span in seconds, in its two largest units. */
export function duration(seconds) {
  const total = Math.floor(seconds);
  const [days, hours, minutes] = [86_400, 3_600, 60].map((unit) => Math.floor(total / unit));
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  if (minutes) return `${minutes} min ${total % 60} s`;
  return `${total} s`;
}

/** The text of an error response: a problem's detail (RFC 9457), or what there is. */
export async function problemText(response) {
  try {
    return (await response.json()).detail || `the server answered ${response.status}`;
  } catch {
    return `the server answered ${response.status}`;
  }
}
