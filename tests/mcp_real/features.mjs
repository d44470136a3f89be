// What every client of the matrix is put through, over whichever SDK and revision.
// A line of JSON for each feature: {"feature": …, "ok": true or false, "detail": …}, or
// {"feature": …, "none": the reason why there is no such thing}.

const PATIENCE = 20_000;

const within = (promise, what) =>
  Promise.race([
    promise,
    new Promise((_, reject) =>
      setTimeout(() => reject(new Error(`${what}: nothing within ${PATIENCE} ms`)), PATIENCE),
    ),
  ]);

export const none = (feature, reason) => console.log(JSON.stringify({ feature, none: reason }));

export async function feature(name, test) {
  let line;
  try {
    const detail = await within(test(), name);
    line = { feature: name, ok: true, detail: detail ?? "" };
  } catch (error) {
    line = { feature: name, ok: false, detail: `${error?.stack ?? error}` };
  }
  console.log(JSON.stringify(line));
}

export function same(found, wanted) {
  const [a, b] = [JSON.stringify(found), JSON.stringify(wanted)];
  if (a !== b) throw new Error(`${a}, and not ${b}`);
  return a;
}

/** A promise and what resolves it. */
export function expected() {
  const it = {};
  it.promise = new Promise((resolve) => (it.resolve = resolve));
  return it;
}

export const SAMPLED = {
  role: "assistant",
  content: { type: "text", text: "Paris" },
  model: "none",
  stopReason: "endTurn",
};

export const ENTERED = (request) => {
  const asked = Object.keys(request.params.requestedSchema.properties);
  return { action: "accept", content: Object.fromEntries(asked.map((name) => [name, "Ada"])) };
};

/**
 * All features but `connect` and `end`.
 *
 * client: connected; its handlers answer with SAMPLED and ENTERED and call on.changed and on.log.
 * call: (name, arguments, options) to the text of the tool's result.
 * listen: opens what notifications come by, and returns what closes it; or null where a
 *   session has that anyway.
 */
export async function all({ client, call, on, stateless, listen, noResume }) {
  const asks = stateless
    ? ["test_input_required_result_sampling", "test_input_required_result_elicitation"]
    : ["test_sampling", "test_elicitation"];
  await feature("list", async () => {
    const { tools } = await client.listTools();
    const { resources } = await client.listResources();
    const { prompts } = await client.listPrompts();
    if (!tools.some((tool) => tool.name === "test_simple_text")) throw new Error("no tool");
    if (!resources.length || !prompts.length) throw new Error("no resource or prompt");
  });
  await feature("call", async () =>
    same(await call("test_simple_text"), "This is a simple text response for testing."),
  );
  await feature("progress", async () => {
    const seen = [];
    const onprogress = ({ progress }) => seen.push(progress);
    await call("test_tool_with_progress", {}, { onprogress });
    return same(seen, [0, 50, 100]); // all of them before the result, in order
  });
  await feature("sample", async () => {
    const text = await call(asks[0], stateless ? {} : { prompt: "The capital of France?" });
    return same(text, stateless ? "Model said: Paris" : "LLM response: Paris");
  });
  await feature("elicit", async () => {
    const text = await call(asks[1], stateless ? {} : { message: "Who are you?" });
    const wanted = 'User response: action=accept, content={"response": "Ada"}';
    return same(text, stateless ? "Hello, Ada!" : wanted);
  });
  await feature("notified", async () => {
    const seen = expected();
    on.changed = () => seen.resolve("tools/list_changed");
    const close = listen ? await listen() : null;
    await call("test_trigger_tool_change");
    const what = await seen.promise;
    await close?.();
    return what;
  });
  await feature("cancel", async () => {
    const controller = new AbortController();
    const name = `${process.pid}`;
    const begun = expected();
    const waiting = call("test_wait", { name }, {
      signal: controller.signal,
      onprogress: begun.resolve,
    }).then(
      () => "answered",
      () => "cancelled",
    );
    await begun.promise;
    controller.abort();
    same(await waiting, "cancelled");
    return same(await call("test_was_cancelled", { name }), "yes");
  });
  if (noResume) {
    none("resume", noResume);
  } else {
    await feature("resume", async () => {
      const seen = [];
      on.log = (what) => seen.push(what);
      const text = await call("test_cut");
      same(text, "answered after the cut");
      return same(seen, ["cut here", "after"]); // each once
    });
  }
}
