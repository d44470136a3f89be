"""The ready event hub that ``trio-sse serve`` runs: one ASGI application, all its paths."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TextIO, final

import trio

from . import metrics
from ._access import Access
from ._respond import (
    NO_STORE,
    ASGIApp,
    Receive,
    Scope,
    Send,
    respond,
    respond_json,
    respond_problem,
)
from .asgi import Endpoint
from .console import Console
from .errors import Refused
from .hub import Hub

EVENTS_PATH: Final = "/events"


@final
class Service:
    """Subscribe, publish, watch.

    ``/events`` is the `Endpoint`; ``/healthz`` says 200, with "degraded" and why while
    the log is away, or 503 while draining;
    ``/metrics`` is for Prometheus; ``/`` is the console.

    Args:
        endpoint: what answers at ``/events``.
        access: who may do what; the endpoint's own.
        console: whether ``/`` is there.
    """

    def __init__(self, endpoint: Endpoint, access: Access, *, console: bool = True) -> None:
        self.hub: Hub = endpoint.hub
        self._endpoint = endpoint
        self._watching = Watching(
            self.hub, Console(self.hub, access, events_path=EVENTS_PATH) if console else None
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        if scope["type"] != "http":
            await self._endpoint(scope, receive, send)
        elif scope["path"] == EVENTS_PATH:
            await self._endpoint.answer(scope, receive, send)
        elif (watching := self._watching.find(scope["path"])) is not None:
            await watching(scope, receive, send)
        else:
            known = ", ".join([EVENTS_PATH, *self._watching.paths])
            await respond_problem(
                send,
                Refused(404, f"there is nothing here; there is {known}"),
                head=scope["method"] == "HEAD",
            )


@final
class Watching:
    """What a service has beside what it is for: health, metrics and a console.

    Args:
        hub: what is watched.
        console: what answers at ``/``, if anything does.

    Attributes:
        paths: where things are, to tell who is lost.
    """

    def __init__(self, hub: Hub, console: Console | None) -> None:
        self.hub = hub
        self._console = console
        self._answers: dict[str, ASGIApp] = {
            "/healthz": self._health,
            "/metrics": self._metrics,
        }
        self.paths: Sequence[str] = [*self._answers, *(["/"] if console else [])]

    def find(self, path: str) -> ASGIApp | None:
        """What answers at ``path``."""
        if self._console is not None and self._console.owns(path):
            return self._console.answer
        return self._answers.get(path)

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = self.hub.state
        health: dict[str, object] = {"status": state, "sessions": len(self.hub.sessions)}
        if state == "open":
            # With the log away, sessions stay and new ones are taken: no reason to send
            # clients elsewhere.
            problem = self.hub.log.problem
            health["status"] = "ok" if problem is None else "degraded"
            if problem is not None:
                health["log"] = problem
        status = 200 if state == "open" else 503
        await self._read_only(
            scope, send, lambda head: respond_json(send, status, health, head=head)
        )

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._read_only(
            scope,
            send,
            lambda head: respond(
                send,
                200,
                metrics.render(self.hub),
                content_type=metrics.CONTENT_TYPE,
                headers=[NO_STORE],
                head=head,
            ),
        )

    async def _read_only(
        self, scope: Scope, send: Send, answer: Callable[[bool], Awaitable[None]]
    ) -> None:
        method = scope["method"]
        if method in ("GET", "HEAD"):
            await answer(method == "HEAD")
        else:
            await respond_problem(
                send, Refused(405, f"{method} is not for here", headers=(("allow", "GET, HEAD"),))
            )


async def report_drain(hub: Hub, grace: float, out: TextIO = sys.stderr) -> None:
    """Wait until ``hub`` drains, then count its sessions down, on one line of a terminal."""
    await hub.wait_draining()
    shown = -1
    closed = False
    terminal = out.isatty()
    while not closed:
        left = len(hub.sessions)
        if left != shown and (terminal or shown < 0):
            shown = left
            print(
                f"\r\033[Kdraining: {left} sessions left, {grace:g} s at most"
                if terminal
                else f"draining: {left} sessions, {grace:g} s at most",
                end="" if terminal else "\n",
                file=out,
                flush=True,
            )
        with trio.move_on_after(0.1):
            await hub.wait_closed()
            closed = True
    ended = sum(hub.statistics().unregistered.values())
    print("\r\033[K" if terminal else "", end="", file=out)
    print(f"drained: {ended} sessions in all came and went, each once", file=out, flush=True)
