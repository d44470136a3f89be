"""What an application attaches to a session's life, contained and bounded.

A hook is a function or a coroutine function of the session. What an unregister or error
hook raises is reported and goes no further; each hook has a bounded time. A plain
function that blocks cannot be bounded: it holds up the whole Trio run.
"""

from __future__ import annotations

import inspect
import logging
import math
import sys
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, final

import trio

from .errors import Refused

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    from .session import EndReason, Session

log = logging.getLogger("trio_sse")

RegisterHook = Callable[["Session"], "Awaitable[Any] | Any"]
UnregisterHook = Callable[["Session", "EndReason"], "Awaitable[Any] | Any"]
ErrorHook = Callable[["Session", Exception], "Awaitable[Any] | Any"]
Around = Callable[["Session"], AbstractAsyncContextManager[Any]]

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_TIMEOUT: Final = 5.0


@final
class Hooks:
    """The hooks of a hub. Each method takes a hook, and returns it: use them as decorators.

    Args:
        timeout: seconds that one hook may take.

    Raises:
        ValueError: if ``timeout`` is not a positive, finite number.
    """

    def __init__(self, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        if not 0 < timeout < math.inf:
            raise ValueError(
                f"Hooks(timeout={timeout}): a hook's time is bounded, in seconds, "
                "as in Hooks(timeout=5)"
            )
        self.timeout = timeout
        self._register: list[RegisterHook] = []
        self._unregister: list[UnregisterHook] = []
        self._error: list[ErrorHook] = []
        self._around: list[Around] = []

    def __repr__(self) -> str:
        return (
            f"<Hooks register={len(self._register)} unregister={len(self._unregister)} "
            f"error={len(self._error)} around={len(self._around)} timeout={self.timeout}>"
        )

    def on_register(self, hook: F) -> F:
        """Call ``hook(session)`` before the client is answered, in the order added.

        Raising `Refused` turns the client down with that status; any other exception,
        or too much time, with 500. Once begun, registration is not interrupted by the
        client's leaving: that takes effect right after.
        """
        self._register.append(hook)
        return hook

    def on_unregister(self, hook: F) -> F:
        """Call ``hook(session, reason)`` exactly once for each session that registered.

        In reverse order, after the session has left the registry and cannot produce any
        more; on every path, shielded from cancellation.
        """
        self._unregister.append(hook)
        return hook

    def on_error(self, hook: F) -> F:
        """Call ``hook(session, exception)`` for what a handler or a hook raises."""
        self._error.append(hook)
        return hook

    def around(self, manager: F) -> F:
        """Keep the async context manager ``manager(session)`` around each session.

        It is entered before the register hooks. What follows its ``yield`` is run as an
        unregister hook is; if registration fails after it was entered, the exception is
        raised at the ``yield``. It may hold a nursery.
        """
        self._around.append(manager)
        return manager

    async def register(self, session: Session) -> None:
        """Run the register hooks; what they raise comes out of here, without groups."""
        for hook in self._register:
            failures: list[Exception] = []
            try:
                with self._bound(failures, "register hook", hook):
                    await _call(hook, session)
            except BaseException:
                await self._report_cancelled(session, failures)  # noqa: ASYNC102  # it shields
                raise
            if failures:
                raise _refusal(failures)

    async def unregister(self, session: Session, reason: EndReason) -> None:
        """Run all the unregister hooks. To be called under a shield; raises nothing."""
        for hook in reversed(self._unregister):
            failures: list[Exception] = []
            with self._bound(failures, "unregister hook", hook):
                await _call(hook, session, reason)
            await self.error(session, *failures)

    async def error(self, session: Session, *failures: Exception) -> None:
        """Log ``failures`` and tell the error hooks. Bounded; raises nothing."""
        for failure in failures:
            log.error("session %s: %r", session.short_id, failure, exc_info=failure)
            for hook in self._error:
                again: list[Exception] = []
                with self._bound(again, "error hook", hook):
                    await _call(hook, session, failure)
                for exc in again:
                    log.error("error hook %s failed", _name(hook), exc_info=exc)

    async def _report_cancelled(self, session: Session, failures: list[Exception]) -> None:
        """Report what came together with the cancellation of the hub: nobody else will."""
        with trio.CancelScope(shield=True):  # bounded: each hook is
            await self.error(session, *failures)

    @contextmanager
    def _bound(
        self, failures: list[Exception], what: str, hook: object
    ) -> Generator[None, None, None]:
        """Contain what ``hook`` raises, and that it takes too long."""
        with trio.move_on_after(self.timeout) as bound, collect(failures):
            yield
        if bound.cancelled_caught:
            failures.append(self._took_too_long(what, hook))

    @property
    def has_managers(self) -> bool:
        """Whether `around_session` does anything."""
        return bool(self._around)

    async def around_session(
        self,
        session: Session,
        live: Callable[[], Awaitable[None]],
        managers: Sequence[Around] | None = None,
    ) -> None:
        """Call ``live()`` inside all the context managers.

        What ``live`` raises (its registration failed) is raised at each ``yield`` and
        then comes out of here, as does a manager's failure to enter. What a manager
        raises on its way out is reported instead. That the hub is cancelled, or an outer
        manager, does not keep one from leaving in order.
        """
        if managers is None:
            managers = self._around
        if not managers:
            await live()
            return
        manager, *inner = managers
        failures: list[Exception] = []
        cause: Exception | None = None
        entered = False
        # One scope around both halves, because a manager may hold a scope or a nursery
        # of its own between them; it has a deadline in each half, and none in between.
        bound = trio.CancelScope(deadline=trio.current_time() + self.timeout)
        try:
            with bound, collect(failures):
                async with manager(session):
                    bound.deadline = math.inf
                    entered = True
                    try:
                        await self.around_session(session, live, inner)
                    except Exception as exc:
                        cause = exc
                        raise
                    finally:
                        bound.shield = True
                        bound.deadline = trio.current_time() + self.timeout
        except BaseException:
            await self._report_cancelled(session, failures)  # noqa: ASYNC102  # it shields
            raise
        if bound.cancelled_caught:
            failures.append(self._took_too_long("context manager", manager))
        if not entered:
            raise _refusal(failures)
        with trio.CancelScope(shield=True):  # bounded: each hook is
            await self.error(session, *(exc for exc in failures if exc is not cause))
        if cause is not None:
            raise cause

    def _took_too_long(self, what: str, hook: object) -> trio.TooSlowError:
        return trio.TooSlowError(f"{what} {_name(hook)} took more than {self.timeout} s")


@final
class collect:  # noqa: N801  # used like a function, as contextlib's own are
    """Contain the exceptions of a block, also those that come together with `Cancelled`.

    They are put into ``failures``, without the groups they came in. It differs from
    ``exceptiongroup.catch`` in what it leaves behind when there are none: a group of
    `Cancelled` passes as it is, rather than as a copy that keeps its own traceback, and
    with it all that the session had, until the cyclic collector comes.
    """

    __slots__ = ("_failures",)

    def __init__(self, failures: list[Exception]) -> None:
        self._failures = failures

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        if not isinstance(exc, BaseExceptionGroup):
            if isinstance(exc, Exception):
                self._failures.append(exc)
            return isinstance(exc, Exception)
        ours, rest = cast("BaseExceptionGroup[BaseException]", exc).split(Exception)
        if ours is not None:
            self._take(ours)
            if rest is not None:
                raise rest from exc.__cause__
        return rest is None

    def _take(self, group: BaseExceptionGroup[Exception]) -> None:
        for exc in group.exceptions:
            if isinstance(exc, BaseExceptionGroup):
                self._take(exc)
            else:
                self._failures.append(exc)


def _refusal(failures: list[Exception]) -> Exception:
    return next((exc for exc in failures if isinstance(exc, Refused)), failures[0])


async def _call(hook: Callable[..., Any], *args: object) -> None:
    result = hook(*args)
    if inspect.isawaitable(result):
        await result


def _name(hook: object) -> str:
    return getattr(hook, "__qualname__", None) or repr(hook)
