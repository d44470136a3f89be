"""``trio-sse publish``: one event per argument, or per line of standard input."""

from __future__ import annotations

import json
import random
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn, final

import click
import trio

from .._client_errors import ClientError
from .._fetch import request, retry_after
from .._http1 import Response
from .._publication import idempotency_key, key_header
from ..errors import Refused

_FIRST_WAIT: Final = 0.25
_LONGEST_WAIT: Final = 8.0
"""Seconds; what the hub asks for by Retry-After is waited for up to here, too."""
_KEY_BYTES: Final = 16
_PASSING: Final = {502, 503, 504}
"""The hub has no room at the moment, or a proxy does not reach it."""


@final
@dataclass(frozen=True, slots=True)
class _Hub:
    """Where to publish, and how often to try."""

    url: str
    headers: dict[str, str]
    attempts: int


def _check_key(context: click.Context, parameter: click.Parameter, key: str | None) -> str | None:
    try:
        return key if key is None else idempotency_key(key_header(key))
    except Refused as exc:
        raise click.BadParameter(exc.text) from exc


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
@click.option(
    "--attempts",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Times to try each event while the hub is away or says 503, ever longer apart.",
)
@click.option(
    "--idempotency-key",
    callback=_check_key,
    metavar="KEY",
    help="The event's own key: publishing it again with the same key does nothing. "
    "For one DATA; without it every event gets a key of its own.",
)
@click.option("--quiet", "-q", is_flag=True, help="Do not print the ids of the events.")
def publish(url: str, data: tuple[str, ...], **options: Any) -> None:
    """Publish each DATA as an event to the hub at URL.

    Without DATA, each line of standard input is an event. Prints the id of each event
    that the hub has accepted. Stops at the first that it has not: what was printed is
    published, the rest is not.

    If the hub is away, or its answer is lost, the event is sent again, with the same
    idempotency key: it is published once.

    \b
    trio-sse publish http://127.0.0.1:8000/events "hello, world"
    trio-sse publish http://127.0.0.1:8000/events --topic news --type headline "It works"
    tail -f app.log | trio-sse publish http://127.0.0.1:8000/events --topic log
    """
    key = options["idempotency_key"]
    if key is not None and len(data) != 1:
        raise click.UsageError("--idempotency-key is for one event: give one DATA with it")
    fields: dict[str, Any] = {"topic": list(options["topic"])} if options["topic"] else {}
    if options["event_type"] is not None:
        fields["type"] = options["event_type"]
    if options["retry"] is not None:
        fields["retry"] = options["retry"]
    headers = {"Content-Type": "application/json"}
    if options["token"]:
        headers["Authorization"] = f"Bearer {options['token']}"
    hub = _Hub(url, headers, options["attempts"])
    if not data and sys.stdin.isatty():
        click.echo("publishing each line that you type; end with Ctrl-D", err=True)
    try:
        given = iter(data) if data else None
        trio.run(_publish_all, hub, fields, given, key, options["quiet"])
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)


async def _publish_all(
    hub: _Hub,
    fields: dict[str, Any],
    given: Iterator[str] | None,
    key: str | None,
    quiet: bool,
) -> None:
    published = 0
    lines = given if given is not None else iter(sys.stdin)
    while (data := await _next(lines, reads_input=given is None)) is not None:
        body = json.dumps({**fields, "data": data}).encode()
        try:
            response = await _publish(hub, body, key or secrets.token_hex(_KEY_BYTES))
        except ValueError as exc:
            raise click.UsageError(str(exc)) from exc
        except ClientError as exc:
            _fail(published, f"{exc}\nIs the hub running? Start one with: trio-sse serve")
        if response.status != 201:
            _fail(published, _explain(response.status, response.body))
        published += 1
        if not quiet:
            click.echo(json.loads(response.body)["id"])


async def _publish(hub: _Hub, body: bytes, key: str) -> Response:
    """Send one event until there is an answer that will stay; or else the last answer.

    Raises:
        ClientError: of the last attempt.
        ValueError: there is no such request to send.
    """
    headers = {**hub.headers, "Idempotency-Key": key_header(key)}
    wait = _FIRST_WAIT
    for left in reversed(range(hub.attempts)):
        asked = 0.0
        try:
            response = await request("POST", hub.url, headers=headers, body=body)
        except ClientError as exc:
            if not left or exc.for_good:
                raise
            why = str(exc)
        else:
            if not left or response.status not in _PASSING:
                return response
            asked = retry_after(response.headers) or 0.0
            why = _explain(response.status, response.body)
        pause = min(_LONGEST_WAIT, max(asked, wait)) + random.uniform(0, wait)
        click.echo(f"trio-sse: {why}; again in {pause:.1f} s", err=True)
        await trio.sleep(pause)
        wait = min(_LONGEST_WAIT, 2 * wait)
    raise AssertionError("the last attempt returns or raises")


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
