"""The ``text/event-stream`` format, both ways: `Event`, `encode`, `Decoder`.

No I/O and no Trio in here: bytes in, events out, and the reverse. The sections
named below are those of the WHATWG HTML standard, chapter 9.2, "Server-sent
events".

The decoder's cost is proportional to what it is fed, whatever that is. Three
decisions make it so. Line endings are normalised a chunk at a time, in C, so that
everything after that sees LF only. What is not finished is kept as a list of parts,
which are joined when the end has come. And a block is looked at as a whole when it is
small, else line by line, but never both ways more than once.
"""

from __future__ import annotations

import codecs
import re
from typing import Final, NoReturn, final

from ._event import DEFAULT_TYPE, RETRY_DIGITS, Event, encode, unchecked_event

__all__ = ["DEFAULT_MAX_SIZE", "Decoder", "Event", "EventTooLarge", "encode"]

DEFAULT_MAX_SIZE: Final = 1 << 20
"""Bytes: the largest line, and the largest event, that a `Decoder` accepts."""

_BLOCK: Final = re.compile(
    # the usual block: id and type in either order, data, retry
    r"(?:event: ?([^ \n][^\n]*)\n)?"
    r"(?:id: ?([^ \n\0][^\n\0]*)\n)?"
    r"(?:event: ?([^ \n][^\n]*)\n)?"
    r"data:(?: |(?! ))([^\n]*)\n((?:data: [^\n]*\n)*)"
    rf"(?:retry: ?([0-9]{{1,{RETRY_DIGITS}}})\n)?"
    r"\n"
    # any other
    r"|((?:[^\n]+\n)*\n)"
)
"""The next of several whole blocks. No text can be matched by it in two ways that both
have to be tried, other than a fixed number of times: that is what keeps it linear."""

_AT_ONCE: Final = 1 << 19
"""Bytes: the most that is matched at once; the expression needs memory for each line."""


class EventTooLarge(Exception):
    """The peer sent a line or an event larger than the `Decoder` was told to accept.

    The decoder is of no further use; `Decoder.feed` raises this again.

    Attributes:
        events: the events that were complete before the one that is too large.
    """

    def __init__(self, message: str, events: list[Event]) -> None:
        super().__init__(message)
        self.events = events


