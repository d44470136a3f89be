"""`Decoder`: what it makes of streams, cut in any way, and where it draws the line."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import FrozenInstanceError

import pytest
import reference_decoder
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wire_cases import CASES, Block, Case, block_of, ways_to_cut

from trio_sse.wire import Decoder, Event, EventTooLarge


def decode(chunks: Iterable[bytes], decoder: Decoder) -> list[Block]:
    return [block_of(event) for chunk in chunks for event in decoder.feed(chunk)]


def decode_bounded(chunks: Iterable[bytes], decoder: Decoder) -> tuple[list[Block], bool]:
    """The blocks, and whether the stream was too large."""
    events: list[Event] = []
    try:
        for chunk in chunks:
            events += decoder.feed(chunk)
    except EventTooLarge as exc:
        return [block_of(event) for event in events + exc.events], True
    return [block_of(event) for event in events], False


# What streams say.


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_stream_says_the_same_however_it_is_cut(case: Case) -> None:
    for chunks in ways_to_cut(case.stream):
        decoder = Decoder()
        assert decode(chunks, decoder) == case.events, chunks
        assert decoder.last_event_id == case.last_event_id, chunks
        assert decoder.retry == case.retry, chunks


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_every_block_says_the_same_however_it_is_cut(case: Case) -> None:
    for chunks in ways_to_cut(case.stream):
        assert decode(chunks, Decoder(every_block=True)) == case.blocks, chunks


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_stream_taken_line_by_line_says_the_same(case: Case) -> None:
    # With bounds hardly above what is there, every block is "large".
    size = max(map(len, case.stream.splitlines()), default=0) + 40
    for chunks in ways_to_cut(case.stream):
        decoder = Decoder(max_line_size=size, max_event_size=size, every_block=True)
        assert decode(chunks, decoder) == case.blocks, chunks


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_the_cases_are_right(case: Case) -> None:
    meaning = reference_decoder.read(case.stream)
    assert meaning.blocks == case.blocks
    assert (meaning.last_event_id, meaning.retry) == (case.last_event_id, case.retry)


def test_an_event_comes_with_the_byte_that_ends_it() -> None:
    for ending in (b"\n", b"\r", b"\r\n"):
        stream = b"id: 1" + ending + b"data: a" + ending + ending[:1]
        decoder = Decoder()
        came = [decoder.feed(stream[i : i + 1]) for i in range(len(stream))]
        assert came == [[]] * (len(stream) - 1) + [[Event("a", id="1")]]


def test_the_last_event_id_changes_with_the_block_and_retry_with_the_line() -> None:
    decoder = Decoder()
    decoder.feed(b"id: 1\nretry: 5")
    assert (decoder.last_event_id, decoder.retry) == ("", None)
    decoder.feed(b"\n")
    assert (decoder.last_event_id, decoder.retry) == ("", 5)
    decoder.feed(b"\n")
    assert (decoder.last_event_id, decoder.retry) == ("1", 5)


def test_a_retry_beyond_any_time_is_ignored() -> None:
    decoder = Decoder()
    decoder.feed(b"retry: 999999999999999\n\nretry: 1000000000000000\n\n")
    assert decoder.retry == 999_999_999_999_999
    decoder.feed(b"data: a\nretry: " + b"9" * 100_000 + b"\n\n")  # Python would not read it
    assert decoder.retry == 999_999_999_999_999


def test_what_comes_out_are_events_like_any_others() -> None:
    (event,) = Decoder().feed(b"id: 1\ndata: a\n\n")
    assert type(event) is Event
    assert event == Event("a", id="1")
    assert hash(event) == hash(Event("a", id="1"))
    with pytest.raises(FrozenInstanceError):
        event.data = "b"  # type: ignore[misc]  # that it cannot be is the test


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_any_bytes_can_be_fed(form: Callable[[bytes], bytes]) -> None:
    decoder = Decoder()
    chunks = ["data: é".encode()[:-1], "é".encode()[1:], b"\r", b"\n\r\n"]
    assert decode(map(form, chunks), decoder) == [Block("é")]


def test_what_was_fed_may_change_afterwards() -> None:
    chunk = bytearray("data: é".encode()[:-1])
    decoder = Decoder()
    decoder.feed(chunk)
    chunk[:] = b"x" * len(chunk)
    assert decode([b"\xa9\n\n"], decoder) == [Block("é")]


@pytest.mark.parametrize("wrong", ["text", 3, None])
def test_nothing_else_can_be_fed(wrong: object) -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        Decoder().feed(wrong)  # type: ignore[arg-type]  # that it is refused is the test


def test_its_repr_tells_its_state() -> None:
    decoder = Decoder(max_line_size=100, max_event_size=100)
    decoder.feed(b"id: 7\nretry: 5\n\ndata: 12")
    assert repr(decoder) == "<Decoder last_event_id='7' retry=5 unfinished=8>"
    with pytest.raises(EventTooLarge):
        decoder.feed(b"x" * 200)
    assert repr(decoder) == "<Decoder last_event_id='7' retry=5 unfinished=0 failed>"


# Any stream at all, against the reference.

PIECES = [
    *(b"\r", b"\n", b"\r\n", b"\n\n", b":", b": ", b" ", b"x"),
    *(b"data", b"id", b"event", b"retry", b"data: ", b"data:", b"id: ", b"event: ", b"retry: "),
    *(b"\0", b"12", b"007", b"9" * 15, b"1" + b"0" * 15, "٣".encode()),
    *(b"\xef\xbb\xbf", b"\xef", b"\xbb", b"\xbf", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf0\x9d"),
    *("é€𝄞".encode(), "\u2028".encode(), "\u2029".encode(), b"\x0b", b"\x0c", "\x85".encode()),
    *(b"data: a\n", b"data:b\r\n", b"data: \r", b"event: t\n", b"id: 1\n", b"id: 2\0\n"),
    *(b"id: 3\ndata: c\n\n", b"event: u\nid: 4\ndata: d\ndata: e\nretry: 5\n\n", b": f\r\n\r\n"),
]

streams = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=40).map(b"".join)


@st.composite
def cut_streams(draw: st.DrawFn) -> list[bytes]:
    stream = draw(streams)
    places = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


@settings(max_examples=500, deadline=None)
@given(chunks=cut_streams())
@example(chunks=[b"data: a\ndata: data: b\n\n"])
def test_any_stream_says_what_the_reference_reads(chunks: list[bytes]) -> None:
    decoder = Decoder(every_block=True)
    blocks = decode(chunks, decoder)
    meaning = reference_decoder.read(b"".join(chunks))
    assert blocks == meaning.blocks
    assert (decoder.last_event_id, decoder.retry) == (meaning.last_event_id, meaning.retry)


@settings(max_examples=500, deadline=None)
@given(
    chunks=cut_streams(),
    max_line_size=st.integers(1, 60),
    max_event_size=st.integers(1, 60),
)
def test_any_bounds_are_those_of_the_reference(
    chunks: list[bytes], max_line_size: int, max_event_size: int
) -> None:
    decoder = Decoder(max_line_size=max_line_size, max_event_size=max_event_size, every_block=True)
    blocks, too_large = decode_bounded(chunks, decoder)
    meaning = reference_decoder.read(
        b"".join(chunks), max_line_size=max_line_size, max_event_size=max_event_size
    )
    assert (blocks, too_large) == (meaning.blocks, meaning.too_large)
    assert (decoder.last_event_id, decoder.retry) == (meaning.last_event_id, meaning.retry)


# Bounds. Of each: what is on either side of it, at any cut, of narrow text and wide.


def filled(size: int, wide: str) -> str:
    """Text of ``size`` bytes, as much of it as can be ``wide``."""
    count, rest = divmod(size, len(wide.encode()))
    return wide * count + "x" * rest


BEFORE = b"id: 1\ndata: before\n\n"
AFTER = b"data: after\n\n"
widths = pytest.mark.parametrize("wide", ["x", "é", "€", "𝄞"])
bounds = pytest.mark.parametrize("bound", [20, 100])


def outcomes(
    ways: Iterable[list[bytes]], **bounds: int
) -> set[tuple[tuple[str | None, ...], bool]]:
    """What comes of a stream, over all ways to cut it: the data of its events, and failure."""
    seen = set()
    for chunks in ways:
        blocks, too_large = decode_bounded(chunks, Decoder(**bounds))
        seen.add((tuple(block.data for block in blocks), too_large))
    return seen


@widths
@bounds
@pytest.mark.parametrize("name", ["data: ", "data:", "id: ", "event: ", ": ", "unknown", "retry: "])
def test_a_line_may_be_as_large_as_its_bound(wide: str, bound: int, name: str) -> None:
    for size in (bound - 1, bound, bound + 1):
        line = name + filled(size - len(name), wide)
        stream = BEFORE + line.encode() + b"\ndata: x\n\n" + AFTER
        value = line.removeprefix(name)
        data = f"{value}\nx" if name.startswith("data") else "x"
        expected = (("before",), True) if size > bound else (("before", data, "after"), False)
        assert outcomes(ways_to_cut(stream), max_line_size=bound, max_event_size=1000) == {expected}
        # It need not have ended to be too large.
        unended = stream[: len(BEFORE) + len(line.encode())]
        ways = ways_to_cut(unended, more=b"")
        assert outcomes(ways, max_line_size=bound) == {(("before",), size > bound)}


@widths
@bounds
@pytest.mark.parametrize("lines", [1, 2, 5])
@pytest.mark.parametrize("first", ["", "id: 7\n", "event: t\n", "foo\n", ": c\n", "retry: 1\n"])
def test_an_event_may_be_as_large_as_its_bound(
    wide: str, bound: int, lines: int, first: str
) -> None:
    for size in (bound - 1, bound, bound + 1):
        others = ["a"] * (lines - 1)
        data = "\n".join([*others, filled(size - 2 * len(others), wide)])
        assert len(data.encode()) == size
        stream = f"{first}data: ".encode() + data.replace("\n", "\ndata: ").encode() + b"\n\n"
        expected = (("before",), True) if size > bound else (("before", data, "after"), False)
        for limits in ({"max_event_size": bound}, {"max_event_size": bound, "max_line_size": 300}):
            assert outcomes(ways_to_cut(BEFORE + stream + AFTER), **limits) == {expected}


@bounds
@pytest.mark.parametrize("field", [b"data", b"data:", b"data: "])
@pytest.mark.parametrize("ending", [b"\n", b"\r", b"\r\n"])
def test_empty_data_lines_count(bound: int, field: bytes, ending: bytes) -> None:
    for lines in (bound, bound + 1, bound + 2):
        stream = BEFORE + (field + ending) * lines + ending + AFTER
        too_large = lines - 1 > bound
        data = "\n" * (lines - 1)
        expected = (("before",), True) if too_large else (("before", data, "after"), False)
        assert outcomes(ways_to_cut(stream), max_event_size=bound) == {expected}


def test_a_byte_that_is_not_utf8_counts_as_what_it_becomes() -> None:
    stream = b"data: " + b"\xff" * 10 + b"\n\n"
    assert outcomes(ways_to_cut(stream), max_line_size=36) == {(("\ufffd" * 10,), False)}
    assert outcomes(ways_to_cut(stream), max_line_size=35) == {((), True)}


@widths
@bounds
def test_comments_beyond_the_bound_are_not_kept_and_end_nothing(wide: str, bound: int) -> None:
    for size in (bound - 1, bound, bound + 1):
        first = filled(size - 2, wide)
        stream = f": {first}\n: b\n: c\ndata: x\n\n".encode()
        comment = f"{first}\nb" if size <= bound else first
        comment += "\nc" if size + 2 <= bound else ""
        for chunks in ways_to_cut(stream):
            (block,) = decode(chunks, Decoder(max_event_size=bound))
            assert block == Block("x", comment=comment)


def test_after_too_large_an_event_there_is_nothing_more() -> None:
    decoder = Decoder(max_event_size=10)
    with pytest.raises(EventTooLarge) as first:
        decoder.feed(BEFORE + b"data: " + b"x" * 11 + b"\n\n" + AFTER)
    assert first.value.events == [Event("before", id="1")]
    assert str(first.value) == (
        "the stream sent an event of more than 10 bytes; "
        "if that is expected, raise the bound, as in Decoder(max_event_size=20)"
    )
    for chunk in (AFTER, b""):
        with pytest.raises(EventTooLarge, match="more than 10 bytes") as again:
            decoder.feed(chunk)
        assert again.value.events == []  # they were given once
    assert decoder.last_event_id == "1"


def test_the_error_names_the_bound_that_was_met() -> None:
    with pytest.raises(EventTooLarge, match=r"a line .* 10 bytes; .* Decoder\(max_line_size=20\)"):
        Decoder(max_line_size=10).feed(b"data: " + b"x" * 10)


@pytest.mark.parametrize("bounds", [{"max_line_size": 0}, {"max_event_size": -1}])
def test_bounds_must_be_positive(bounds: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"at least 1 byte, as in Decoder\(max_event_size="):
        Decoder(**bounds)


ENDLESS = {
    "a line": b"x",
    "a wide line": "€".encode(),
    "data lines": b"data: x\n",
    "wide data lines": "data: €€\n".encode(),
    "empty data lines": b"data\n",
    "comments": b": comment\n",
    "empty comments": b":\n",
    "ids": b"id: 123456789\n",
    "types": b"event: t\n",
    "retries": b"retry: 1\n",
    "unknown lines": b"foo\n",
    "empty lines": b"\n",
    "bytes that are not UTF-8": b"\xf0",
    "line endings": b"\r",
}


@pytest.mark.parametrize("size", [1, 100, 10_000])
@pytest.mark.parametrize("what", ENDLESS)
def test_an_endless_block_takes_bounded_memory(what: str, size: int) -> None:
    bound = 1 << 12
    unit = ENDLESS[what]
    chunk = unit * max(1, size // len(unit))
    decoder = Decoder(max_line_size=bound, max_event_size=bound)
    fed = 0
    tracemalloc.start()
    with suppress(EventTooLarge):
        while fed < 10 * bound:
            decoder.feed(chunk)
            fed += len(chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A string of its own for each few characters is what costs most.
    assert peak < 30 * bound + 10 * len(chunk)


def test_a_failed_decoder_holds_nothing() -> None:
    decoder = Decoder()
    with pytest.raises(EventTooLarge):
        decoder.feed(b"data: " + b"x" * (1 << 21))
    held = sum(sys.getsizeof(getattr(decoder, name)) for name in vars(decoder))
    assert held < 5_000
