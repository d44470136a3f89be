// The page: what comes from the stream goes to where it is shown.

import { byId, clientsUrl, count, setText, show } from "./dom.js";
import { addEvent, addSkipped, tell } from "./events.js";
import { Plot } from "./plot.js";
import "./publish.js";
import { setOwn, showSessions } from "./sessions.js";
import { Stream } from "./stream.js";

if (clientsUrl) {
  for (const node of document.querySelectorAll(".events-only")) show(node, false);
  for (const node of document.querySelectorAll(".clients-only")) show(node, true);
  setText(byId("hint-clients"), clientsUrl);
}

const plots = {
  published: new Plot(byId("plot-published"), "Published"),
  delivered: new Plot(byId("plot-delivered"), "Delivered"),
};
let before = null; // the status before, to take rates from
let past = true; // until the greeting, what comes was published before

function showTotals({ counts, newest }) {
  for (const name of ["sessions", "published", "delivered", "dropped"]) {
    setText(byId(`n-${name}`), count(counts[name]));
  }
  byId("n-dropped").classList.toggle("bad", counts.dropped > 0);
  setText(byId("n-newest"), newest.endsWith(".0") ? "none yet" : newest);
}

function plotRates(status) {
  const elapsed = before ? status.at - before.at : 0;
  for (const [name, plot] of Object.entries(plots)) {
    if (elapsed > 0) plot.add((status.counts[name] - before.counts[name]) / elapsed);
  }
  if (elapsed > 0 || !before) before = status;
}

function breakPlots() {
  if (!before) return;
  before = null;
  for (const plot of Object.values(plots)) plot.add(null);
}

new Stream({
  hello(hello) {
    setOwn(hello.session);
    past = false;
    tell(); // that there is nothing, if so
    breakPlots();
  },
  status(status) {
    showTotals(status);
    plotRates(status);
    showSessions(status);
  },
  published(event) {
    addEvent(event, past);
  },
  skipped: addSkipped,
  state(state, text) {
    byId("state").dataset.state = state;
    document.body.toggleAttribute("data-stale", state === "reconnecting" || state === "stopped");
    setText(byId("state-text"), text);
    if (state === "reconnecting") {
      past = true;
      breakPlots();
    }
  },
});

setInterval(() => Object.values(plots).forEach((plot) => plot.draw()), 1_000);