@final
class Decoder:
    """The incremental parser of 9.2.6: feed it bytes as they come, take events.

    Feeding is linear in the number of bytes, however they are cut and whatever they
    contain. An event that the stream's end interrupts is dropped, as the standard
    has it: there is nothing to call at the end. A `retry` of more than 15 digits is
    ignored, which is the one thing that the standard has otherwise.

    Args:
        max_line_size: bytes, terminator not counted.
        max_event_size: bytes of an event's data.
        every_block: also return what the standard dispatches nothing for: a block
            that has only comments, a `retry` or an `id` comes back as an `Event`
            whose ``data`` is ``None``.

    Sizes are those of the text in UTF-8; a byte that is not UTF-8 becomes a replacement
    character and counts as that. Comments are for clients to ignore, so they never end
    a stream: past ``max_event_size`` bytes of them in one block the rest is not kept.
    """

    def __init__(
        self,
        *,
        max_line_size: int = DEFAULT_MAX_SIZE,
        max_event_size: int = DEFAULT_MAX_SIZE,
        every_block: bool = False,
    ) -> None:
        if max_line_size < 1 or max_event_size < 1:
            raise ValueError(
                f"Decoder(max_line_size={max_line_size}, max_event_size={max_event_size}): "
                "both must be at least 1 byte, as in Decoder(max_event_size=1_000_000)"
            )
        self._max_line = max_line_size
        self._max_event = max_event_size
        # Characters: at UTF-8's widest, twice as many break no bound.
        self._small = min(max_line_size, max_event_size, _AT_ONCE) // 8
        self._every_block = every_block
        self._error: str | None = None
        # Of the stream:
        self._at_start = True  # no character yet, so a BOM may come (9.2.5)
        self._undecoded = b""  # the beginning of a character
        self._after_cr = False  # the text so far ended in CR: an LF now is its other half
        self._last_event_id = ""
        self._retry: int | None = None
        # Of the block that is not finished, while it is small:
        self._lines: list[str] = []  # whole lines, nothing done with them yet
        self._small_size = 0  # characters here and in _parts
        # Of the line that is not finished:
        self._parts: list[str] = []
        # Of the block that is not finished, once it is taken line by line:
        self._by_line = False
        self._parts_size = 0  # bytes
        self._data: list[str] = []
        self._data_size = 0  # bytes, with an LF for each line
        self._type = ""
        self._id: str | None = None
        self._block_retry: int | None = None
        self._comments: list[str] = []
        self._comments_size = 0  # likewise

    def __repr__(self) -> str:
        unfinished = self._small_size + self._parts_size + self._data_size
        return (
            f"<Decoder last_event_id={self._last_event_id!r} retry={self._retry} "
            f"unfinished={unfinished}{' failed' if self._error else ''}>"
        )

    @property
    def last_event_id(self) -> str:
        """What to send as ``Last-Event-ID`` when reconnecting now (9.2.3).

        It changes when a block ends, even one that dispatches nothing.
        """
        return self._last_event_id

    @property
    def retry(self) -> int | None:
        """The reconnection time last set by the stream, in milliseconds, if any was.

        It changes when a line ends.
        """
        return self._retry

    def feed(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """The events that ``data`` completes, in order.

        An event's ``id`` is the last event ID in force when it was dispatched, ``""``
        if there is none; ``retry`` and ``comment`` are what its own block had.

        Raises:
            EventTooLarge: a line or an event is over its bound. The events before it
                are in the exception. Feeding again raises it again, without events.
        """
        if self._error is not None:
            raise EventTooLarge(self._error, [])
        if self._undecoded or not isinstance(data, bytes):
            data = self._undecoded + bytes(memoryview(data))
            self._undecoded = b""
        text, used = codecs.utf_8_decode(data, "replace", False)
        if used < len(data):
            self._undecoded = data[used:]
        if self._after_cr or self._at_start or "\r" in text:
            text = self._normalised(text)
        events: list[Event] = []
        if len(text) <= self._small:
            self._take(text, events)
        else:
            step = self._small or 1
            for start in range(0, len(text), step):
                self._take(text[start : start + step], events)
        return events

    def _normalised(self, text: str) -> str:
        """``text`` without the stream's BOM (9.2.5), with LF as its only line ending."""
        if self._at_start and text:
            self._at_start = False
            text = text.removeprefix("\ufeff")
        # A CR ends its line at once; if an LF follows in the next chunk it belongs to it.
        if self._after_cr and text:
            self._after_cr = False
            text = text.removeprefix("\n")
        if text.endswith("\r"):
            self._after_cr = True
        text = text.replace("\r\n", "\n")
        return text.replace("\r", "\n") if "\r" in text else text

    def _take(self, text: str, events: list[Event]) -> None:
        """Process text, too short to exceed any bound on its own."""
        if self._by_line:
            text = self._take_lines(text, events)
            if not text:
                return
        if "\n" in text:
            if text.endswith("\n\n"):
                self._take_blocks(text, events)
                return
            end = text.rfind("\n\n") + 2
            if end < 2:  # or the blank line's LF follows one of an earlier chunk
                end = 1 if text[0] == "\n" and not self._parts else 0
            if end:
                self._take_blocks(text[:end], events)
                text = text[end:]
        if text:
            self._keep(text, events)

    def _take_blocks(self, text: str, events: list[Event]) -> None:
        """Process ``text``, in which a block ends last.

        Most events of most streams have one shape, and finding those whole is what
        makes decoding fast.
        """
        if self._small_size:
            text = "".join([*self._lines, *self._parts, text])
            self._lines.clear()
            self._parts.clear()
            self._small_size = 0
        append = events.append
        for type_before, new_id, type_after, line, more, retry, other in _BLOCK.findall(text):
            if other:
                self._process(other[:-1].split("\n"), events)
                continue
            if new_id:
                self._last_event_id = new_id
            data = f"{line}\n{more[:-1]}".replace("\ndata: ", "\n") if more else line
            milliseconds = None
            if retry:
                milliseconds = self._retry = int(retry)
            type = type_after or type_before or DEFAULT_TYPE
            append(unchecked_event(data, type, self._last_event_id, milliseconds, None))

    def _keep(self, text: str, events: list[Event]) -> None:
        """Set aside the beginning of a block, or more of it."""
        self._small_size += len(text)
        if "\n" in text:
            end = text.rfind("\n") + 1
            lines = "".join([*self._parts, text[:end]])
            self._parts.clear()
            self._lines.append(lines)
            text = text[end:]
            self._by_line = "retry" in lines  # it takes effect before its block ends
        if text:
            self._parts.append(text)
        if self._by_line or self._small_size > self._small:
            self._go_by_line(events)

    def _go_by_line(self, events: list[Event]) -> None:
        """Process the lines that were set aside, as those that follow until the block ends."""
        text = "".join([*self._lines, *self._parts])
        self._lines.clear()
        self._parts.clear()
        self._small_size = 0
        self._by_line = True
        self._take_lines(text, events)

    def _take_lines(self, text: str, events: list[Event]) -> str:
        """Process lines as they end, until their block does; what is left of ``text`` then."""
        rest = ""
        if "\n" in text:
            if text[0] == "\n" and not self._parts:
                end = 1
            else:
                end = text.find("\n\n") + 2 if "\n\n" in text else 0
            if end:
                text, rest = text[:end], text[end:]
                self._by_line = False
            if self._parts:
                text = "".join([*self._parts, text])
                self._parts.clear()
                self._parts_size = 0
            *lines, text = text.split("\n")
            self._process(lines, events)
        if text:
            self._parts.append(text)
            self._parts_size += _utf8_size(text)
            if self._parts_size > self._max_line:
                self._fail("a line", "max_line_size", self._max_line, events)
        return rest

    def _process(self, lines: list[str], events: list[Event]) -> None:
        """Process whole lines (9.2.6)."""
        for line in lines:
            if not line:
                self._end_block(events)
                continue
            size = len(line) if line.isascii() else _utf8_size(line)
            if size > self._max_line:
                self._fail("a line", "max_line_size", self._max_line, events)
            name, _, value = line.partition(":")
            if value.startswith(" "):
                value = value[1:]
            if name == "data":
                self._data.append(value)
                # The value's size and that of an LF.
                self._data_size += size - (len(line) - len(value)) + 1
                if self._data_size > self._max_event + 1:  # the last LF is not part of the data
                    self._fail("an event", "max_event_size", self._max_event, events)
            elif name == "id" and "\0" not in value:
                self._id = value
            elif name == "event":
                self._type = value
            elif name == "":
                self._comments_size += size - (len(line) - len(value)) + 1
                if self._comments_size <= self._max_event + 1:
                    self._comments.append(value)
            elif name == "retry" and _is_retry(value):
                self._retry = self._block_retry = int(value)

    def _end_block(self, events: list[Event]) -> None:
        """The blank line: "dispatch the event" (9.2.6)."""
        new_id, retry = self._id, self._block_retry
        if new_id is not None:
            self._last_event_id = new_id
        data = "\n".join(self._data) if self._data else None
        comment = "\n".join(self._comments) if self._comments else None
        if data is not None or (
            self._every_block and not (new_id is None and retry is None and comment is None)
        ):
            type = self._type or DEFAULT_TYPE
            events.append(unchecked_event(data, type, self._last_event_id, retry, comment))
        self._forget_block()

    def _forget_block(self) -> None:
        self._data.clear()
        self._data_size = 0
        self._type = ""
        self._id = None
        self._block_retry = None
        self._comments.clear()
        self._comments_size = 0

    def _fail(self, what: str, option: str, limit: int, events: list[Event]) -> NoReturn:
        self._forget_block()
        self._parts.clear()
        self._parts_size = 0
        self._error = (
            f"the stream sent {what} of more than {limit} bytes; "
            f"if that is expected, raise the bound, as in Decoder({option}={2 * limit})"
        )
        raise EventTooLarge(self._error, events)


def _is_retry(value: str) -> bool:
    return value.isascii() and value.isdigit() and len(value) <= RETRY_DIGITS


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
