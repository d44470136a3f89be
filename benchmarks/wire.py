"""Our encoder beside sse-starlette's, our decoder beside httpx-sse's.

Run it: ``python benchmarks/wire.py``. Both sides do the same work in one process, in turns, and
each figure is the median of several rounds. Beforehand it is checked that both say the same; if
they do not, the exit code is 1. A slow machine is no failure.

sse-starlette's encoder is timed as it is used: an object is made, and encoded. Ours is timed in
that way too, and as a hub uses it, which makes an event once and encodes it once, with an id that
only the log knows.

httpx-sse's decoder is driven by its own ``EventSource``, from text that comes in the same chunks,
decoded as httpx does it.
"""

from __future__ import annotations

import codecs
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from trio_sse.wire import Decoder, Event, encode

try:
    from httpx_sse import EventSource
    from sse_starlette import ServerSentEvent
except ImportError as exc:
    sys.exit(
        f"{exc.name} is not installed; to compare with it: pip install httpx-sse sse-starlette"
    )

EVENTS: Final = 2_000
ROUNDS: Final = 15
TARGETS: Final = {"encode": 5.0, "decode": 1.5}

DEFAULT_TYPE: Final = "message"
LINE: Final = "x" * 128
LINES: Final = "\n".join(["a line of text"] * 8)
WIDE: Final = "é€" * 26  # 130 bytes


class Said(NamedTuple):
    """What an event says, whoever read it."""

    data: str
    type: str
    id: str


