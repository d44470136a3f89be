"""The fixture, as a program: ``python serve_fixture.py HOST:PORT [sse]``; or ``serve_fixture:app``.

With ``sse`` every call is answered by an event stream, even what is done at once.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Final

import trio
from fixture_server import server
from hypercorn.config import Config

import trio_sse
from trio_sse.mcp import LegacySse, McpApp

GRACE: Final = 3.0
answers: Final = "sse" if sys.argv[2:] == ["sse"] else "auto"
app = McpApp(server, path="/mcp", legacy=LegacySse(), retry=100, answers=answers)

if __name__ == "__main__":
    config = Config()
    config.bind = sys.argv[1]
    trio.run(partial(trio_sse.serve, app, config, grace=GRACE))
