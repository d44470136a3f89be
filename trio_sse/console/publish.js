// The form that publishes.

import { byId, eventsUrl, problemText } from "./dom.js";
import { fetchWithToken } from "./token.js";

const form = byId("publish-form");
const result = byId("publish-result");

function tell(text, bad = false) {
  result.classList.toggle("bad", bad);
  result.textContent = text;
}

function fields() {
  const given = { data: form.elements.data.value };
  if (form.elements.topic.value) given.topic = form.elements.topic.value;
  if (form.elements.type.value) given.type = form.elements.type.value;
  return given;
}

async function publish() {
  tell("");
  const request = {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(fields()),
  };
  try {
    const response = await fetchWithToken("publish", eventsUrl, request);
    if (response.ok) tell(`Published as ${(await response.json()).id}`);
    else tell(`Not published: ${await problemText(response)}`, true);
  } catch {
    tell("Not published: the server cannot be reached.", true);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  publish();
});

form.elements.data.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    form.requestSubmit();
  }
});
