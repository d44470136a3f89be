// The TypeScript SDK's first line: node typescript_1.mjs http|sse URL
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import {
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  LoggingMessageNotificationSchema,
  ToolListChangedNotificationSchema,
} from "@modelcontextprotocol/sdk/types.js";
import { ENTERED, SAMPLED, all, feature } from "./features.mjs";

const [how, url] = process.argv.slice(2);
const on = { changed: () => {}, log: () => {} };
const client = new Client(
  { name: "matrix", version: "1" },
  { capabilities: { sampling: {}, elicitation: {} } },
);
client.setRequestHandler(CreateMessageRequestSchema, async () => SAMPLED);
client.setRequestHandler(ElicitRequestSchema, async (request) => ENTERED(request));
client.setNotificationHandler(ToolListChangedNotificationSchema, () => on.changed());
client.setNotificationHandler(LoggingMessageNotificationSchema, ({ params }) =>
  on.log(params.data),
);
const Transport = how === "sse" ? SSEClientTransport : StreamableHTTPClientTransport;
const transport = new Transport(new URL(url));

await feature("connect", async () => {
  await client.connect(transport);
  return transport.protocolVersion ?? "";
});
await all({
  client,
  on,
  call: async (name, args, options) =>
    (await client.callTool({ name, arguments: args }, undefined, options)).content[0].text,
  noResume: how === "sse" && "HTTP+SSE has no event ids",
});
await feature("end", async () => {
  if (how !== "sse") await transport.terminateSession();
  await client.close();
});
process.exit(0);
