"""`Decoder` and `encode` take work in proportion to what they are given, whatever that is.

Work is counted, not timed: see `counted_work`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

import pytest
import reference_decoder
from counted_work import Work, counted, match_steps
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_sse import _event, wire
from trio_sse.wire import Decoder, Event

pytestmark = pytest.mark.exhaustive

LINEAR: Final = 2.2
"""How much more twice as much may take; where something is quadratic it tends to 4."""

WIRE: Final = inspect.getsource(wire)


def pieces(stream: bytes, size: int) -> Iterable[bytes]:
    return (stream[i : i + size] for i in range(0, len(stream), size))


def work_of_decoding(stream: bytes, size: int, source: str = WIRE, **bounds: int) -> int:
    work = Work()
    decoder = counted(source, vars(wire), work)["Decoder"](**bounds)
    for piece in pieces(stream, size):
        decoder.feed(piece)
    return work.total


def growth(of: Callable[[int], int], start: int) -> list[float]:
    """By how much the work grows each time that the input doubles."""
    counts = [of(start), of(2 * start), of(4 * start)]
    return [counts[1] / counts[0], counts[2] / counts[1]]


STREAMS: Final[dict[str, tuple[bytes, bytes, bytes]]] = {
    # what comes once, what comes again and again, and the end
    "one line": (b"data: ", b"x", b"\n\n"),
    "one line that is no field": (b"", b"x", b"\n\n"),
    "one line of spaces": (b"data:", b" ", b"\n\n"),
    "one line of colons": (b"", b":", b"\n\n"),
    "one line of NUL": (b"id: ", b"\0", b"\ndata: x\n\n"),
    "one line of digits": (b"retry: ", b"9", b"\n\n"),
    "one line that goes on at every CR": (b"", b"data: x\r", b"\n\n"),
    "one line of wide characters": (b"data: ", "𝄞".encode(), b"\n\n"),
    "one line of bytes that are not UTF-8": (b"data: ", b"\xf0\xff", b"\n\n"),
    "data lines": (b"", b"data: x\n", b"\n"),
    "data lines without a space": (b"", b"data:x\n", b"\n"),
    "data lines with a type": (b"event: t\n", b"data: x\n", b"\n"),
    "data lines that end unusually": (b"", b"data: x\n", b"foo\n\n"),
    "data lines that end in a retry": (b"event: t\nid: 1\n", b"data: x\n", b"retry: x\n\n"),
    "empty data lines": (b"", b"data\r\n", b"\r\n"),
    "ids": (b"", b"id: 1\n", b"data: x\n\n"),
    "types": (b"", b"event: t\n", b"data: x\n\n"),
    "ids and types": (b"", b"event: t\nid: 1\nevent: t\n", b"\n"),
    "retries": (b"", b"retry: 100\n", b"data: x\n\n"),
    "comments": (b"data: x\n", b": c\n", b"\n"),
    "empty lines": (b"data: x", b"\n", b""),
    "events": (b"", b"id: 1\ndata: x\n\n", b""),
    "unusual events": (b"", b"data: x\nid: 1\ndata: y\n\n", b""),
    "events that nearly have an empty line": (b"", b"event: t\nid: 1\ndata: x\n \n", b"\n"),
    "blocks of comments": (b"", b":\n\n", b""),
}

WHOLE: Final = 1 << 30
sizes = pytest.mark.parametrize("size", [1, 7, 1000, WHOLE])


@sizes
@pytest.mark.parametrize("name", STREAMS)
def test_decoding_is_linear(name: str, size: int) -> None:
    first, repeated, last = STREAMS[name]

    def work(length: int) -> int:
        stream = first + repeated * (length // len(repeated)) + last
        # The larger part is taken line by line, at every length the same part.
        bound = 4 * length
        return work_of_decoding(stream, size, max_line_size=bound, max_event_size=bound)

    assert max(growth(work, 1_000 if size < 10 else 4_000)) < LINEAR


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("name", STREAMS)
def test_decoding_is_linear_under_small_bounds(name: str, size: int) -> None:
    # Blocks go over from being taken whole to being taken line by line again and again.
    first, repeated, last = STREAMS[name]
    block = first + repeated * (200 // len(repeated)) + last

    def work(length: int) -> int:
        stream = b"data: x\n\n" + block * (length // len(block))
        return work_of_decoding(stream, size, max_line_size=5000, max_event_size=1000)

    assert max(growth(work, 3_000)) < LINEAR


def test_two_hundred_thousand_data_lines_are_linear() -> None:
    def stream(lines: int) -> bytes:
        return b"id: 1\n" + b"data: x\n" * lines + b"\n"

    def work(lines: int) -> int:
        return work_of_decoding(stream(lines), 1 << 16)

    assert max(growth(work, 50_000)) < LINEAR
    assert Decoder().feed(stream(200_000)) == [Event("x\n" * 199_999 + "x", id="1")]


LARGE: Final = 8 << 20
raised: Final = {"max_line_size": LARGE + 10, "max_event_size": LARGE}


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_a_line_of_eight_megabytes_arrives_in_any_pieces(size: int) -> None:
    decoder = Decoder(**raised)
    for piece in pieces(b"data: " + b"x" * LARGE, size):
        assert decoder.feed(piece) == []
    assert decoder.feed(b"\n\n") == [Event("x" * LARGE, id="")]


def test_a_line_of_eight_megabytes_is_linear() -> None:
    def work(length: int) -> int:
        return work_of_decoding(b"data: " + b"x" * length + b"\n\n", 1 << 16, **raised)

    assert max(growth(work, LARGE // 4)) < LINEAR


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_piece_of_a_line_costs_the_same_however_much_is_held(size: int) -> None:
    work = Work()
    decoder = counted(WIRE, vars(wire), work)["Decoder"](**raised)
    decoder.feed(b"data: ")
    costs = set()
    fed = 0
    for held in range(LARGE // 8, LARGE, LARGE // 8):
        for piece in pieces(b"x" * (held - fed), 1 << 16):
            decoder.feed(piece)
        for _ in range(100):
            before = work.total
            decoder.feed(b"x" * size)
            costs.add(work.total - before)
        fed = held + 100 * size
    assert len(costs) == 1
    before = work.total
    (event,) = decoder.feed(b"\n\n")
    assert len(event.data) == fed
    assert work.total - before < 12 * fed


@pytest.mark.parametrize("pause", [0, 1, 2, 3])
def test_after_a_large_block_small_ones_cost_what_they_did_before(pause: int) -> None:
    work = Work()
    decoder = counted(WIRE, vars(wire), work)["Decoder"](max_event_size=1000)

    def cost(chunk: bytes) -> int:
        before = work.total
        assert len(decoder.feed(chunk)) == 2
        return work.total - before

    small = b"data: x\ndata: y\nid: 1\n\n" * 2
    cost(small)  # the first may have a BOM
    as_before = cost(small)
    large = b"data: x\n" * 100 + b"\n"
    decoder.feed(large[: len(large) - pause])
    decoder.feed(large[len(large) - pause :])
    assert cost(small) == as_before


# The expression for whole blocks.

STEPS_PER_CHARACTER: Final = 16

BLOCKS: Final = [
    *("data: x\n", "data:x\n", "data\n", "data:  x\n", "data: \n", "data: data: x\n"),
    *("id: 1\n", "id:  1\n", "id: 1\0\n", "id\n", "event: t\n", "event: \n", "event:t\n"),
    *("retry: 1\n", "retry: x\n", "retry: " + "1" * 16 + "\n", ": c\n", "foo\n", "x" * 50 + "\n"),
    *("data: " + "x" * 50 + "\n", "\n"),
]


@pytest.mark.parametrize("last", ["\n", "foo\n\n", "retry: x\n\n"])
@pytest.mark.parametrize("repeated", ["x", " ", *BLOCKS])
@pytest.mark.parametrize("first", ["", "data: ", "event: t\nid: 1\nevent: t\n"])
def test_matching_blocks_is_linear(first: str, repeated: str, last: str) -> None:
    def steps(length: int) -> int:
        text = first + repeated * (length // len(repeated)) + last
        if not text.endswith("\n\n"):
            text += "\n"
        return checked_steps(wire._BLOCK, text)

    assert steps(250) < STEPS_PER_CHARACTER * 250 + 500
    assert max(growth(steps, 250)) < LINEAR


@settings(deadline=None)
@given(text=st.lists(st.sampled_from(BLOCKS), max_size=60).map("".join))
def test_matching_any_blocks_takes_a_fixed_number_of_steps_a_character(text: str) -> None:
    text += "\n\n"
    assert checked_steps(wire._BLOCK, text) < STEPS_PER_CHARACTER * len(text) + 50


def checked_steps(pattern: re.Pattern[str], text: str) -> int:
    spans, steps = match_steps(pattern, text)
    assert spans == [match.span() for match in pattern.finditer(text)]
    return steps


@pytest.mark.parametrize(
    ("pattern", "first", "unit"),
    [
        (r"(?:data:[^\n]*\n)+\n|[^\n]*\n", "", "data: x\n"),  # at each line, all lines
        (r"data:[^\0]*\n\n|[^\n]*\n", "", "data: x\n"),
        (r"data: *([^\n]*)\0|[^\n]*\n", "data: ", " "),  # at each space, the rest of the line
    ],
)
def test_counting_steps_tells_what_is_not_linear(pattern: str, first: str, unit: str) -> None:
    def steps(length: int) -> int:
        text = first + unit * (length // len(unit)) + "foo\n"
        return checked_steps(re.compile(pattern), text)

    assert min(growth(steps, 200)) > 3


# What is counted, and what is not linear.

NOT_LINEAR: Final = {
    "joins what it holds with each piece": (
        b"x",
        """
