"""The fixture as a program: ``python serve_fixture.py HOST:PORT``, or its ``app`` by any server."""

from __future__ import annotations

import sys

import trio
from fixture_server import server
from hypercorn.config import Config

import trio_sse
from trio_sse.mcp import LegacySse, McpApp

app = McpApp(server, path="/mcp", legacy=LegacySse(), retry=100)

if __name__ == "__main__":
    config = Config()
    config.bind = sys.argv[1:]
    trio.run(trio_sse.serve, app, config)
