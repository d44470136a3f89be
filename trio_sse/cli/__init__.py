"""The ``trio-sse`` command."""

from __future__ import annotations

import sys
from io import TextIOWrapper

import click

from .listen import listen
from .mcp_command import mcp
from .publish import publish
from .serve import serve


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="trio-sse", prog_name="trio-sse")
def main() -> None:
    """Server-sent events: a ready event hub, and two clients for it.

    \b
    In one terminal:      trio-sse serve
    In another:           trio-sse listen http://127.0.0.1:8000/events
    And in a third:       trio-sse publish http://127.0.0.1:8000/events hello

    Or look at http://127.0.0.1:8000/ in a browser.

    And servers of the Model Context Protocol: trio-sse mcp MODULE:SERVER
    """
    # Text goes through unharmed whatever the locale says; the wire is UTF-8.
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


main.add_command(serve)
main.add_command(publish)
main.add_command(listen)
main.add_command(mcp)
