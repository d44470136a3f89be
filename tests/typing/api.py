"""What type checkers conclude about the public names. Never run; checked by mypy and pyright."""

from __future__ import annotations

from typing_extensions import assert_type

from trio_sse.wire import Decoder, Event, EventTooLarge, encode

event = Event("text", type="news", id="1", retry=3000, comment="note")
assert_type(event, Event)
assert_type(event.data, str | None)
assert_type(event.type, str)
assert_type(event.id, str | None)
assert_type(event.retry, int | None)
assert_type(event.comment, str | None)
assert_type(Event.json({"any": ["thing"]}), Event)
assert_type(encode(event, id="2"), bytes)

decoder = Decoder(max_line_size=1000, max_event_size=1000, every_block=True)
assert_type(decoder.feed(b"data: x\n\n"), list[Event])
assert_type(decoder.last_event_id, str)
assert_type(decoder.retry, int | None)


def bounded(error: EventTooLarge) -> None:
    assert_type(error.events, list[Event])
