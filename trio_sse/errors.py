"""What can go wrong, split by whose fault it is.

Yours: `RuntimeError`, `ValueError` (of them `KeyReused`), `TypeError`, with the wrong call
and the right one. The peer's: `EventTooLarge` (in `trio_sse.wire`). The disk's: `UnusableLog`.
Nobody's, things simply end: `SessionEnded`, `HubClosed`; or will be there again:
`LogUnavailable`. Said on purpose: `Refused`.
"""

from __future__ import annotations

from typing import final


@final
class Refused(Exception):
    """Raise this in a register hook, or in ``authorize``, to turn a request down.

    The client gets a proper HTTP error, before any 200.

    Args:
        status: the HTTP status, 400 to 599.
        text: what to tell the client.
        retry_after: seconds, for the ``Retry-After`` header.
        headers: further response headers.
    """

    def __init__(
        self,
        status: int = 403,
        text: str = "refused",
        *,
        retry_after: int | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        if not 400 <= status <= 599:
            raise ValueError(
                f"Refused({status}): a refusal is an HTTP error, 400 to 599, as in Refused(403)"
            )
        super().__init__(status, text)
        self.status = status
        self.text = text
        self.retry_after = retry_after
        self.headers = headers

    def __str__(self) -> str:
        return f"{self.status}: {self.text}"


@final
class SessionEnded(Exception):
    """The session to send to has ended; ``session.end_reason`` says why."""


@final
class HubClosed(Exception):
    """The hub is not open: not yet, not any more, or because it failed (see ``__cause__``)."""


@final
class LogUnavailable(Exception):
    """The event log cannot take events at the moment; what it holds is still there."""


@final
class UnusableLog(Exception):
    """What is to be opened is not an event log that can be used; it was left as it is."""


@final
class KeyReused(ValueError):
    """An idempotency key came again, with another event.

    Attributes:
        key: the idempotency key.
        event_id: the event that it belongs to.
    """

    def __init__(self, key: str, event_id: str) -> None:
        super().__init__(key, event_id)
        self.key = key
        self.event_id = event_id

    def __str__(self) -> str:
        return (
            f"the idempotency key {self.key!r} belongs to event {self.event_id}, which is "
            "another one: a key is for one event and its repetitions"
        )
