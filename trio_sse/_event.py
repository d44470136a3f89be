"""One event of an event stream, and how it is written: `Event`, `encode`.

Reached through `trio_sse.wire`, which adds the way back.
"""

from __future__ import annotations

import json
import reprlib
from dataclasses import dataclass
from typing import Any, Final, final

DEFAULT_TYPE: Final = "message"

RETRY_DIGITS: Final = 15
"""A `retry` of more digits than this is not a time: thirty thousand years."""

_PUBLIC_MODULE: Final = "trio_sse.wire"


@final
@dataclass(init=False, frozen=True, slots=True, kw_only=True)
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

    A subclass of ``str``, such as a member of a string enumeration, is kept as the plain
    text that it is.

    Raises:
        ValueError: if a field cannot be put on the wire as it is: CR or LF in
            ``type`` or ``id``, NUL in ``id``, a ``retry`` that is negative or has more
            than 15 digits, a lone surrogate anywhere, an empty ``type``; or if there is
            nothing that anyone would see.
        TypeError: if a field is not of its declared type.
    """

    data: str | None = None
    type: str = DEFAULT_TYPE
    id: str | None = None
    retry: int | None = None
    comment: str | None = None

    def __init__(
        self,
        data: str | None = None,
        *,
        type: str = DEFAULT_TYPE,
        id: str | None = None,
        retry: int | None = None,
        comment: str | None = None,
    ) -> None:
        # Text that is beyond doubt is told from the rest right here, for a call takes longer.
        if data is not None and not (data.__class__ is str and data.isascii()):
            data = _checked_text("data", data)
        if type is not DEFAULT_TYPE and not (type.__class__ is str and type.isidentifier()):
            type = _checked_type(type)
        if id is not None and not (id.__class__ is str and id.isascii() and id.isprintable()):
            id = _checked_id(id)
        if retry is not None:
            retry = _checked_retry(retry)
        if comment is not None:
            comment = _checked_text("comment", comment)
        elif data is None and id is None and retry is None:
            raise ValueError(_says_nothing(type))
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
        type: str = DEFAULT_TYPE,
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


Event.__module__ = _PUBLIC_MODULE

# How a frozen, slotted instance is filled: the slots' own setters cost half of
# object.__setattr__, and filling is half the price of making an event.
_set_data: Final = vars(Event)["data"].__set__
_set_type: Final = vars(Event)["type"].__set__
_set_id: Final = vars(Event)["id"].__set__
_set_retry: Final = vars(Event)["retry"].__set__
_set_comment: Final = vars(Event)["comment"].__set__


class _Draft:
    """An `Event` that can still be written, for it has the same slots, and can become one.

    This costs half of the above, and is for the decoder alone.
    """

    __slots__ = ("comment", "data", "id", "retry", "type")


_new: Final = object.__new__


def unchecked_event(
    data: str | None, type: str, id: str | None, retry: int | None, comment: str | None
) -> Event:
    """An `Event` without the checks, which are for what users write."""
    draft: Any = _new(_Draft)
    draft.data = data
    draft.type = type
    draft.id = id
    draft.retry = retry
    draft.comment = comment
    draft.__class__ = Event
    event: Event = draft
    return event


def _checked_text(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(
            f"Event({name}={_short(value)}): {name} must be str, not {type(value).__name__}; "
            f"{_as_text(name, value)}"
        )
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(
            f"Event({name}={_short(value)}): UTF-8 cannot carry the lone surrogate at index "
            f"{exc.start}; replace it, as in Event({name}=text.encode(errors='replace').decode())"
        ) from None
    return str.__str__(value)


def _as_text(name: str, value: object) -> str:
    if isinstance(value, bytes | bytearray):
        return f"decode it, as in Event({name}=body.decode())"
    if name == "data":
        return f"for any object write Event.json({_short(value)})"
    return f"write text, as in Event({name}={_short(str(value))})"


def _checked_line(name: str, value: str) -> str:
    value = _checked_text(name, value)
    if "\n" in value or "\r" in value:
        line = next((line for line in value.splitlines() if line), "one line")
        raise ValueError(
            f"Event({name}={_short(value)}): a line break in {name} would forge other fields; "
            f"use one line, as in Event({name}={_short(line)}), and put longer text into data"
        )
    return value


def _checked_type(value: str) -> str:
    value = _checked_line("type", value)
    if not value:
        raise ValueError(
            f'Event(type="") is read as type "{DEFAULT_TYPE}" (9.2.6); '
            'leave type out, as in Event("text")'
        )
    return value


def _checked_id(value: str) -> str:
    value = _checked_line("id", value)
    if "\0" in value:
        raise ValueError(
            f"Event(id={_short(value)}): clients ignore an id that contains NUL; "
            f"write it without, as in Event(id={_short(value.replace(chr(0), ''))})"
        )
    return value


def _checked_retry(value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(
            f"Event(retry={_short(value)}): retry is a whole number of milliseconds, "
            "as in Event(retry=3000)"
        )
    too_large = 10**RETRY_DIGITS
    if value < 0:
        right = -value if -value < too_large else 3000
        raise ValueError(
            f"Event(retry={_short(value)}): a reconnection time cannot be negative; "
            f"in milliseconds, as in Event(retry={right})"
        )
    if value >= too_large:
        raise ValueError(
            f"Event(retry={_short(value)}): clients do not take a number of more than "
            f"{RETRY_DIGITS} digits; in milliseconds, as in Event(retry=3000)"
        )
    return int(value)


def _says_nothing(type: str) -> str:
    if type == DEFAULT_TYPE:
        wrong, right = "Event()", 'Event("")'
    else:
        wrong, right = f"Event(type={_short(type)})", f'Event("", type={_short(type)})'
    return f"{wrong} says nothing, and nobody would see it; for no content write {right}"


def _short(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 64:  # Python may refuse to write it
        return "-..." if value < 0 else "..."
    return reprlib.repr(value)


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
    if event.type != DEFAULT_TYPE:
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
    return text.replace("\n", "\n" + prefix)


encode.__module__ = _PUBLIC_MODULE
