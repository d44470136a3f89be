// The connection. A broken one the browser's EventSource mends by itself; what it gives up
// on, an error response, is tried again from here.

import { ask, authorization, lacks, token } from "./token.js";

const URL_PATH = "console/stream";
const SILENCE = 10_000; // ms without a status, of which there is one a second
const LONGEST = 30_000; // ms between two attempts

const TEXT = {
  connecting: "connecting",
  connected: "connected",
  reconnecting: "reconnecting",
  draining: "draining",
  stopped: "a token is needed",
};

/** Follows the hub. `on` has a function for each type of event, and `state(name, text)`. */
export class Stream {
  #on;
  #source = null;
  #failures = 0;
  #timer = 0;
  #heard = 0;
  #state = "";
  #why = "";

  constructor(on) {
    this.#on = on;
    setInterval(() => this.#checkSilence(), 1_000);
    this.open();
  }

  open() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
    if (lacks("subscribe")) {
      this.#enter("stopped");
      ask("subscribe", () => this.open());
      return;
    }
    if (this.#state === "" || this.#state === "stopped") this.#enter("connecting");
    this.#heard = Date.now();
    const url = new URL(URL_PATH, document.baseURI);
    if (token("subscribe")) url.searchParams.set("access_token", token("subscribe"));
    const source = new EventSource(url);
    this.#source = source;
    for (const type of ["hello", "status", "published", "skipped"]) {
      source.addEventListener(type, (event) => this.#take(type, JSON.parse(event.data)));
    }
    source.addEventListener("error", () => this.#failed(source));
  }

  #take(type, data) {
    this.#heard = Date.now();
    if (type === "status") {
      this.#failures = 0;
      this.#enter(data.state === "draining" ? "draining" : "connected");
    }
    this.#on[type](data);
  }

  #failed(source) {
    if (source !== this.#source) return;
    if (source.readyState === EventSource.CLOSED) {
      this.#source = null;
      this.#findOutWhy();
    } else {
      this.#enter("reconnecting", this.#loss());
    }
  }

  async #findOutWhy() {
    this.#enter("reconnecting", this.#loss());
    let status = 0;
    try {
      const headers = { Accept: "text/event-stream", ...authorization("subscribe") };
      ({ status } = await fetch(URL_PATH, { method: "HEAD", headers, cache: "no-store" }));
    } catch {
      // There is no server at all, at the moment.
    }
    if (status === 401) {
      this.#enter("stopped");
      ask("subscribe", () => this.open());
      return;
    }
    const wait = Math.min(LONGEST, 1_000 * 1.6 ** this.#failures) * (0.75 + Math.random() / 2);
    this.#failures += 1;
    const why = status >= 400 ? `the server answers ${status}` : "the server cannot be reached";
    this.#enter("reconnecting", why);
    this.#timer = setTimeout(() => this.open(), wait);
  }

  #checkSilence() {
    const quiet = Date.now() - this.#heard > SILENCE;
    if (quiet && this.#source?.readyState === EventSource.OPEN) {
      this.#enter("reconnecting", "the server was silent");
      this.open();
    }
  }

  #loss() {
    if (this.#state === "reconnecting") return this.#why;
    return this.#state === "draining" ? "the server has shut down" : "the connection was lost";
  }

  #enter(state, why = "") {
    this.#state = state;
    this.#why = why;
    this.#on.state(state, why ? `${TEXT[state]}: ${why}` : TEXT[state]);
  }
}