class Decoder:
    def __init__(self): self.held = ""
    def feed(self, data):
        self.held += data.decode()
        if self.held.endswith("\\n\\n"):
            return [self.held]
""",
    ),
    "splits what it holds with each piece": (
        b"x",
        """
class Decoder:
    def __init__(self): self.parts = []
    def feed(self, data):
        self.parts.append(data.decode())
        for part in "".join(self.parts).split("\\n"):
            last = part
        return last
""",
    ),
    "looks again for the end": (
        b"x",
        """
class Decoder:
    def __init__(self): self.parts = []
    def feed(self, data):
        self.parts.append(data.decode())
        for part in self.parts:
            if "\\n" in part:
                return part
""",
    ),
    "adds to the data line by line": (
        b"data: x\n",
        """
class Decoder:
    def feed(self, data):
        held = ""
        for line in data.decode().split("\\n"):
            held = f"{held}{line}"
        return held
""",
    ),
    "cuts off line by line": (
        b"data: x\n",
        """
class Decoder:
    def feed(self, data):
        text = data.decode()
        while "\\n" in text:
            line, _, text = text.partition("\\n")
        return text
""",
    ),
    "slices line by line": (
        b"data: x\n",
        """
class Decoder:
    def feed(self, data):
        text = data.decode()
        while text:
            text = text[8:]
        return text
