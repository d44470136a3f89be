// better-sse on Node's own HTTP server, with a channel, as its documentation has it.
import { createServer } from "node:http";
import { createChannel, createSession } from "better-sse";

const channel = createChannel();

// Not JSON once more: data is a string already.
const options = { serializer: (data) => data, retry: null };

async function blast(params) {
  const n = Number(params.get("n") ?? 500);
  const size = Number(params.get("size") ?? 128);
  const rate = Number(params.get("rate") ?? 0);
  const began = performance.now();
  for (let s = 1; s <= n; s++) {
    if (rate > 0) {
      const early = began + ((s - 1) * 1000) / rate - performance.now();
      if (early > 0) await new Promise((done) => setTimeout(done, early));
    }
    const t = BigInt(Math.round((performance.timeOrigin + performance.now()) * 1000)) * 1000n;
    channel.broadcast(`t=${t} s=${s} `.padEnd(size, "x"));
  }
}

const server = createServer(async (req, res) => {
  const url = new URL(req.url, "http://127.0.0.1");
  if (req.method === "GET") {
    channel.register(await createSession(req, res, options));
    return;
  }
  if (url.pathname === "/blast") {
    res.writeHead(202).end();
    await blast(url.searchParams);
    return;
  }
  let body = "";
  for await (const piece of req) body += piece;
  channel.broadcast(JSON.parse(body).data);
  res.writeHead(202).end();
});

server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 2048 });
process.on("SIGTERM", () => process.exit(0));
