"""``trio-sse publish``: one event per argument, or per line of standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import click
import trio

from .._client_errors import ClientError
from .._fetch import request


@click.command()
@click.argument("url")
@click.argument("data", nargs=-1)
@click.option("--topic", "-t", multiple=True, help="Publish to this topic; may be repeated.")
@click.option("--type", "event_type", help="The event type; 'message' if left out.")
@click.option(
    "--retry",
    type=click.IntRange(min=0),
    metavar="MS",
    help="Tell clients to wait this many milliseconds before they reconnect.",
)
@click.option(
    "--token",
    envvar="TRIO_SSE_PUBLISH_TOKEN",
    help="The publish token.  [env: TRIO_SSE_PUBLISH_TOKEN]",
)
@click.option("--quiet", "-q", is_flag=True, help="Do not print the ids of the events.")
def publish(
    url: str,
    data: tuple[str, ...],
    topic: tuple[str, ...],
    event_type: str | None,
    retry: int | None,
    token: str | None,
    quiet: bool,
) -> None:
    """Publish each DATA as an event to the hub at URL.

    Without DATA, each line of standard input is an event. Prints the id of each event
    that the hub has accepted. Stops at the first that it has not: what was printed is
    published, the rest is not.

    \b
    trio-sse publish http://127.0.0.1:8000/events "hello, world"
    trio-sse publish http://127.0.0.1:8000/events --topic news --type headline "It works"
    tail -f app.log | trio-sse publish http://127.0.0.1:8000/events --topic log
    """
    fields: dict[str, Any] = {"topic": list(topic)} if topic else {}
    if event_type is not None:
        fields["type"] = event_type
    if retry is not None:
        fields["retry"] = retry
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if not data and sys.stdin.isatty():
        click.echo("publishing each line that you type; end with Ctrl-D", err=True)
    try:
        trio.run(_publish_all, url, headers, fields, iter(data) if data else None, quiet)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)


async def _publish_all(
    url: str,
    headers: dict[str, str],
    fields: dict[str, Any],
    given: Iterator[str] | None,
    quiet: bool,
) -> None:
    published = 0
    lines = given if given is not None else iter(sys.stdin)
    while (data := await _next(lines, reads_input=given is None)) is not None:
        body = json.dumps({**fields, "data": data}).encode()
        try:
            response = await request("POST", url, headers=headers, body=body)
        except ValueError as exc:
            raise click.UsageError(str(exc)) from exc
        except ClientError as exc:
            _fail(published, f"{exc}\nIs the hub running? Start one with: trio-sse serve")
        if response.status != 201:
            _fail(published, _explain(response.status, response.body))
        published += 1
        if not quiet:
            click.echo(json.loads(response.body)["id"])


async def _next(lines: Iterator[str], *, reads_input: bool) -> str | None:
    if not reads_input:
        return next(lines, None)
    # A thread, because reading may block; given up if Ctrl-C comes meanwhile.
    line: str | None = await trio.to_thread.run_sync(next, lines, None, abandon_on_cancel=True)
    return None if line is None else line.removesuffix("\n").removesuffix("\r")


def _explain(status: int, body: bytes) -> str:
    try:
        detail = str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        detail = body[:200].decode(errors="replace").strip()
    hint = {
        401: "\nGive it with --token or TRIO_SSE_PUBLISH_TOKEN.",
        404: "\nThe URL of a hub ends in /events.",
        405: "\nThe URL of a hub ends in /events.",
    }.get(status, "")
    return f"the hub said {status}: {detail}{hint}"


def _fail(published: int, message: str) -> NoReturn:
    after = f" (after {published} that were published)" if published else ""
    raise click.ClickException(message + after)
