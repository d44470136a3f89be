"""One connection's share of an event source: bytes of one response in, its events out."""

from __future__ import annotations

import math
from typing import Final, final

import trio

from ._client_errors import NetworkError
from ._http1 import Incoming
from .wire import Decoder, Event

_BOM: Final = b"\xef\xbb\xbf"


@final
class EventStream:
    """A response that is being read. It owns the response.

    Args:
        last_event_id: what the events have as their id until the stream sets another, as in
            browsers: an id outlives the connection that brought it.
        idle_timeout: seconds, or ``None``.

    Attributes:
        bytes_received: transfer and content coding undone.
    """

    def __init__(
        self,
        incoming: Incoming,
        *,
        last_event_id: str,
        max_event_size: int,
        idle_timeout: float | None,
    ) -> None:
        self._incoming = incoming
        # Comments and ids alone are wanted too, so that a last event ID is known event by
        # event, whatever has been decoded beyond.
        self._decoder = Decoder(
            max_line_size=max_event_size, max_event_size=max_event_size, every_block=True
        )
        # Feeding the id uses up the decoder's one chance to see a BOM; so the BOM is
        # looked for here, in what has come of it so far. The space is left out, as the server
        # may have done, so that a line that just fitted still does.
        space = " " if last_event_id.startswith(" ") else ""
        self._decoder.feed(f"id:{space}{last_event_id}\n\n".encode())
        self._bom: bytes | None = b""
        self._idle_timeout = math.inf if idle_timeout is None else idle_timeout
        self._quiet = 0.0  # seconds spent waiting since the last byte
        self._opened_at = trio.current_time()
        self.bytes_received = 0

    @property
    def reconnection_time(self) -> float | None:
        """Seconds, as the stream last set it; at once, not with the block's end (9.2.6)."""
        retry = self._decoder.retry
        return None if retry is None else retry / 1000

    @property
    def age(self) -> float:
        """Seconds that the connection has been open."""
        return trio.current_time() - self._opened_at

    async def read(self) -> list[Event] | None:
        """Read once; the events that completes, every block one. ``None``: properly ended.

        Raises:
            NetworkError: the connection broke, or was idle for too long.
            ProtocolError: as for `Incoming.receive`.
            EventTooLarge: as for `Decoder.feed`.

        Cancelled, it has lost nothing, and the idle time so far counts.
        """
        start = trio.current_time()
        data: bytes | None = None
        came = False
        try:
            with trio.move_on_after(max(0.0, self._idle_timeout - self._quiet)):
                data = await self._incoming.receive()
                came = True
        finally:
            self._quiet = 0.0 if came else self._quiet + trio.current_time() - start
        if not came:
            raise NetworkError(
                f"{self._incoming.url.shown}: nothing came for {self._idle_timeout:g} seconds"
            )
        if data is None:
            return None
        self.bytes_received += len(data)
        if self._bom is not None:
            data = self._past_bom(self._bom + data)
        return self._decoder.feed(data)

    def _past_bom(self, head: bytes) -> bytes:
        if len(head) < len(_BOM) and _BOM.startswith(head):
            self._bom = head
            return b""
        self._bom = None
        return head.removeprefix(_BOM)

    async def aclose(self) -> None:
        """As `Incoming.aclose`."""
        await self._incoming.aclose()
