"""The application's tasks in one connection, and what they receive.

Hypercorn's own hand messages over in a bounded channel, the last one too: an
application that answers without reading all of a request then waits for itself, and the
connection's reader with it. Here the news that the client has gone always fits, and
what an application that has returned did not read is dropped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, cast, final

import trio
from hypercorn.config import Config
from hypercorn.trio.task_group import TaskGroup

from ._respond import Message
from .asgi import TOO_SLOW
from .hooks import collect

_DISCONNECTS: Final = ("http.disconnect", "websocket.disconnect")


@final
class Inbox:
    """Messages for one application, in order."""

    __slots__ = ("_changed", "_closed", "_limit", "_messages", "_tasks", "_when_gone")

    def __init__(self, limit: int, tasks: AppTasks | None = None) -> None:
        self._limit = limit
        self._tasks = tasks
        self._messages: list[Message] = []  # few: `limit` is ten
        self._closed = False  # nobody reads any more
        self._when_gone: Callable[[bool], None] | None = None  # who has had enough of reading
        self._changed: trio.lowlevel.ParkingLot | None = None  # made when first needed

    async def put(self, message: Message) -> None:
        """Add ``message``, waiting for room, but neither for a disconnect nor in vain."""
        if message["type"] in _DISCONNECTS:
            if self._tasks is not None and self._tasks.too_slow:
                message[TOO_SLOW] = True
        else:
            await trio.lowlevel.checkpoint()
            while len(self._messages) >= self._limit and not self._closed:
                await self._wait_for_change()
        if self._closed:
            return
        self._messages.append(message)
        self._wake()
        if self._when_gone is not None:
            self.when_gone(self._when_gone)

    async def receive(self) -> Message:
        """The next message. A disconnect is the last, and is given as often as asked."""
        await trio.lowlevel.checkpoint()
        while not self._messages:
            await self._wait_for_change()
        if self._messages[0]["type"] in _DISCONNECTS:
            return self._messages[0]
        self._wake()
        return self._messages.pop(0)

    def when_gone(self, call: Callable[[bool], None]) -> None:
        """Instead of reading: drop what comes, and call ``call`` once at a disconnect."""
        gone = [message for message in self._messages if message["type"] in _DISCONNECTS]
        self._messages.clear()
        self._when_gone = None if gone else call
        self._wake()
        if gone:
            self._closed = True
            call(gone[0].get(TOO_SLOW, False))

    async def _wait_for_change(self) -> None:
        if self._changed is None:
            self._changed = trio.lowlevel.ParkingLot()
        await self._changed.park()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.unpark_all()

    def close(self) -> None:
        self._closed = True
        self._when_gone = self._tasks = None  # no cycle is left for the collector
        self._wake()


@final
class AppTasks(TaskGroup):
    """Hypercorn's tasks for one connection, but for how they receive and how they fail.

    Attributes:
        too_slow: whether the connection was cut because its client took nothing.
        has_failed: whether the application has, which was logged.
        inbox: of the request that came last; in HTTP/1.1, the one there is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.too_slow = False
        self.has_failed = False
        self.inbox: Inbox

    async def spawn_app(
        self,
        app: Callable[..., Awaitable[None]],
        config: Config,
        scope: Any,
        send: Callable[[Any], Awaitable[None]],
    ) -> Callable[[Any], Awaitable[None]]:
        """Run ``app`` in a task; what to call with the messages that it is to receive."""
        inbox = self.inbox = Inbox(config.max_app_queue_size, self)
        cast("Any", self).spawn(self._run, app, config, scope, inbox, send)
        return inbox.put

    async def _run(
        self,
        app: Callable[..., Awaitable[None]],
        config: Config,
        scope: Any,
        inbox: Inbox,
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        failures: list[Exception] = []
        try:
            with collect(failures):
                await app(scope, inbox.receive, send, trio.to_thread.run_sync, trio.from_thread.run)
        finally:
            inbox.close()
            for failure in failures:
                self.has_failed = True
                # Hypercorn's logger is asynchronous in name, and never waits.
                await config.log.error("Error in the application", exc_info=failure)  # noqa: ASYNC102
        await send(None)  # Hypercorn's sign that it has returned
