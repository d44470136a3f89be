"""Asking Redis: where coredis and its errors end, and `Trouble` begins."""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, final

import trio
from coredis.exceptions import BusyLoadingError, NoScriptError, ResponseError

from ._redis_scripts import Keys, Script
from ._redis_target import AnyClient, Target

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

LAST: Final = (1 << 64) - 1
"""The second half of an entry's id that none is greater than."""


@final
class Trouble(Exception):
    """Redis is away, or refuses.

    Attributes:
        refused: it has answered, so that nothing was done.
    """

    def __init__(self, text: str, *, refused: bool) -> None:
        super().__init__(text)
        self.refused = refused


@final
class Link:
    """A client of Redis, for one task or a few, until the first `Trouble`.

    Then it is to be left, and another opened: a client that has lost a connection, or
    was cancelled while it waited, may never give back the place it had in its pool.

    Args:
        client: entered.
        target: where that is, for messages.
        timeout: seconds for an answer; for what blocks, in addition.
    """

    def __init__(self, client: AnyClient, target: Target, timeout: float) -> None:
        self._client = client
        self._target = target
        self._timeout = timeout

    async def run(self, script: Script, keys: Keys, *args: str | bytes | int) -> Any:
        """Its answer.

        Raises:
            Trouble: there is none, or an error.
        """
        with _translated(self._target), trio.fail_after(self._timeout):
            try:
                return await self._client.evalsha(script.sha, list(keys), list(args))
            except NoScriptError:
                return await self._client.eval(script.text, list(keys), list(args))

    async def follow(
        self, places: Mapping[str, int], count: int, block: float
    ) -> Mapping[bytes, list[Any]]:
        """Up to ``count`` entries of each stream that follow the number given for it.

        Waits up to ``block`` seconds for the first.
        """
        streams: dict[str | bytes, Any] = {key: f"{n}-{LAST}" for key, n in places.items()}
        with _translated(self._target), trio.fail_after(self._timeout + block):
            found: Any = await self._client.xread(
                streams, count=count, block=max(1, int(block * 1000))
            ).raw(False)
        return found or {}

    async def entries(self, key: str, first: int, last: int) -> list[Any]:
        """The entries of a stream that have these numbers, or some between."""
        with _translated(self._target), trio.fail_after(self._timeout):
            found: Any = await self._client.xrange(key, str(first), str(last)).raw(False)
        return found or []


@asynccontextmanager
async def open_link(target: Target, patience: float) -> AsyncGenerator[Link, None]:
    """A `Link`, closed on leaving; ``patience`` is its ``timeout``.

    Raises:
        Trouble: from the body; or it cannot be opened.
    """
    failure: Trouble | None = None
    with _translated(target):
        async with target.client() as client:
            try:
                yield Link(client, target, patience)
            except Trouble as exc:
                failure = exc  # coredis would put it into groups
    if failure is not None:
        raise failure


@contextmanager
def _translated(target: Target) -> Generator[None, None, None]:
    """Everything that comes from coredis is trouble: it has few errors of its own kind."""
    try:
        yield
    except Trouble:
        raise
    except BaseExceptionGroup as group:
        trouble, others = group.split(Exception)
        if others is not None:  # cancelled: then it does not matter what else
            raise others from None
        raise _trouble(trouble or group, target) from group
    except Exception as exc:
        raise _trouble(exc, target) from exc


def _trouble(exc: BaseException, target: Target) -> Trouble:
    exc = _first(exc)
    refused = isinstance(exc, (ResponseError, BusyLoadingError))
    if isinstance(exc, (trio.TooSlowError, TimeoutError)):
        text = "no answer in time"
    else:
        text = str(exc) or type(exc).__name__
    if not refused and exc.__cause__ is not None and str(exc.__cause__):
        text = f"{text}: {exc.__cause__}"
    return Trouble(target.redacted(f"Redis at {target}: {text}"), refused=refused)


def _first(exc: BaseException) -> BaseException:
    members: tuple[BaseException, ...] = getattr(exc, "exceptions", ())
    return _first(members[0]) if members else exc


@final
class Pause:
    """How long to wait before the next attempt: longer each time, and never all at once."""

    def __init__(self, first: float = 0.05, longest: float = 1.0) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def reset(self) -> None:
        self._next = self._first

    async def wait(self) -> None:
        await trio.sleep(self._next * random.uniform(0.5, 1.0))
        self._next = min(self._longest, self._next * 2)