""",
    ),
    "reads a number of any length": (
        b"1",
        """
class Decoder:
    def feed(self, data):
        return int(data.decode())
""",
    ),
}


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_counting_tells_a_decoder_that_is_not_linear(name: str) -> None:
    unit, source = NOT_LINEAR[name]
    size = 1 if "each piece" in name or "again" in name else WHOLE

    def work(length: int) -> int:
        return work_of_decoding(unit * (length // len(unit)), size, source)

    assert min(growth(work, 400)) > 3


def test_counting_tells_the_reference_from_the_decoder() -> None:
    names = {**vars(reference_decoder), "re": re}
    source = inspect.getsource(reference_decoder.split)

    def work(length: int) -> int:
        counting = Work()
        counted(source, names, counting)["split"]("x" * length)
        return counting.total

    assert growth(work, 1000)[-1] == pytest.approx(4, rel=0.05)


def test_what_cannot_be_counted_is_an_error() -> None:
    source = "def hidden(text):\n    return sorted(text)\n"
    with pytest.raises(AssertionError, match="what does <built-in function sorted> cost"):
        counted(source, {}, Work())["hidden"]("text")


# The other way.

EVENTS: Final[dict[str, Callable[[int], dict[str, Any]]]] = {
    "one line": lambda n: {"data": "x" * n},
    "lines": lambda n: {"data": "x\n" * (n // 2)},
    "empty lines": lambda n: {"data": "\n" * n},
    "every line ending": lambda n: {"data": "a\r\nb\rc\n" * (n // 7)},
    "comments": lambda n: {"comment": "\r" * n},
    "id": lambda n: {"data": "", "id": "é" * n},
}


@pytest.mark.parametrize("name", EVENTS)
def test_encoding_is_linear(name: str) -> None:
    def work(length: int) -> int:
        counting = Work()
        encode = counted(inspect.getsource(_event), vars(_event), counting)["encode"]
        encode(Event(**EVENTS[name](length)))
        return counting.total

    assert max(growth(work, 10_000)) < LINEAR
