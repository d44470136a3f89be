"""``subscriptions/listen``: a request whose response stays open, as one of the hub's sessions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, final

import trio
from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY, ServerEvent, event_matches
from mcp_types import SERVER_INFO_META_KEY, RequestId, SubscriptionFilter
from pydantic import ValidationError

from ..errors import SessionEnded
from ..hooks import collect
from ..session import EndReason, Session
from ..wire import Event, encode
from ._reply import Outcome, notification_json

LISTEN: Final = "subscriptions/listen"
_ACKNOWLEDGED: Final = "notifications/subscriptions/acknowledged"


@final
class Listener:
    """A client that listens: the server's handler in the session's nursery.

    Attributes:
        outcome: what to answer where the handler had nothing to say.
        said: messages sent so far.
    """

    def __init__(self, id: RequestId, server_info: Mapping[str, Any]) -> None:
        self._id = id
        self._server_info = server_info
        self._session: Session
        self._scope = trio.CancelScope()  # the handler's life, inside the session's
        # What the server has agreed to send; None until it has said so, which comes first.
        self._honored: SubscriptionFilter | None = None
        self._uris: frozenset[str] = frozenset()
        self.said = 0
        self.outcome = Outcome.unavailable(id, "the server has ended the subscription")

    async def run(self, session: Session, serve: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        """The session's handler: run the server's, then answer the request."""
        self._session = session
        session.awaits_drain = True  # a drain is no cancellation: there is an answer to give
        failures: list[Exception] = []
        with self._scope, collect(failures):
            self.outcome = Outcome.of_result(self._id, await serve())
        reason = EndReason.HANDLER_RETURNED
        if failures:
            self.outcome = Outcome.of_failure(self._id, failures[0])
            reason = EndReason("handler-failed", repr(failures[0]))
        elif self._scope.cancelled_caught:
            reason = EndReason.DRAINED
            if self.said:
                self.outcome = self._closed()
        if self.said:
            self._say(self.outcome.text, last=True)
        session.end(reason)

    def close(self) -> None:
        """End the subscription in good order: with the result that clients know it by."""
        self._scope.cancel(reason="the server is shutting down")

    async def emit(self, method: str, params: Mapping[str, Any] | None) -> None:
        """Send what the handler has to say. A client that does not keep up is ended."""
        self._say(notification_json(method, params))
        if method == _ACKNOWLEDGED and params is not None:
            self._acknowledged(params.get("notifications"))
        await trio.lowlevel.checkpoint()

    def wants(self, event: ServerEvent) -> bool:
        """Whether the server has agreed to send it."""
        return self._honored is not None and event_matches(self._honored, self._uris, event)

    def give(self, method: str, params: Mapping[str, Any] | None) -> bool:
        """Send a change notification, as this subscription's; whether it is on its way."""
        given: dict[str, Any] = (params or {}).get("_meta") or {}
        meta = {**given, SUBSCRIPTION_ID_META_KEY: self._id}
        return self._say(notification_json(method, {**(params or {}), "_meta": meta}))

    def _acknowledged(self, honored: object) -> None:
        try:
            self._honored = SubscriptionFilter.model_validate(honored, by_name=False)
        except ValidationError:
            return  # a handler of the server's own making; it gets what it sends itself
        self._uris = frozenset(self._honored.resource_subscriptions or ())

    def _closed(self) -> Outcome:
        meta = {SUBSCRIPTION_ID_META_KEY: self._id, SERVER_INFO_META_KEY: self._server_info}
        return Outcome.of_result(self._id, {"resultType": "complete", "_meta": meta})

    def _say(self, text: str, *, last: bool = False) -> bool:
        event = Event(text, type="message")
        try:
            self._session.send_nowait(event)
        except SessionEnded:
            return False
        except trio.WouldBlock:
            if last:  # it is a notice of the end, and passes
                self._session.deliver_control(encode(event))
            else:
                self._session.end(EndReason.TOO_SLOW)
            return last
        self.said += 1
        return True
