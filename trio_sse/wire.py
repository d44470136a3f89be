"""The ``text/event-stream`` format, both ways: `Event`, `encode`, `Decoder`.

No I/O and no Trio in here: bytes in, events out, and the reverse. The sections
named below are those of the WHATWG HTML standard, chapter 9.2, "Server-sent
events".

The decoder's cost is proportional to what it is fed, whatever that is. Two
decisions make it so. Line endings are normalised a chunk at a time, in C, so that
everything after that sees LF only. And a line or an event that is not finished is
kept as a list of parts, which are joined once, when the end has come.
"""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn, final

DEFAULT_MAX_SIZE: Final = 1 << 20
"""Bytes: the largest line, and the largest event, that a `Decoder` accepts."""

_TOKEN: Final = re.compile(
    r"(?:id: ?([^ \n\0][^\n\0]*)\n)?(?:event: ?([^ \n][^\n]*)\n)?data: ?([^\n]*)\n\n|([^\n]*\n)"
)
_RETRY_DIGITS: Final = 15
"""A `retry` of more digits than this is not a time: thirty thousand years."""


class EventTooLarge(Exception):
    """The peer sent a line or an event larger than the `Decoder` was told to accept.

    The decoder is of no further use; `feed` raises this again.

    Attributes:
        events: the events that were complete before the one that is too large.
    """

    def __init__(self, message: str, events: list[Event]) -> None:
        super().__init__(message)
        self.events = events


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event of an event stream (9.2.6).

    Every field may be left out, but not all of them. An event without ``data``
    (a comment, a `retry`, an `id` alone) is never dispatched to a listener;
    ``data=""`` is.

    Args:
        data: the payload; any text. CRLF, LF and CR in it all arrive as LF, because
            that is all the format can carry.
        type: the event type; what ``addEventListener`` is given.
        id: becomes the client's last event ID. ``""`` resets it; ``None`` leaves it.
        retry: the client's new reconnection time, in milliseconds.
        comment: text that clients skip; useful to keep a connection open.

    Raises:
        ValueError: if a field cannot be put on the wire as it is: CR or LF in
            ``type`` or ``id``, NUL in ``id``, a negative ``retry``, a lone surrogate
            anywhere, an empty ``type``, or no field at all.
        TypeError: if a field is not of its declared type.
    """

    data: str | None = None
    type: str = "message"
    id: str | None = None
    retry: int | None = None
    comment: str | None = None

    def __init__(
        self,
        data: str | None = None,
        *,
        type: str = "message",
        id: str | None = None,
        retry: int | None = None,
        comment: str | None = None,
    ) -> None:
        if data is not None:
            _check_text("data", data)
        if type != "message":
            _check_line("type", type)
            if not type:
                raise ValueError(
                    'Event(type="") is what the standard reads as "message"; leave type out instead'
                )
        if id is not None:
            _check_line("id", id)
            if "\0" in id:
                raise ValueError(
                    f"Event(id={id!r}): a client ignores an id that contains NUL; "
                    "use text without it, as in Event(id='42')"
                )
        if retry is not None:
            _check_retry(retry)
        if comment is not None:
            _check_text("comment", comment)
        if data is None and id is None and retry is None and comment is None:
            raise ValueError(
                "Event() says nothing, and nobody would see it; "
                'for an event without content write Event("")'
            )
        _set_data(self, data)
        _set_type(self, type)
        _set_id(self, id)
        _set_retry(self, retry)
        _set_comment(self, comment)

    @classmethod
    def json(
        cls,
        obj: Any,
        *,
        type: str = "message",
        id: str | None = None,
        retry: int | None = None,
    ) -> Event:
        """An event whose data is ``obj`` as compact JSON.

        Raises:
            TypeError: if ``obj`` is not JSON serialisable.
            ValueError: if it contains NaN or an infinity, which JSON cannot carry
                and a browser's ``JSON.parse`` refuses; or as for `Event`.
        """
        text = json.dumps(obj, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return cls(text, type=type, id=id, retry=retry)


# How a frozen, slotted instance is filled: the slots' own setters cost half of
# object.__setattr__, and filling is half the price of decoding an event.
_set_data: Final = vars(Event)["data"].__set__
_set_type: Final = vars(Event)["type"].__set__
_set_id: Final = vars(Event)["id"].__set__
_set_retry: Final = vars(Event)["retry"].__set__
_set_comment: Final = vars(Event)["comment"].__set__


def _new_event(
    data: str | None,
    type: str,
    id: str,
    retry: int | None = None,
    comment: str | None = None,
) -> Event:
    """An `Event` without the checks, which are for what users write."""
    event = object.__new__(Event)
    _set_data(event, data)
    _set_type(event, type)
    _set_id(event, id)
    _set_retry(event, retry)
    _set_comment(event, comment)
    return event


def _check_text(name: str, value: str) -> None:
    if not isinstance(value, str):
        hint = "; Event.json(...) takes objects" if name == "data" else ""
        raise TypeError(
            f"Event({name}={value!r}): {name} must be str, not {type(value).__name__}{hint}"
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise ValueError(
                f"Event({name}={value[:40]!r}): UTF-8 cannot carry the lone surrogate at "
                f"index {exc.start}; clean it, as in {name}.encode(errors='replace').decode()"
            ) from None


def _check_line(name: str, value: str) -> None:
    _check_text(name, value)
    if "\n" in value or "\r" in value:
        raise ValueError(
            f"Event({name}={value!r}): a line break in {name} would forge other fields; "
            f"use one line, as in Event({name}={value.split()[0] if value.split() else 'x'!r}), "
            "and put longer text into data"
        )


def _check_retry(value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(
            f"Event(retry={value!r}): retry is a whole number of milliseconds, "
            "as in Event(retry=3000)"
        )
    if value < 0:
        raise ValueError(
            f"Event(retry={value}): a reconnection time cannot be negative; "
            f"in milliseconds, as in Event(retry={-value})"
        )


def encode(event: Event, *, id: str | None = None) -> bytes:
    """``event`` as it goes over the wire, with the blank line that ends it.

    Args:
        id: an id to send in place of the event's own, which then need not be copied
            to be numbered. It is not checked again.
    """
    text = "" if event.comment is None else f": {_on_lines(event.comment, ': ')}\n"
    if id is None:
        id = event.id
    if id is not None:
        text = f"{text}id: {id}\n"
    if event.type != "message":
        text = f"{text}event: {event.type}\n"
    if event.retry is not None:
        text = f"{text}retry: {event.retry}\n"
    data = event.data
    if data is None:
        return f"{text}\n".encode()
    if "\n" in data or "\r" in data:
        data = _on_lines(data, "data: ")
    return f"{text}data: {data}\n\n".encode()


def _on_lines(text: str, prefix: str) -> str:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\n" in text:
        return text.replace("\n", "\n" + prefix)
    return text


@final
class Decoder:
    """The incremental parser of 9.2.6: feed it bytes as they come, take events.

    Feeding is linear in the number of bytes, however they are cut and whatever they
    contain. An event that the stream's end interrupts is dropped, as the standard
    has it: there is nothing to call at the end.

    Args:
        max_line_size: bytes, terminator not counted.
        max_event_size: bytes of all data lines of one event, and separately of all
            its comments.
        every_block: also return what the standard dispatches nothing for: a block
            that has only comments, a `retry` or an `id` comes back as an `Event`
            whose ``data`` is ``None``.
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
                "both must be at least 1 byte"
            )
        self._max_line = max_line_size
        self._max_event = max_event_size
        self._max_unchecked = min(max_line_size, max_event_size) // 4  # UTF-8's widest
        self._every_block = every_block
        self._error: EventTooLarge | None = None
        # Of the stream. "utf-8-sig" drops the one BOM that a stream may start with (9.2.5).
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._after_cr = False  # the text so far ended in CR: an LF now is its other half
        self._last_event_id = ""
        self._retry: int | None = None
        # Of the line that is not finished:
        self._parts: list[str] = []
        self._parts_size = 0
        # Of the block that is not finished:
        self._in_block = False
        self._data: list[str] = []
        self._data_size = 0
        self._type = ""
        self._id: str | None = None
        self._block_retry: int | None = None
        self._comments: list[str] = []
        self._comments_size = 0

    def __repr__(self) -> str:
        return (
            f"<Decoder last_event_id={self._last_event_id!r} retry={self._retry} "
            f"unfinished_line={self._parts_size} unfinished_data={self._data_size}"
            f"{' failed' if self._error else ''}>"
        )

    @property
    def last_event_id(self) -> str:
        """What to send as ``Last-Event-ID`` when reconnecting now (9.2.3).

        It changes when a block ends, even one that dispatches nothing.
        """
        return self._last_event_id

    @property
    def retry(self) -> int | None:
        """The reconnection time last set by the stream, in milliseconds, if any was."""
        return self._retry

    def feed(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """The events that ``data`` completes, in order.

        An event's ``id`` is the last event ID in force when it was dispatched, ``""``
        if there is none; ``retry`` and ``comment`` are what its own block had.

        Raises:
            EventTooLarge: a line or an event is over its bound. The events before it
                are in the exception.
        """
        if self._error is not None:
            raise self._error
        text = self._utf8.decode(bytes(data))
        # A CR ends its line at once; if an LF follows in the next chunk it belongs to it.
        if self._after_cr and text:
            text = text.removeprefix("\n")
            self._after_cr = False
        if text.endswith("\r"):
            self._after_cr = True
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        events: list[Event] = []
        end = text.rfind("\n") + 1
        if end:
            start = self._finish_line(text, events) if self._parts else 0
            if end - start <= self._max_unchecked:
                self._usual(text, start, end, events)
            else:
                for line in text[start:end].split("\n")[:-1]:
                    self._line(line, events)
        if end < len(text):
            self._parts.append(text[end:])
            self._parts_size += _utf8_size(self._parts[-1])
            if self._parts_size > self._max_line:
                self._fail("a line", "max_line_size", self._max_line, events)
        return events

    def _finish_line(self, text: str, events: list[Event]) -> int:
        """Process the line that an earlier chunk began; where the next one starts."""
        end = text.index("\n")
        self._parts.append(text[:end])
        line = "".join(self._parts)
        self._parts.clear()
        self._parts_size = 0
        self._line(line, events)
        return end + 1

    def _usual(self, text: str, start: int, end: int, events: list[Event]) -> None:
        """Take whole lines, too few to exceed any bound.

        Most events of most streams have one shape, and finding those whole is what
        makes decoding fast. Each token is one such block or any one line.
        """
        append = events.append
        for new_id, event_type, data, line in _TOKEN.findall(text, start, end):
            if line:
                self._line(line[:-1], events)
            elif not self._in_block:
                if new_id:
                    self._last_event_id = new_id
                append(_new_event(data, event_type or "message", self._last_event_id))
            else:  # the shape was the end of a longer block
                if new_id:
                    self._line("id: " + new_id, events)
                if event_type:
                    self._line("event: " + event_type, events)
                self._line("data: " + data, events)
                self._line("", events)

    def _line(self, line: str, events: list[Event]) -> None:
        """Process one line (9.2.6)."""
        if not line:
            self._end_block(events)
            return
        self._in_block = True
        size = _utf8_size(line)
        if size > self._max_line:
            self._fail("a line", "max_line_size", self._max_line, events)
        name, _, value = line.partition(":")
        if value.startswith(" "):
            value = value[1:]
        if name == "data":
            self._data.append(value)
            self._data_size += size - 4  # an upper bound of what is kept, and never 0
            if self._data_size > self._max_event + len("x: "):
                self._fail("an event", "max_event_size", self._max_event, events)
        elif name == "id":
            if "\0" not in value:
                self._id = value
        elif name == "event":
            self._type = value
        elif name == "":
            self._comments.append(value)
            self._comments_size += size
            if self._comments_size > self._max_event + len(": "):
                self._fail("comments", "max_event_size", self._max_event, events)
        elif name == "retry" and value.isascii() and value.isdigit():
            if len(value) <= _RETRY_DIGITS:
                self._retry = self._block_retry = int(value)

    def _end_block(self, events: list[Event]) -> None:
        """The blank line: "dispatch the event" (9.2.6)."""
        if not self._in_block:
            return
        new_id, retry = self._id, self._block_retry
        if new_id is not None:
            self._last_event_id = new_id
        data = "\n".join(self._data) if self._data else None
        comment = "\n".join(self._comments) if self._comments else None
        if data is not None or (
            self._every_block and not (new_id is None and retry is None and comment is None)
        ):
            events.append(
                _new_event(data, self._type or "message", self._last_event_id, retry, comment)
            )
        self._forget_block()

    def _forget_block(self) -> None:
        self._in_block = False
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
        self._error = EventTooLarge(
            f"the stream sent {what} of more than {limit} bytes; "
            f"if that is expected, raise the bound: Decoder({option}=...)",
            events,
        )
        raise self._error


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
