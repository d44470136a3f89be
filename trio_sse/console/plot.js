// A rate over the last two minutes, as SVG. Colours come from the style sheet.

import { short } from "./dom.js";

const SPAN = 120; // seconds
const HEIGHT = 150;
const LEFT = 44;
const RIGHT = 12;
const TOP = 10;
const BOTTOM = 24;
const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

/** The next of 2, 4, 10, 20, 40, … that is at least `value`; half of it is a whole number. */
function roundUp(value) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [2, 4, 10].map((step) => step * unit).find((step) => step >= value);
}

const seconds = () => performance.now() / 1_000;

/** The parts of `samples` between two holes. */
function runs(samples) {
  const found = [[]];
  for (const sample of samples) {
    if (sample.rate === null) found.push([]);
    else found.at(-1).push(sample);
  }
  return found.filter((run) => run.length);
}

export class Plot {
  #figure;
  #readout;
  #name;
  #svg = svg("svg", { role: "img" });
  #samples = []; // { time, rate }, oldest first; a rate of null is a hole
  #pointer = null; // the pointer's x, while it is over the plot
  #width = 0;

  constructor(figure, name) {
    this.#figure = figure;
    this.#name = name;
    this.#readout = figure.querySelector(".readout");
    figure.append(this.#svg);
    this.#svg.addEventListener("pointermove", (event) => {
      this.#pointer = event.offsetX;
      this.draw();
    });
    this.#svg.addEventListener("pointerleave", () => {
      this.#pointer = null;
      this.draw();
    });
    new ResizeObserver(() => this.draw()).observe(figure);
  }

  add(rate) {
    this.#samples.push({ time: seconds(), rate });
    while (this.#samples[0].time < seconds() - SPAN - 5) this.#samples.shift();
    this.draw();
  }

  draw() {
    this.#width = this.#svg.clientWidth || this.#figure.clientWidth;
    if (!this.#width || document.hidden) return;
    const now = seconds();
    const samples = this.#samples.filter((sample) => sample.time >= now - SPAN);
    const top = roundUp(Math.max(0, ...samples.map((sample) => sample.rate ?? 0)));
    const x = (time) => LEFT + (1 - (now - time) / SPAN) * (this.#width - LEFT - RIGHT);
    const y = (rate) => TOP + (1 - rate / top) * (HEIGHT - TOP - BOTTOM);
    this.#svg.setAttribute("viewBox", `0 0 ${this.#width} ${HEIGHT}`);
    this.#svg.replaceChildren(
      ...this.#grid(top, now, x, y),
      ...runs(samples).flatMap((run) => this.#line(run, x, y)),
      ...this.#read(samples, now, x, y),
    );
  }

  #grid(top, now, x, y) {
    const parts = [];
    const left = LEFT;
    const right = this.#width - RIGHT;
    for (const rate of [0, top / 2, top]) {
      const at = y(rate);
      parts.push(svg("line", { class: "grid", x1: left, x2: right, y1: at, y2: at }));
      const place = { class: "axis", x: left - 8, y: at + 4, "text-anchor": "end" };
      parts.push(svg("text", place, short(rate)));
    }
    const ticks = [[SPAN, "2 min ago", "start"], [SPAN / 2, "1 min ago", "middle"], [0, "now", "end"]];
    for (const [ago, text, anchor] of ticks) {
      const place = { class: "axis", x: x(now - ago), y: HEIGHT - 6, "text-anchor": anchor };
      parts.push(svg("text", place, text));
    }
    return parts;
  }

  #line(run, x, y) {
    const points = run.map(({ time, rate }) => `${x(time).toFixed(1)} ${y(rate).toFixed(1)}`);
    const [first, last] = [x(run[0].time).toFixed(1), x(run.at(-1).time).toFixed(1)];
    const floor = y(0).toFixed(1);
    const path = `M${points.join("L")}`;
    return [
      svg("path", { class: "area", d: `${path}L${last} ${floor}L${first} ${floor}Z` }),
      svg("path", { class: "line", d: path }),
    ];
  }

  /** The value under the pointer, or the newest one. */
  #read(samples, now, x, y) {
    const values = samples.filter((sample) => sample.rate !== null);
    const newest = samples.at(-1)?.rate === null ? undefined : samples.at(-1);
    const rates = values.map((sample) => sample.rate);
    const most = rates.length ? Math.max(...rates) : 0;
    this.#svg.setAttribute(
      "aria-label",
      `${this.#name} per second: ${newest ? short(newest.rate) : "unknown"} now, ` +
        `${short(most)} at most in the last two minutes`,
    );
    if (this.#pointer === null || !values.length) {
      this.#readout.textContent = newest ? `${short(newest.rate)} per second` : "per second";
      return [];
    }
    const distance = (sample) => Math.abs(x(sample.time) - this.#pointer);
    const near = values.reduce((best, each) => (distance(each) < distance(best) ? each : best));
    const ago = Math.round(now - near.time);
    this.#readout.textContent = `${short(near.rate)} per second, ${ago} s ago`;
    const at = x(near.time);
    return [
      svg("line", { class: "cross", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM }),
      svg("circle", { class: "point", cx: at, cy: y(near.rate), r: 4 }),
    ];
  }
}
