"""What an application attaches to the requests that clients make."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

from ..hooks import collect
from ..session import Request

if TYPE_CHECKING:
    from ._session import McpSession

log: Final = logging.getLogger("trio_sse")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A JSON-RPC request of a client's.

    Attributes:
        method: as in ``"tools/call"``.
        params: as they came.
        request: the HTTP request that brought it.
        session: ``None`` where the protocol has none.
    """

    method: str
    params: Mapping[str, Any] | None
    request: Request
    session: McpSession | None


BeforeHook = Callable[[Call], "Awaitable[Any] | Any"]
SuccessHook = Callable[[Call, dict[str, Any]], "Awaitable[Any] | Any"]
ErrorHook = Callable[[Call, Exception], "Awaitable[Any] | Any"]

F = TypeVar("F", bound=Callable[..., Any])


@final
class RequestHooks:
    """Hooks around each request. Each method takes a hook, and returns it: use as decorators.

    They run in the request's own task, and are cancelled with it. For hooks on sessions see
    `trio_sse.Hooks`, which the hub takes.
    """

    def __init__(self) -> None:
        self._before: list[BeforeHook] = []
        self._success: list[SuccessHook] = []
        self._error: list[ErrorHook] = []

    def before(self, hook: F) -> F:
        """Call ``hook(call)`` before the request is handled.

        What it raises is the request's answer; raise the SDK's ``MCPError`` to choose it.
        """
        self._before.append(hook)
        return hook

    def on_success(self, hook: F) -> F:
        """Call ``hook(call, result)`` before the result is sent. What it raises is logged."""
        self._success.append(hook)
        return hook

    def on_error(self, hook: F) -> F:
        """Call ``hook(call, exception)`` before the error is sent. What it raises is logged."""
        self._error.append(hook)
        return hook

    async def around(
        self, call: Call, handle: Callable[[], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        """``await handle()`` with the hooks around it."""
        try:
            for hook in self._before:
                await _call(hook, call)
            result = await handle()
        except Exception as exc:
            await _tell(self._error, call, exc)  # noqa: ASYNC120  # cancelled, it is too late
            raise
        if self._success:
            await _tell(self._success, call, result)
        return result


async def _call(hook: Callable[..., Any], *args: object) -> None:
    result = hook(*args)
    if inspect.isawaitable(result):
        await result


async def _tell(hooks: list[Any], *args: object) -> None:
    for hook in hooks:
        failures: list[Exception] = []
        with collect(failures):
            await _call(hook, *args)
        for failure in failures:
            log.error("request hook %r failed", hook, exc_info=failure)
