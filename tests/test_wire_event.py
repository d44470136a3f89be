"""`Event`: what it takes and refuses; `encode`: how it is written, and read again."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
from dataclasses import FrozenInstanceError, replace
from enum import Enum, IntEnum
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wire_cases import Block, block_of

from trio_sse import _event, wire
from trio_sse.wire import Decoder, Event, encode

# What an event is.


def test_what_is_left_out_has_its_default() -> None:
    event = Event("text")
    assert (event.data, event.type) == ("text", "message")
    assert (event.id, event.retry, event.comment) == (None, None, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"data": ""},
        {"id": ""},
        {"id": "1"},
        {"retry": 0},
        {"comment": ""},
        {"data": "a\r\nb\rc\nd\0\u2028\x85", "comment": "a\r\nb"},
        {"data": "", "type": "t: \0 é\u2028\x0b", "id": "1: é\u2028\x0b"},
        {"data": "", "type": "message"},
        {"data": "", "retry": 999_999_999_999_999},
    ],
)
def test_it_takes_what_the_wire_can_carry(fields: dict[str, Any]) -> None:
    event = Event(**fields)
    for name, value in fields.items():
        assert getattr(event, name) == value


def test_it_is_frozen_and_slotted() -> None:
    event = Event("a")
    with pytest.raises(FrozenInstanceError):
        event.data = "b"  # type: ignore[misc]  # that it cannot be is the test
    with pytest.raises(FrozenInstanceError):
        del event.data  # type: ignore[misc]  # likewise
    assert not hasattr(event, "__dict__")


def test_it_is_a_value() -> None:
    event = Event("a", type="t", id="1", retry=2, comment="c")
    same = Event("a", type="t", id="1", retry=2, comment="c")
    assert event == same
    assert hash(event) == hash(same)
    assert len({event, same, Event("a"), Event("b")}) == 3
    assert event != replace(event, id=None)
    assert copy.deepcopy(event) == pickle.loads(pickle.dumps(event)) == event
    assert repr(event) == "Event(data='a', type='t', id='1', retry=2, comment='c')"


def test_a_changed_copy_is_checked_too() -> None:
    assert replace(Event("a", id="1"), data="b") == Event("b", id="1")
    with pytest.raises(ValueError, match="line break"):
        replace(Event("a", id="1"), id="1\n")


class _Kind(str, Enum):
    NEWS = "news"
    PLAIN = "message"


class _Milliseconds(IntEnum):
    SOON = 100


class _Shouting(str):
    def __format__(self, spec: str) -> str:
        return "forged\nid: 1"

    __str__ = __repr__ = upper = lambda self: "forged"


def test_a_kind_of_text_is_kept_as_its_text() -> None:
    event = Event(
        _Kind.NEWS, type=_Kind.NEWS, id=_Kind.NEWS, comment=_Kind.NEWS, retry=_Milliseconds.SOON
    )
    assert encode(event) == b": news\nid: news\nevent: news\nretry: 100\ndata: news\n\n"
    for text in (event.data, event.type, event.id, event.comment):
        assert type(text) is str
    assert type(event.retry) is int
    assert type(Event("a", type=_Kind.PLAIN).type) is str
    assert encode(Event("a", type=_Shouting("t"))) == b"event: t\ndata: a\n\n"


# What it refuses, and what it says then: the wrong call and the right one.


REFUSED: list[tuple[dict[str, Any], type[Exception], str, str]] = [
    ({}, ValueError, "Event()", 'Event("")'),
    ({"type": "t"}, ValueError, "Event(type='t')", "Event(\"\", type='t')"),
    ({"data": 3}, TypeError, "Event(data=3)", "Event.json(3)"),
    ({"data": ["a"]}, TypeError, "Event(data=['a'])", "Event.json(['a'])"),
    ({"data": b"a"}, TypeError, "Event(data=b'a')", "Event(data=body.decode())"),
    ({"data": "", "id": 3}, TypeError, "Event(id=3)", "Event(id='3')"),
    ({"data": "", "id": b"3"}, TypeError, "Event(id=b'3')", "Event(id=body.decode())"),
    ({"data": "", "type": None}, TypeError, "Event(type=None)", "Event(type='None')"),
    ({"data": "", "type": 3.5}, TypeError, "Event(type=3.5)", "Event(type='3.5')"),
    ({"comment": 3}, TypeError, "Event(comment=3)", "Event(comment='3')"),
    ({"data": "", "type": ""}, ValueError, 'Event(type="")', 'Event("text")'),
    ({"data": "", "type": "a\nb"}, ValueError, r"Event(type='a\nb')", "Event(type='a')"),
    ({"data": "", "type": "\r"}, ValueError, r"Event(type='\r')", "Event(type='one line')"),
    ({"data": "", "id": "1\r"}, ValueError, r"Event(id='1\r')", "Event(id='1')"),
    ({"data": "", "id": "\n1"}, ValueError, r"Event(id='\n1')", "Event(id='1')"),
    ({"data": "", "id": "é\n"}, ValueError, r"Event(id='é\n')", "Event(id='é')"),
    ({"data": "", "id": "4\0"}, ValueError, r"Event(id='4\x00')", "Event(id='4')"),
    ({"retry": -1}, ValueError, "Event(retry=-1)", "Event(retry=1)"),
    ({"retry": 10**15}, ValueError, "Event(retry=1000000000000000)", "Event(retry=3000)"),
    ({"retry": 1.5}, TypeError, "Event(retry=1.5)", "Event(retry=3000)"),
    ({"retry": "1"}, TypeError, "Event(retry='1')", "Event(retry=3000)"),
    ({"retry": True}, TypeError, "Event(retry=True)", "Event(retry=3000)"),
    *(
        (
            {"data": "", name: "a\ud800"},
            ValueError,
            rf"Event({name}='a\ud800')",
            f"Event({name}=text.encode(errors='replace').decode())",
        )
        for name in ("data", "type", "id", "comment")
    ),
]


@pytest.mark.parametrize(("fields", "error", "wrong", "right"), REFUSED)
def test_a_refusal_shows_the_wrong_call_and_the_right_one(
    fields: dict[str, Any], error: type[Exception], wrong: str, right: str
) -> None:
    with pytest.raises(error) as caught:
        Event(**fields)
    message = str(caught.value)
    assert message.startswith(wrong)
    assert right in message.removeprefix(wrong)


@pytest.mark.parametrize("name", ["data", "id", "type", "comment"])
@pytest.mark.parametrize("wrong", [b"x" * 1_000_000, ["x"] * 1_000_000, "\ud800" * 1_000_000])
def test_a_refusal_is_short_whatever_was_given(name: str, wrong: object) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        Event(**{"data": "", name: wrong})
    assert len(str(caught.value)) < 400


def test_a_huge_number_is_refused_without_being_written_out() -> None:
    # Python itself refuses to write so many digits.
    with pytest.raises(ValueError, match=r"Event\(retry=\.\.\.\).*15 digits"):
        Event(retry=10**5000)
    with pytest.raises(ValueError, match=r"Event\(retry=-\.\.\.\).*Event\(retry=3000\)"):
        Event(retry=-(10**5000))


# JSON.


def test_json_is_compact_and_keeps_characters() -> None:
    event = Event.json({"a": [1, None, "é…"], "b": "x\ny"}, type="t", id="1", retry=2)
    assert event == Event('{"a":[1,null,"é…"],"b":"x\\ny"}', type="t", id="1", retry=2)


def test_any_json_is_one_line() -> None:
    assert encode(Event.json("\r\n")) == b'data: "\\r\\n"\n\n'


@pytest.mark.parametrize("number", [float("nan"), float("inf"), [-float("inf")]])
def test_json_has_no_such_number(number: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Event.json(number)


def test_json_of_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        Event.json({1, 2})
    with pytest.raises(ValueError, match="lone surrogate"):
        Event.json("\ud800")


# How it is written.

ENCODED = [
    (Event("a"), b"data: a\n\n"),
    (Event(""), b"data: \n\n"),
    (Event(" a "), b"data:  a \n\n"),
    (Event("a\nb\rc\r\nd"), b"data: a\ndata: b\ndata: c\ndata: d\n\n"),
    (Event("a\rb"), b"data: a\ndata: b\n\n"),
    (Event("\n"), b"data: \ndata: \n\n"),
    (Event("\r\r\n"), b"data: \ndata: \ndata: \n\n"),
    (Event("a\n"), b"data: a\ndata: \n\n"),
    (Event("é…𝄞"), "data: é…𝄞\n\n".encode()),
    (Event("a\u2028b\x85c\x0bd\x0ce"), "data: a\u2028b\x85c\x0bd\x0ce\n\n".encode()),
    (Event("\0"), b"data: \0\n\n"),
    (Event("a", type="t"), b"event: t\ndata: a\n\n"),
    (Event("a", type="message"), b"data: a\n\n"),
    (Event("a", id="1"), b"id: 1\ndata: a\n\n"),
    (Event("a", id=""), b"id: \ndata: a\n\n"),
    (Event("a", id=" 1"), b"id:  1\ndata: a\n\n"),
    (Event("a", retry=0), b"retry: 0\ndata: a\n\n"),
    (Event("a", comment="b"), b": b\ndata: a\n\n"),
    (Event(comment="a\r\nb\rc\n"), b": a\n: b\n: c\n: \n\n"),
    (Event(comment=""), b": \n\n"),
    (Event(id="1"), b"id: 1\n\n"),
    (Event(retry=3000), b"retry: 3000\n\n"),
    (
        Event("a", type="t", id="1", retry=2, comment="c"),
        b": c\nid: 1\nevent: t\nretry: 2\ndata: a\n\n",
    ),
]


@pytest.mark.parametrize(("event", "written"), ENCODED)
def test_how_an_event_is_written(event: Event, written: bytes) -> None:
    assert encode(event) == written


@pytest.mark.parametrize(
    ("event", "written"),
    [
        (Event("a"), b"id: 7.1\ndata: a\n\n"),
        (Event("a", id="1", type="t"), b"id: 7.1\nevent: t\ndata: a\n\n"),
        (Event(comment="c"), b": c\nid: 7.1\n\n"),
    ],
)
def test_an_id_can_be_given_when_it_is_written(event: Event, written: bytes) -> None:
    assert encode(event, id="7.1") == written
    assert encode(event, id="") == written.replace(b"7.1", b"")


# There and back.

PIECES = [
    "\r",
    "\n",
    "\r\n",
    ":",
    " ",
    "\0",
    "a",
    "é…𝄞",
    "\u2028",
    "\x0b\x0c\x85",
    "\ufeff",
    "data: ",
]

characters = st.characters(exclude_categories=["Cs"])
text = st.lists(st.sampled_from(PIECES) | characters, max_size=6).map("".join)
line = text.map(lambda value: value.replace("\r", "").replace("\n", ""))
fields = st.fixed_dictionaries(
    {},
    optional={
        "data": text,
        "type": line.filter(bool),
        "id": line.map(lambda value: value.replace("\0", "")),
        "retry": st.integers(0, 10**15 - 1),
        "comment": text,
    },
)
events = fields.filter(lambda each: each.keys() - {"type"}).map(lambda each: Event(**each))


def read(event: Event, last_event_id: str) -> Block:
    """What clients make of an event."""
    data, comment = (
        None if value is None else value.replace("\r\n", "\n").replace("\r", "\n")
        for value in (event.data, event.comment)
    )
    event_id = last_event_id if event.id is None else event.id
    return Block(data, event.type, event_id, event.retry, comment)


@settings(max_examples=300, deadline=None)
@given(sent=st.lists(events, max_size=5), size=st.integers(1, 50))
@example(sent=[Event("\ufeff")], size=1)
@example(sent=[Event(comment="\r"), Event("data: x\ndata: y")], size=3)
def test_what_is_written_is_read_again(sent: list[Event], size: int) -> None:
    stream = b"".join(map(encode, sent))
    expected = []
    last_event_id = ""
    for event in sent:
        expected.append(read(event, last_event_id))
        last_event_id = expected[-1].id
    decoder = Decoder(every_block=True)
    received = [
        event for i in range(0, len(stream), size) for event in decoder.feed(stream[i : i + size])
    ]
    assert [block_of(event) for event in received] == expected
    assert decoder.last_event_id == last_event_id
    retries = [event.retry for event in sent if event.retry is not None]
    assert decoder.retry == (retries[-1] if retries else None)
    # And once read, it is written so that it is read as the same.
    again = b"".join(map(encode, received))
    assert Decoder(every_block=True).feed(again) == received


@pytest.mark.parametrize("module", [wire, _event])
def test_the_wire_is_made_of_little(module: ModuleType) -> None:
    used = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            used.add(node.module)
    neither_io_nor_trio = {"codecs", "dataclasses", "json", "re", "reprlib", "typing"}
    assert used <= neither_io_nor_trio | {"__future__", "_event"}
