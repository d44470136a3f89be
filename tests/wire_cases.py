"""Event streams and what they say, by the rules of the WHATWG HTML standard, 9.2.5 and 9.2.6.

For every test of something that reads event streams. The cases follow the standard's text and
cover what the web platform's own tests of `EventSource` cover; each is named after its rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from trio_sse.wire import Event


class Block(NamedTuple):
    """What one block of a stream says: an event, or if ``data`` is ``None``, no event."""

    data: str | None
    type: str = "message"
    id: str = ""
    retry: int | None = None
    comment: str | None = None


def block_of(event: Event) -> Block:
    return Block(event.data, event.type, event.id or "", event.retry, event.comment)


@dataclass(frozen=True)
class Case:
    """A stream and its meaning.

    Attributes:
        blocks: every block that says anything, in order.
        last_event_id: as it is after the stream.
        retry: the reconnection time after the stream, in milliseconds.
    """

    rule: str
    stream: bytes
    blocks: list[Block] = field(default_factory=list)
    last_event_id: str = ""
    retry: int | None = None

    @property
    def events(self) -> list[Block]:
        """The blocks that the standard dispatches an event for."""
        return [block for block in self.blocks if block.data is not None]


BOM: Final = "\ufeff".encode()

STREAM: Final = [
    Case("an empty stream says nothing", b""),
    Case("one BOM at the start is dropped", BOM + b"data: 1\n\n", [Block("1")]),
    Case(
        "a BOM anywhere else is part of a field name",
        BOM + b"data: 1\n\n" + BOM + b"data: 2\n\ndata: 3\n\n",
        [Block("1"), Block("3")],
    ),
    Case(
        "of two BOMs at the start one is dropped",
        BOM + BOM + b"data: 1\n\ndata: 2\n\n",
        [Block("2")],
    ),
    Case(
        "a BOM after an empty line is not at the start",
        b"\n" + BOM + b"data: 1\n\ndata: 2\n\n",
        [Block("2")],
    ),
    Case("a BOM in a value stays", b"data: " + BOM + b"\n\n", [Block("\ufeff")]),
    Case("half a BOM is not UTF-8", b"\xef\xbb:\n\ndata: x\n\n", [Block("x")]),
    Case("text is UTF-8", "data: ok…\ndata: 𝄞é\n\n".encode(), [Block("ok…\n𝄞é")]),
    Case(
        "bytes that are not UTF-8 become replacement characters",
        b"data: \xff|\xe2\x80|\xf0\x9d\x84|\xc0\xaf|\xed\xa0\x80|\xe2\n\n",
        [Block("\ufffd|\ufffd|\ufffd|\ufffd\ufffd|\ufffd\ufffd\ufffd|\ufffd")],
    ),
    Case("NUL is a character", b"data:\0\n\n", [Block("\0")]),
    Case("NUL in a field name makes it unknown", b"da\0ta: x\ndata: y\n\n", [Block("y")]),
]

LINES: Final = [
    Case("LF ends a line", b"data: a\ndata: b\n\n", [Block("a\nb")]),
    Case("CR ends a line", b"data: a\rdata: b\r\r", [Block("a\nb")]),
    Case("CRLF ends a line, once", b"data: a\r\ndata: b\r\n\r\n", [Block("a\nb")]),
    Case(
        "line endings may be mixed",
        b"data: a\r\ndata: b\rdata: c\ndata: d\r\n\r",
        [Block("a\nb\nc\nd")],
    ),
    Case("LF CR is two endings", b"data: a\n\rdata: b\n\r", [Block("a"), Block("b")]),
    Case("CR CR LF is two endings", b"data: a\r\r\ndata: b\r\r\n", [Block("a"), Block("b")]),
    Case("CR LF LF is two endings", b"data: a\r\n\ndata: b\r\n\n", [Block("a"), Block("b")]),
    Case("empty lines between blocks say nothing", b"\n\r\n\r\n\n\ndata: a\n\n\n\n", [Block("a")]),
    Case(
        "no other character ends a line",
        "data: a\u2028b\u2029c\x0bd\x0ce\x85f\x1cg\x1dh\x1ei\n\n".encode(),
        [Block("a\u2028b\u2029c\x0bd\x0ce\x85f\x1cg\x1dh\x1ei")],
    ),
    Case("an event without its empty line is dropped", b"data: a\n\ndata: b\n", [Block("a")]),
    Case("a line without its ending is dropped", b"data: a\ndata: b", []),
    Case(
        "what is dropped at the end sets no id",
        b"retry: 1000\ndata: a\n\nid: 1\ndata: b",
        [Block("a", retry=1000)],
        retry=1000,
    ),
]

FIELDS: Final = [
    Case(
        "a colon first makes a comment",
        b"data: 1\r:\0\n:\r\ndata: 2\n:" + b"x" * 2000 + b"\rdata: 3\n:data: no\ndata: 4\n\n",
        [Block("1\n2\n3\n4", comment="\0\n\n" + "x" * 2000 + "\ndata: no")],
    ),
    Case("a comment alone is no event", b": hello\n\n", [Block(None, comment="hello")]),
    Case("an empty comment is one", b":\n\n", [Block(None, comment="")]),
    Case(
        "several comments are lines of one",
        b": a\n\n:b\n:  c\ndata: d\n\n",
        [Block(None, comment="a"), Block("d", comment="b\n c")],
    ),
    Case(
        "comments are for one block",
        b": " + b"a" * 30 + b"\n\n: " + b"b" * 30 + b"\n\n: " + b"c" * 30 + b"\ndata: d\n\n",
        [
            Block(None, comment="a" * 30),
            Block(None, comment="b" * 30),
            Block("d", comment="c" * 30),
        ],
    ),
    Case("one space after the colon is dropped", b"data:  a\ndata:b\n\n", [Block(" a\nb")]),
    Case("other white space stays", b"data:\ta \rdata: \ndata:b\n\n", [Block("\ta \n\nb")]),
    Case("a space before the name is part of it", b" data: a\ndata: b\n\n", [Block("b")]),
    Case("a space before the colon is part of the name", b"data : a\ndata: b\n\n", [Block("b")]),
    Case("the first colon ends the name", b"data: a: b:c\ndata::d\n\n", [Block("a: b:c\n:d")]),
    Case("names are case-sensitive", b"Data: a\nDATA: b\ndata: c\nID: 1\n\n", [Block("c")]),
    Case(
        "unknown fields are ignored",
        b"data: a\n data\ndata\nfoobar: xxx\njust some text\n: comment\ndata: b\n\n",
        [Block("a\n\nb", comment="comment")],
    ),
    Case(
        "near misses are unknown fields",
        b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\r"
        b"data:\r\n data:32\ndatas:1\ndat:1\nids:1\ntype:1\nretries:1\ndata:4\n\n",
        [Block("\0\n 2\n1\n3\n\n4")],
    ),
    Case("a block of unknown fields is no event", b"foo: bar\nbaz\n\ndata: a\n\n", [Block("a")]),
]

DATA: Final = [
    Case("data is the payload", b"data: a\n\n", [Block("a")]),
    Case("empty data is an event", b"data:\n\n", [Block("")]),
    Case("data without a colon is empty data", b"data\n\n", [Block("")]),
    Case("a space alone is empty data", b"data: \n\n", [Block("")]),
    Case("two empty data lines are one LF", b"data\ndata\n\n", [Block("\n")]),
    Case(
        "data lines are joined with LF", b"data: a\ndata\ndata:b\ndata: \n\n", [Block("a\n\nb\n")]
    ),
    Case(
        "data may look like fields",
        b"data: data: a\ndata: data: b\ndata: id: 7\ndata: : c\n\n",
        [Block("data: a\ndata: b\nid: 7\n: c")],
    ),
    Case(
        "data lines need not be neighbours",
        b"data: a\nevent: t\ndata: b\nfoo\ndata: c\n\n",
        [Block("a\nb\nc", "t")],
    ),
    Case(
        "each event has its own data",
        b"data: a\n\ndata\n\ndata: b\ndata: c\n\n",
        [Block("a"), Block(""), Block("b\nc")],
    ),
]

TYPE: Final = [
    Case("event is the type", b"event: t\ndata: a\n\n", [Block("a", "t")]),
    Case("the type may follow the data", b"data: a\nevent: t\n\n", [Block("a", "t")]),
    Case("the last type counts", b"event: t\nevent: u\ndata: a\n\n", [Block("a", "u")]),
    Case(
        "the last type counts, whatever is between",
        b"event: t\nid: 1\nevent: u\ndata: a\n\n",
        [Block("a", "u", "1")],
        "1",
    ),
    Case("an empty type is no type", b"event: \ndata: a\n\n", [Block("a")]),
    Case("an empty type resets", b"event: t\nevent\ndata: a\n\n", [Block("a")]),
    Case(
        "a type is for one event",
        b"event: t\ndata: a\n\ndata: b\n\n",
        [Block("a", "t"), Block("b")],
    ),
    Case(
        "a type is forgotten where there is no event",
        b"event: t\n\ndata: a\n\n",
        [Block("a")],
    ),
    Case("a type is any text", "event:  é…: \0\ndata: a\n\n".encode(), [Block("a", " é…: \0")]),
]

ID: Final = [
    Case("id is the last event id", b"id: 1\ndata: a\n\n", [Block("a", id="1")], "1"),
    Case("the id may follow the data", b"data: a\nid: 1\n\n", [Block("a", id="1")], "1"),
    Case(
        "an id stays in force",
        b"id: 1\ndata: a\n\ndata: b\n\nid: 2\ndata: c\n\ndata: d\n\n",
        [Block("a", id="1"), Block("b", id="1"), Block("c", id="2"), Block("d", id="2")],
        "2",
    ),
    Case(
        "an empty id resets it",
        b"id: 1\ndata: a\n\nid:\ndata: b\n\ndata: c\n\n",
        [Block("a", id="1"), Block("b"), Block("c")],
    ),
    Case(
        "id without a colon resets it",
        b"id: 1\n\nid\ndata: a\n\n",
        [Block(None, id="1"), Block("a")],
    ),
    Case(
        "an id counts where there is no event",
        b"id: 1\n\ndata: a\n\n",
        [Block(None, id="1"), Block("a", id="1")],
        "1",
    ),
    Case("the last id counts", b"id: 1\nid: 2\ndata: a\n\n", [Block("a", id="2")], "2"),
    Case("an id is in force when its block ends", b"data: a\n\nid: 1\n", [Block("a")]),
    Case(
        "an id with NUL is ignored",
        b"id: 1\ndata: a\n\nid: 2\0\ndata: b\n\nid: \0\ndata: c\n\n",
        [Block("a", id="1"), Block("b", id="1"), Block("c", id="1")],
        "1",
    ),
    Case(
        "an id with NUL resets no other in its block",
        b"id: 1\nid: \0\ndata: a\n\n",
        [Block("a", id="1")],
        "1",
    ),
    Case(
        "an id is any other text",
        "id:  …: é \ndata: a\n\n".encode(),
        [Block("a", id=" …: é ")],
        " …: é ",
    ),
    Case(
        "type and id may stand in any order",
        b"id: 1\nevent: t\ndata: a\n\nevent: u\nid: 2\ndata: b\n\n",
        [Block("a", "t", "1"), Block("b", "u", "2")],
        "2",
    ),
]

RETRY: Final = [
    Case(
        "retry is the reconnection time",
        b"retry: 2000\ndata: a\n\n",
        [Block("a", retry=2000)],
        retry=2000,
    ),
    Case("retry is decimal", b"retry: 02000\n\n", [Block(None, retry=2000)], retry=2000),
    Case("retry may be 0", b"data: a\nretry: 0\n\n", [Block("a", retry=0)], retry=0),
    Case("retry counts once its line has ended", b"retry: 2000\ndata: a", [], retry=2000),
    Case("retry counts before other data ends", b"data: a\nretry: 5\ndata: b", [], retry=5),
    Case("the last retry counts", b"retry: 1\nretry:2\n\n", [Block(None, retry=2)], retry=2),
    Case(
        "retry stays in force",
        b"data: a\nretry: 7\n\ndata: b\n\n",
        [Block("a", retry=7), Block("b")],
        retry=7,
    ),
    *(
        Case(
            f"retry must be ASCII digits: {bogus}",
            f"retry: 3000\nretry:{bogus}\ndata: a\n\n".encode(),
            [Block("a", retry=3000)],
            retry=3000,
        )
        for bogus in ["1000x", " 1 ", "  1", "-1", "+1", "1.5", "1_000", "0x1", "1e3", "٣", "²", ""]
    ),
    Case("retry without a value is ignored", b"retry\nretry:\nretry: \ndata: a\n\n", [Block("a")]),
    Case(
        "retry after the data must be ASCII digits too",
        b"data: a\nretry: 1x\n\n",
        [Block("a")],
    ),
]

CASES: Final = [*STREAM, *LINES, *FIELDS, *DATA, *TYPE, *ID, *RETRY]


MORE: Final = b"retry: 1"


def ways_to_cut(stream: bytes, more: bytes = MORE) -> Iterator[list[bytes]]:
    """As it is, byte by byte, in two at every place, and with more coming at once or later.

    What comes more is a line that has not ended, so it changes nothing, unless ``stream`` leaves
    off within a line and that matters.
    """
    yield [stream]
    yield [stream[i : i + 1] for i in range(len(stream))]
    for i in range(len(stream) + 1):
        yield [stream[:i], stream[i:]]
    yield [stream + more]
    yield [stream, more]
    yield [b"", stream, b"", more]
