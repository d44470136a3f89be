"""The application's tasks in one connection, and what they receive.

Hypercorn's own hand messages over in a bounded channel, the last one too: an
application that answers without reading all of a request then waits for itself, and the
connection's reader with it. Here the news that the client has gone always fits, and
what an application that has returned did not read is dropped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, final

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
    """Hypercorn's tasks for one connection, but for where they run and how they fail.

    They are the server's own: a nursery for each connection would be two kilobytes more
    for each stream. What fails in one ends its connection and goes no further.

    Args:
        nursery: where they run.
        failed: is told of a failure that is not the application's own.

    Attributes:
        too_slow: whether the connection was cut because its client took nothing.
        has_failed: whether the application has, which was logged.
        inbox: of the request that came last; in HTTP/1.1, the one there is.
    """

    def __init__(self, nursery: trio.Nursery, failed: Callable[[Exception], object]) -> None:
        super().__init__()
        self._where = nursery
        self._failed = failed
        self._count = 0
        self._done: trio.Event | None = None  # made when somebody waits
        self.too_slow = False
        self.has_failed = False
        self.inbox: Inbox | None = None

    def spawn(self, func: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run ``func`` in a task: what Hypercorn's protocols do beside the application."""
        self._count += 1
        self._where.start_soon(self._run, func, *args)

    async def spawn_app(
        self,
        app: Callable[..., Awaitable[None]],
        config: Config,
        scope: Any,
        send: Callable[[Any], Awaitable[None]],
    ) -> Callable[[Any], Awaitable[None]]:
        """Run ``app`` in a task; what to call with the messages that it is to receive."""
        inbox = self.inbox = Inbox(config.max_app_queue_size, self)
        self._count += 1
        self._where.start_soon(self._run_app, app, config, scope, inbox, send)
        return inbox.put

    async def wait(self) -> None:
        """Wait until all have ended."""
        while self._count:
            self._done = trio.Event()
            await self._done.wait()

    def _end(self, failures: list[Exception]) -> None:
        for failure in failures:
            self._failed(failure)
        self._count -= 1
        if self._done is not None and not self._count:
            self._done.set()

    async def _run(self, func: Callable[..., Awaitable[None]], *args: Any) -> None:
        failures: list[Exception] = []
        try:
            with collect(failures):
                await func(*args)
        finally:
            self._end(failures)

    async def _run_app(
        self,
        app: Callable[..., Awaitable[None]],
        config: Config,
        scope: Any,
        inbox: Inbox,
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        of_app: list[Exception] = []
        failures: list[Exception] = []
        try:
            with collect(failures):
                try:
                    with collect(of_app):
                        await app(
                            scope,
                            inbox.receive,
                            send,
                            trio.to_thread.run_sync,
                            trio.from_thread.run,
                        )
                finally:
                    inbox.close()
                    for failure in of_app:
                        self.has_failed = True
                        # Hypercorn's logger is asynchronous in name, and never waits.
                        await config.log.error("Error in the application", exc_info=failure)  # noqa: ASYNC102
                await send(None)  # Hypercorn's sign that it has returned
        finally:
            self._end(failures)
