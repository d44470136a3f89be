// The TypeScript SDK's second line: node typescript_2.mjs legacy|modern|sse URL
import {
  Client,
  SSEClientTransport,
  StreamableHTTPClientTransport,
} from "@modelcontextprotocol/client";
import { ENTERED, SAMPLED, all, feature } from "./features.mjs";

const [how, url] = process.argv.slice(2);
const stateless = how === "modern";
const on = { changed: () => {}, log: () => {} };
const client = new Client(
  { name: "matrix", version: "1" },
  {
    capabilities: { sampling: {}, elicitation: {} },
    versionNegotiation: { mode: stateless ? "auto" : "legacy" },
  },
);
client.setRequestHandler("sampling/createMessage", async () => SAMPLED);
client.setRequestHandler("elicitation/create", async (request) => ENTERED(request));
client.setNotificationHandler("notifications/tools/list_changed", () => on.changed());
client.setNotificationHandler("notifications/message", ({ params }) => on.log(params.data));
const Transport = how === "sse" ? SSEClientTransport : StreamableHTTPClientTransport;
const transport = new Transport(new URL(url));
let subscription;

await feature("connect", async () => {
  await client.connect(transport);
  const version = client.getNegotiatedProtocolVersion();
  if (stateless !== (version === "2026-07-28")) throw new Error(`negotiated ${version}`);
  return version;
});
await all({
  client,
  on,
  stateless,
  call: async (name, args, options) =>
    (await client.callTool({ name, arguments: args }, options)).content[0].text,
  listen: stateless && (async () => {
    subscription = await client.listen({ toolsListChanged: true });
  }),
  noResume:
    { sse: "HTTP+SSE has no event ids", modern: "the revision has no resuming" }[how] ?? false,
});
await feature("end", async () => {
  if (stateless) await subscription.close();
  if (how === "legacy") await transport.terminateSession();
  await client.close();
});
process.exit(0);
