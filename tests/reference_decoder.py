"""The event stream format read out of the standards' own sentences, slowly.

An independent second opinion for the tests: no chunks, no speed, every step as the text has it.
`decode` is the Encoding Standard's "UTF-8 decode", 4.1 and 8.1.1; the rest is 9.2.6 of the WHATWG
HTML standard. The limits and the blocks without data are this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from wire_cases import Block


@dataclass
class Meaning:
    """What a stream says, up to where it is too large if it is."""

    blocks: list[Block] = field(default_factory=list)
    last_event_id: str = ""
    retry: int | None = None
    too_large: bool = False


class _TooLarge(Exception):
    pass


def read(stream: bytes, *, max_line_size: int = 1 << 20, max_event_size: int = 1 << 20) -> Meaning:
    lines, unfinished = split(decode(stream))
    reader = _Reader(max_line_size, max_event_size)
    try:
        for line in lines:
            reader.line(line)
        reader.check_line(unfinished)
    except _TooLarge:
        reader.meaning.too_large = True
    return reader.meaning


def decode(stream: bytes) -> str:
    """Everything but an unfinished character at the end, of which no line can be made."""
    if stream[:3] == b"\xef\xbb\xbf":
        stream = stream[3:]
    text = ""
    code_point = seen = needed = 0
    lower, upper = 0x80, 0xBF
    i = 0
    while i < len(stream):
        byte = stream[i]
        i += 1
        if needed == 0:
            if byte <= 0x7F:
                text += chr(byte)
            elif 0xC2 <= byte <= 0xDF:
                needed, code_point = 1, byte & 0x1F
            elif 0xE0 <= byte <= 0xEF:
                lower = 0xA0 if byte == 0xE0 else lower
                upper = 0x9F if byte == 0xED else upper
                needed, code_point = 2, byte & 0xF
            elif 0xF0 <= byte <= 0xF4:
                lower = 0x90 if byte == 0xF0 else lower
                upper = 0x8F if byte == 0xF4 else upper
                needed, code_point = 3, byte & 0x7
            else:
                text += "\ufffd"
        elif not lower <= byte <= upper:
            code_point = seen = needed = 0
            lower, upper = 0x80, 0xBF
            i -= 1  # "restore byte to ioQueue"
            text += "\ufffd"
        else:
            lower, upper = 0x80, 0xBF
            code_point = (code_point << 6) | (byte & 0x3F)
            seen += 1
            if seen == needed:
                text += chr(code_point)
                code_point = seen = needed = 0
    return text


def split(text: str) -> tuple[list[str], str]:
    """The lines that have ended, and what follows the last of them."""
    lines = []
    line = ""
    i = 0
    while i < len(text):
        if text[i] == "\r" and text[i + 1 : i + 2] == "\n":
            lines.append(line)
            line = ""
            i += 2
        elif text[i] in {"\r", "\n"}:
            lines.append(line)
            line = ""
            i += 1
        else:
            line += text[i]
            i += 1
    return lines, line


class _Reader:
    def __init__(self, max_line_size: int, max_event_size: int) -> None:
        self.max_line_size = max_line_size
        self.max_event_size = max_event_size
        self.meaning = Meaning()
        self.data_buffer = ""
        self.event_type_buffer = ""
        self.last_event_id_buffer = ""
        self.start_block()

    def start_block(self) -> None:
        self.id_seen = False
        self.retry: int | None = None
        self.comments: list[str] = []
        self.comments_full = False

    def check_line(self, line: str) -> None:
        if len(line.encode()) > self.max_line_size:
            raise _TooLarge

    def line(self, line: str) -> None:
        self.check_line(line)
        if line == "":
            self.dispatch()
        elif line[0] == ":":
            self.comment(line[1:])
        elif ":" in line:
            colon = line.index(":")
            value = line[colon + 1 :]
            if value[:1] == " ":
                value = value[1:]
            self.field(line[:colon], value)
        else:
            self.field(line, "")

    def field(self, name: str, value: str) -> None:
        if name == "event":
            self.event_type_buffer = value
        elif name == "data":
            self.data_buffer += value + "\n"
            if len(self.data_buffer.encode()) - 1 > self.max_event_size:
                raise _TooLarge
        elif name == "id":
            if "\0" not in value:
                self.last_event_id_buffer = value
                self.id_seen = True
        elif name == "retry":
            digits_only = value != "" and all(c in "0123456789" for c in value)
            if digits_only and len(value) <= 15:  # the standard has no such bound
                self.meaning.retry = self.retry = int(value)

    def comment(self, text: str) -> None:
        if text[:1] == " ":
            text = text[1:]
        size = len("\n".join([*self.comments, text]).encode())
        self.comments_full = self.comments_full or size > self.max_event_size
        if not self.comments_full:
            self.comments.append(text)

    def dispatch(self) -> None:
        self.meaning.last_event_id = self.last_event_id_buffer
        data = self.data_buffer[:-1] if self.data_buffer != "" else None
        comment = "\n".join(self.comments) if self.comments else None
        if data is not None or self.id_seen or self.retry is not None or comment is not None:
            event_type = self.event_type_buffer or "message"
            event_id = self.last_event_id_buffer
            self.meaning.blocks.append(Block(data, event_type, event_id, self.retry, comment))
        self.data_buffer = ""
        self.event_type_buffer = ""
        self.start_block()
