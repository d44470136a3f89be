"""``trio-sse listen``: print events as they come, and come back when the stream breaks."""

from __future__ import annotations

import json
import os
import sys
from urllib.parse import urlencode, urlsplit, urlunsplit

import click
import trio

from .._client_errors import ClientError, RequestRefused
from .._client_types import ReadyState, StateChange
from ..client import EventSource, connect
from ..wire import Event, EventTooLarge


@click.command()
@click.argument("url")
@click.option("--topic", "-t", multiple=True, help="Subscribe to this topic; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as a JSON object.")
@click.option("--last-event-id", default="", help="Go on after the event with this id.")
@click.option("--count", "-n", type=click.IntRange(min=1), help="Stop after this many events.")
@click.option(
    "--token",
    envvar="TRIO_SSE_SUBSCRIBE_TOKEN",
    help="The subscribe token.  [env: TRIO_SSE_SUBSCRIBE_TOKEN]",
)
def listen(
    url: str,
    topic: tuple[str, ...],
    as_json: bool,
    last_event_id: str,
    count: int | None,
    token: str | None,
) -> None:
    """Print the events of the stream at URL: any event stream, not only a hub's.

    Each event's data goes to standard output; what happens to the connection, to standard
    error. When the stream breaks, it reconnects, and nothing is printed twice. Ctrl-C ends
    it, and says where it was.

    \b
    trio-sse listen http://127.0.0.1:8000/events
    trio-sse listen http://127.0.0.1:8000/events --topic news --json | jq .data
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        source = connect(
            _with_topics(url, topic),
            headers=headers,
            last_event_id=last_event_id,
            on_state_change=_tell,
        )
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    try:
        trio.run(_print_all, source, as_json, count)
    except KeyboardInterrupt:
        _say(f"stopped; the last event id is {source.last_event_id!r}")
        sys.exit(130)
    except BrokenPipeError:
        # Who reads has had enough. Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except RequestRefused as exc:
        detail = exc.body[:500].decode(errors="replace").strip()
        raise click.ClickException(f"{exc}\n{detail}".strip()) from exc
    except (ClientError, EventTooLarge) as exc:
        raise click.ClickException(str(exc)) from exc


async def _print_all(source: EventSource, as_json: bool, count: int | None) -> None:
    printed = 0
    async with source:
        async for event in source:
            click.echo(_as_json(event) if as_json else _as_text(event))
            printed += 1
            if printed == count:
                return


def _as_json(event: Event) -> str:
    fields = {"id": event.id, "type": event.type, "data": event.data}
    return json.dumps(fields, ensure_ascii=False)


def _as_text(event: Event) -> str:
    named = "" if event.type == "message" else f"{event.type}: "
    return f"{named}{event.data}"


def _with_topics(url: str, topics: tuple[str, ...]) -> str:
    if not topics:
        return url
    parts = urlsplit(url)
    wanted = urlencode([("topic", topic) for topic in topics])
    return urlunsplit(parts._replace(query="&".join(filter(None, [parts.query, wanted]))))


def _tell(change: StateChange) -> None:
    if change.state is ReadyState.OPEN:
        _say("connected")
    elif change.state is ReadyState.CONNECTING and change.wait is not None:
        why = change.cause or "the server ended the stream"
        _say(f"{why}; again in {change.wait:.1f} s")


def _say(text: str) -> None:
    click.echo(f"trio-sse: {text}", err=True)
