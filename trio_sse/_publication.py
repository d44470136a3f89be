"""What a publisher may POST: a form or a JSON object, into an event and its topics."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast, final
from urllib.parse import parse_qsl

from .errors import Refused
from .hub import DEFAULT_TOPIC
from .wire import Event

_FIELDS: Final = ("topic", "data", "type", "retry")
MAX_KEY: Final = 255
"""Characters of an idempotency key."""
_MAX_FORM_FIELDS: Final = 1000
_JSON: Final = "application/json"
_FORM: Final = "application/x-www-form-urlencoded"


@final
@dataclass(frozen=True, slots=True)
class Publication:
    """An event, and what it is published to."""

    event: Event
    topics: tuple[str, ...]

    @classmethod
    def parse(cls, content_type: str, body: bytes) -> Publication:
        """What ``body`` says.

        Raises:
            Refused: 415 for another content type, 400 for anything wrong in it.
        """
        kind = content_type.partition(";")[0].strip().lower()
        if kind == _JSON:
            fields = _from_json(body)
        elif kind == _FORM:
            fields = _from_form(body)
        else:
            raise Refused(
                415,
                f"publish as {_JSON} or {_FORM}, not as {kind or 'nothing in particular'}",
                headers=(("accept", f"{_JSON}, {_FORM}"),),
            )
        return cls._from_fields(fields)

    @classmethod
    def _from_fields(cls, fields: Mapping[str, Any]) -> Publication:
        unknown = sorted(set(fields) - set(_FIELDS))
        if unknown:
            hint = " (the server numbers events itself)" if unknown == ["id"] else ""
            raise _bad(f"unknown field {unknown[0]!r}{hint}; known are {', '.join(_FIELDS)}")
        if "data" not in fields:
            raise _bad("the field 'data' is missing; it may be empty")
        kind = _type(fields)
        retry = _milliseconds(fields)
        data = fields["data"]
        try:
            event = (
                Event(data, type=kind, retry=retry)
                if isinstance(data, str)
                else Event.json(data, type=kind, retry=retry)
            )
        except RecursionError:
            raise _bad("'data' is nested too deeply") from None
        except ValueError as exc:
            raise _bad(str(exc)) from exc
        return cls(event, _topics(fields))


def idempotency_key(header: str) -> str | None:
    """What the header ``Idempotency-Key`` says, ``None`` if it is not there.

    It is a string of RFC 8941 (3.3.3), in quotes; without them it is taken as it is.

    Raises:
        Refused: 400 if it is empty, too long, or not printable ASCII.
    """
    if not header:
        return None
    key = header
    if header[0] == header[-1] == '"' and len(header) > 1:
        key = re.sub(r'\\(["\\])', r"\1", header[1:-1])
    if not 1 <= len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
        raise _bad(
            f"an idempotency key has 1 to {MAX_KEY} printable ASCII characters, as in "
            'Idempotency-Key: "8e03978e-40d5-43dd-bc93-6894a57f9324"'
        )
    return key


def key_header(key: str) -> str:
    """The header from which `idempotency_key` has ``key``."""
    escaped = re.sub(r'(["\\])', r"\\\1", key)
    return f'"{escaped}"'


def _from_json(body: bytes) -> Mapping[str, Any]:
    try:
        # Decoded here: json.loads would also take UTF-16 and UTF-32 (RFC 8259, 8.1).
        obj: object = json.loads(body.decode())
    except (ValueError, RecursionError) as exc:
        raise _bad(f"the body is not JSON in UTF-8: {exc}") from exc
    if not isinstance(obj, dict):
        raise _bad('the body is not a JSON object; as in {"topic": "news", "data": "hello"}')
    return cast("dict[str, Any]", obj)


def _from_form(body: bytes) -> Mapping[str, Any]:
    try:
        pairs = parse_qsl(
            body.decode(),
            keep_blank_values=True,
            strict_parsing=bool(body),
            max_num_fields=_MAX_FORM_FIELDS,
            errors="strict",
        )
    except ValueError as exc:
        raise _bad(f"the body is not a form in UTF-8: {exc}") from exc
    fields: dict[str, Any] = {"topic": [value for name, value in pairs if name == "topic"]}
    for name, value in pairs:
        if name == "topic":
            continue
        if name in fields:
            raise _bad(f"the field {name!r} comes twice")
        fields[name] = value
    return fields


def _topics(fields: Mapping[str, Any]) -> tuple[str, ...]:
    topic = fields.get("topic")
    if topic is None or topic == []:
        return (DEFAULT_TOPIC,)
    topics: list[object] = cast("list[object]", topic) if isinstance(topic, list) else [topic]
    found: list[str] = []
    for each in topics:
        if not isinstance(each, str):
            raise _bad("'topic' is a string or a list of strings")
        if not each.isascii() and any("\ud800" <= character <= "\udfff" for character in each):
            raise _bad(f"the 'topic' {each!r} has a lone surrogate, which UTF-8 cannot carry")
        found.append(each)
    return tuple(found)


def _type(fields: Mapping[str, Any]) -> str:
    value = fields.get("type")
    if value is None or value == "":
        return "message"
    if not isinstance(value, str):
        raise _bad("'type' is a string")
    return value


def _milliseconds(fields: Mapping[str, Any]) -> int | None:
    value = fields.get("retry")
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise _bad("'retry' is a whole number of milliseconds, not negative")


def _bad(text: str) -> Refused:
    return Refused(400, text)