@dataclass(frozen=True)
class Fields:
    """What both sides are to encode."""

    data: str
    id: str
    type: str | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table: seconds for each round."""

    name: str
    ours: list[float]
    theirs: list[float]

    def __str__(self) -> str:
        ours, theirs = (median(each) / EVENTS * 1e6 for each in (self.ours, self.theirs))
        ratio = median(b / a for a, b in zip(self.ours, self.theirs, strict=True))
        return f"  {self.name:<52}{ours:>8.2f}{theirs:>8.2f}{ratio:>8.1f} x"


def compared(name: str, ours: Callable[[], object], theirs: Callable[[], object]) -> Row:
    row = Row(name, [], [])
    for _ in range(ROUNDS):
        for function, seconds in ((ours, row.ours), (theirs, row.theirs)):
            began = perf_counter()
            function()
            seconds.append(perf_counter() - began)
    return row


# Encoding.


def encoded(events: Iterable[Event], ids: Iterable[str]) -> list[bytes]:
    return [encode(event, id=event_id) for event, event_id in zip(events, ids, strict=True)]


def their_encoded(events: Iterable[ServerSentEvent]) -> list[bytes]:
    return [event.encode() for event in events]


def made_and_encoded(fields: Iterable[Fields]) -> list[bytes]:
    return [
        encode(Event(each.data, id=each.id))
        if each.type is None
        else encode(Event(each.data, id=each.id, type=each.type))
        for each in fields
    ]


def their_made_and_encoded(fields: Iterable[Fields]) -> list[bytes]:
    return [
        ServerSentEvent(each.data, id=each.id).encode()
        if each.type is None
        else ServerSentEvent(each.data, id=each.id, event=each.type).encode()
        for each in fields
    ]


def encoding_rows() -> Iterator[Row]:
    for name, data, event_type in (
        ("128 bytes, one line, id", LINE, None),
        ("128 bytes, one line, id and type", LINE, "tick"),
        ("8 lines, id", LINES, None),
        ("130 bytes, not ASCII, id", WIDE, None),
    ):
        fields = [Fields(data, str(number), event_type) for number in range(EVENTS)]
        ours, theirs = made_and_encoded(fields), their_made_and_encoded(fields)
        same_or_exit(name, our_reading([b"".join(ours)]), our_reading([b"".join(theirs)]))
        events = [Event(data, type=event_type or DEFAULT_TYPE) for _ in fields]
        ids = [each.id for each in fields]
        their_events = [ServerSentEvent(each.data, id=each.id, event=each.type) for each in fields]
        yield compared(
            f"{name}: encode",
            partial(encoded, events, ids),
            partial(their_encoded, their_events),
        )
        yield compared(
            f"{name}: make and encode",
            partial(made_and_encoded, fields),
            partial(their_made_and_encoded, fields),
        )


# Decoding.


class Response:
    """As much of an httpx response as ``EventSource`` looks at."""

    headers: Final = {"content-type": "text/event-stream"}

    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks = chunks

    def iter_text(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for chunk in self.chunks:
            yield decoder.decode(chunk)


def decoded(chunks: list[bytes]) -> list[Event]:
    decoder = Decoder()
    events = []
    for chunk in chunks:
        events += decoder.feed(chunk)
    return events


def their_source(chunks: list[bytes]) -> EventSource:
    response: Any = Response(chunks)
    return EventSource(response)


def their_decoded(chunks: list[bytes]) -> list[object]:
    return list(their_source(chunks).iter_sse())


def our_reading(chunks: list[bytes]) -> list[Said]:
    return [Said(event.data or "", event.type, event.id or "") for event in decoded(chunks)]


def their_reading(chunks: list[bytes]) -> list[Said]:
    return [Said(event.data, event.event, event.id) for event in their_source(chunks).iter_sse()]


def decoding_rows() -> Iterator[Row]:
    short = blocks("id: {}\ndata: " + LINE + "\n\n")
    typed = blocks("id: {}\nevent: tick\ndata: " + LINE + "\n\n")
    lines = blocks("id: {}\ndata: " + LINES.replace("\n", "\ndata: ") + "\n\n")
    wide = blocks("id: {}\ndata: " + WIDE + "\n\n")
    crlf = [block.replace(b"\n", b"\r\n") for block in short]
    for name, chunks in (
        ("128 bytes, id, chunks of 64 KiB", cut(short, 1 << 16)),
        ("128 bytes, id and type, chunks of 64 KiB", cut(typed, 1 << 16)),
        ("8 lines, id, chunks of 64 KiB", cut(lines, 1 << 16)),
        ("130 bytes, not ASCII, id, chunks of 64 KiB", cut(wide, 1 << 16)),
        ("128 bytes, id, CRLF, chunks of 64 KiB", cut(crlf, 1 << 16)),
        ("128 bytes, id, a chunk per event", short),
        ("128 bytes, id and type, a chunk per event", typed),
        ("8 lines, id, a chunk per event", lines),
        ("128 bytes, id, CRLF, a chunk per event", crlf),
        ("128 bytes, id, chunks of 1460 bytes", cut(short, 1460)),
        ("128 bytes, id, chunks of 100 bytes", cut(short, 100)),
        ("128 bytes, id, chunks of 16 bytes", cut(short, 16)),
        ("id after the data, chunks of 64 KiB", cut(blocks("data: x\nid: {}\n\n"), 1 << 16)),
        ("a comment in each, chunks of 64 KiB", cut(blocks(": c\nid: {}\ndata: x\n\n"), 1 << 16)),
    ):
        same_or_exit(name, our_reading(chunks), their_reading(chunks))
        yield compared(name, partial(decoded, chunks), partial(their_decoded, chunks))


def blocks(template: str) -> list[bytes]:
    return [template.replace("{}", str(number)).encode() for number in range(EVENTS)]


def cut(stream: list[bytes], size: int) -> list[bytes]:
    whole = b"".join(stream)
    return [whole[i : i + size] for i in range(0, len(whole), size)]


# The whole.


def same_or_exit(name: str, ours: list[Said], theirs: list[Said]) -> None:
    if len(ours) != EVENTS:
        sys.exit(f"{name}: {len(ours)} events of {EVENTS}")
    for number, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if our != their:
            sys.exit(f"{name}: event {number} is {our} here and {their} there")


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def main() -> None:
    print(f"{processor()}, {platform.system()}")
    print(f"{platform.python_implementation()} {platform.python_version()}", end="")
    print(f", sse-starlette {version('sse-starlette')}, httpx-sse {version('httpx-sse')}")
    print(f"microseconds an event; medians of {ROUNDS} rounds of {EVENTS:,} events\n")
    for what, peer, rows in (
        ("encode", "sse-starlette", encoding_rows()),
        ("decode", "httpx-sse", decoding_rows()),
    ):
        print(f"{what} (aim: {TARGETS[what]} x)".ljust(54) + f"{'ours':>8}{'theirs':>8}   ({peer})")
        for row in rows:
            print(row)
        print()


if __name__ == "__main__":
    main()
