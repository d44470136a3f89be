"""What the page follows: the hub's state every second, and what is published.

A console must not be able to hurt the hub that it looks at. Nothing waits for one: it is
sent something only when it has taken what it was sent before, and of many events it gets
a few. What is the same for all consoles is made once. And none of it is counted as
delivered: looking at a hub does not change what is seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Final, final

import trio

from ..hub import Hub
from ..log import Record
from ..session import Session
from ..wire import Decoder, Event, encode

STATUS_EVERY: Final = 1.0
FOLLOW_EVERY: Final = 0.25
"""Seconds between events; the first after a pause is sent at once."""
MAX_ROWS: Final = 200
PAST_EVENTS: Final = 50
"""How many events that were there before are sent first; fewer if positions have holes."""
MAX_EVENTS: Final = 100
"""At most so many events at a time, which is what a page keeps,"""
MAX_BYTES: Final = 128 << 10
"""and, after the first, so many bytes."""
MAX_TEXT: Final = 2_000
"""Characters of an event's data that are sent."""
MAX_NAME: Final = 100
"""Characters of a topic, an event type, an id."""
MAX_TOPICS: Final = 8

_PAGE_SIZE: Final = 256
_ENOUGH: Final = 16 << 10
"""Bytes of an event that are looked at: more than what is sent of any usual one."""
_SKIPPED: Final = encode(Event("{}", type="skipped"))

Object = Mapping[str, object]


@final
class Feed:
    """What all consoles of one hub are sent.

    Args:
        hub: what is shown.
        path: of the stream, by which consoles are told from other sessions.
        about: what else to say of a session.
    """

    def __init__(self, hub: Hub, path: str, about: Callable[[Session], str]) -> None:
        self._hub = hub
        self._path = path
        self._about = about
        # Made once for all consoles: the last status, when it was made and for which state
        # of the hub; and the newest events.
        self._status = b""
        self._status_of: tuple[float, str] = (float("-inf"), "")
        self._published = lru_cache(maxsize=PAST_EVENTS + MAX_EVENTS)(_published)

    async def follow(self, session: Session) -> None:
        """Send one console what it needs, until the hub drains or the client leaves."""
        position = await self._send_past(session)
        session.nursery.start_soon(self._send_published, session, position)
        session.nursery.start_soon(self._send_status, session)
        await session.draining()
        _send(session, self._current_status())

    async def _send_past(self, session: Session) -> int:
        """Send the newest events that are there, and greet; the position of the last."""
        log = self._hub.log
        newest = log.newest
        records = await log.read(max(log.trimmed, newest - PAST_EVENTS), PAST_EVENTS)
        past = self._some(records, PAST_EVENTS)
        hello = _event("hello", {"session": session.short_id})  # what follows it is new
        _send(session, past + hello + self._new_status())  # with this session in it
        return records[-1].position if records else newest

    async def _send_status(self, session: Session) -> None:
        while True:
            await trio.sleep(STATUS_EVERY)
            if not session.has_backlog:
                _send(session, self._current_status())

    async def _send_published(self, session: Session, position: int) -> None:
        log = self._hub.log
        while True:
            await log.wait(position)
            if not session.has_backlog:
                records = await log.read(position, _PAGE_SIZE)
                if records:
                    position = records[-1].position
                    data = self._some(records, MAX_EVENTS)
                    if len(records) == _PAGE_SIZE and position < log.newest:
                        position = log.newest  # too far behind to catch up
                        data += _SKIPPED
                    _send(session, data)
            await trio.sleep(FOLLOW_EVERY)

    def _some(self, records: Sequence[Record], limit: int) -> bytes:
        """The newest of ``records``, at most ``limit``, and word if there are more."""
        chosen: list[bytes] = []
        size = 0
        for record in reversed(records[-limit:]):
            event = self._published(record)
            size += len(event)
            if chosen and size > MAX_BYTES:
                break
            chosen.append(event)
        if len(chosen) < len(records):
            chosen.append(_SKIPPED)
        return b"".join(reversed(chosen))

    def _current_status(self) -> bytes:
        made_at, state = self._status_of
        if trio.current_time() - made_at < STATUS_EVERY / 2 and state == self._hub.state:
            return self._status
        return self._new_status()

    def _new_status(self) -> bytes:
        now = trio.current_time()
        self._status = _event("status", self._describe(now))
        self._status_of = (now, self._hub.state)
        return self._status

    def _describe(self, now: float) -> Object:
        hub = self._hub
        counts = hub.statistics()
        newest_first = list(hub.sessions.values())[: -MAX_ROWS - 1 : -1]
        return {
            "at": now,  # seconds, of which only differences mean anything
            "state": counts.state,
            "newest": _cut(hub.log.place(hub.log.newest), MAX_NAME),
            "counts": {
                "sessions": counts.sessions,
                "registered": counts.registered,
                "refused": counts.refused,
                "published": counts.published,
                "delivered": counts.delivered,
                "delivered_bytes": counts.delivered_bytes,
                "dropped": counts.dropped,
                "replayed": counts.replayed,
                "gaps": counts.gaps,
            },
            "ended": counts.unregistered,
            "sessions": [self._row(session) for session in newest_first],
        }

    def _row(self, session: Session) -> Object:
        counts = session.statistics()
        return {
            # Enough to end it by, for those who may; the whole is the session's secret.
            "id": session.short_id,
            "console": session.request.path == self._path,
            "topics": None if session.topics is None else _names(sorted(session.topics)),
            "topic_count": len(session.topics or ()),
            "age": round(counts.age, 1),
            "queued": counts.queued_events,
            "queued_bytes": counts.queued_bytes,
            "sent": counts.sent_events,
            "dropped": counts.dropped_events,
            "last_event_id": _cut(counts.last_event_id, MAX_NAME),
            "client": _cut(session.request.client or "", MAX_NAME),
            "about": _cut(self._about(session), MAX_NAME),
        }


def _send(session: Session, data: bytes) -> None:
    session.deliver_control(data)
    session.last_event_at = session.last_write_at  # one that is looked at is not idle


def _published(record: Record) -> bytes:
    """A published event, cut to what the page shows of it."""
    # A large event costs no more than others: what follows the first kilobytes is not read.
    raw = record.data
    whole = len(raw) <= _ENOUGH
    blocks = Decoder(every_block=True).feed(raw if whole else raw[:_ENOUGH] + b"\n\n")
    event = blocks[0] if blocks else Event("")
    data = event.data or ""
    shown = {
        "id": _cut(record.id, MAX_NAME),
        "topics": _names(record.topics),
        "topic_count": len(record.topics),
        "type": _cut(event.type, MAX_NAME),
        "data": data[:MAX_TEXT],
        "cut": not whole or len(data) > MAX_TEXT,
        "size": len(raw),
        "retry": event.retry,
    }
    return _event("published", shown)


def _names(names: Iterable[str]) -> list[str]:
    return [_cut(name, MAX_NAME) for name in islice(names, MAX_TOPICS)]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _event(type: str, obj: Object) -> bytes:
    # ASCII: a topic may hold what UTF-8 cannot carry, and a script reads it all the same.
    return encode(Event(json.dumps(obj, separators=(",", ":")), type=type))
