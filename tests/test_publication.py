"""What a publisher may POST, and what it is told when it may not."""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_sse import Event, Refused, encode
from trio_sse._publication import MAX_KEY, Publication, idempotency_key, key_header

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


def parse_json(obj: object) -> Publication:
    return Publication.parse(JSON, json.dumps(obj).encode())


def refusal(content_type: str, body: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        Publication.parse(content_type, body)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "event"),
    [
        ({"data": "hello"}, Event("hello")),
        ({"data": ""}, Event("")),
        ({"data": "a", "type": "news"}, Event("a", type="news")),
        ({"data": "a", "type": ""}, Event("a")),
        ({"data": "a", "retry": 0}, Event("a", retry=0)),
        ({"data": "a", "retry": 3000}, Event("a", retry=3000)),
        ({"data": "a", "retry": "3000"}, Event("a", retry=3000)),
        ({"data": "a", "retry": ""}, Event("a")),
        ({"data": "ü€𝄞\u2028"}, Event("ü€𝄞\u2028")),
        ({"data": "two\nlines"}, Event("two\nlines")),
    ],
)
def test_both_formats_say_the_same(fields: dict[str, Any], event: Event) -> None:
    by_json = parse_json(fields)
    by_form = Publication.parse(FORM, urlencode(fields).encode())
    assert by_json == by_form == Publication(event, ("default",))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"a": [1, 2.5, True, None, "ü"]}, '{"a":[1,2.5,true,null,"ü"]}'),
        (None, "null"),
        (False, "false"),
        (0, "0"),
        ([], "[]"),
    ],
)
def test_json_data_that_is_no_string_arrives_as_json(data: object, text: str) -> None:
    assert parse_json({"data": data}).event == Event(text)


def test_null_is_as_good_as_absent() -> None:
    publication = parse_json({"data": "a", "type": None, "retry": None, "topic": None})
    assert publication == Publication(Event("a"), ("default",))


@pytest.mark.parametrize(
    ("topic", "topics"),
    [("a", ("a",)), (["a", "b"], ("a", "b")), ([], ("default",)), ("", ("",))],
)
def test_topics_in_json(topic: object, topics: tuple[str, ...]) -> None:
    assert parse_json({"data": "x", "topic": topic}).topics == topics


@pytest.mark.parametrize(
    ("form", "topics"),
    [
        (b"data=x", ("default",)),
        (b"data=x&topic=a", ("a",)),
        (b"topic=a&data=x&topic=b", ("a", "b")),
        (b"data=x&topic=", ("",)),
        (b"data=x&topic=%C3%BC+1", ("ü 1",)),
    ],
)
def test_topics_in_a_form(form: bytes, topics: tuple[str, ...]) -> None:
    assert Publication.parse(FORM, form).topics == topics


@pytest.mark.parametrize(
    "content_type", [JSON, "Application/JSON; charset=utf-8", " application/json ;x"]
)
def test_a_content_type_may_have_parameters(content_type: str) -> None:
    assert Publication.parse(content_type, b'{"data": "x"}').event == Event("x")


@pytest.mark.parametrize("content_type", ["", "text/plain", "multipart/form-data; boundary=x"])
def test_another_content_type_is_415(content_type: str) -> None:
    refused = refusal(content_type, b"data=x")
    assert refused.status == 415
    assert refused.headers == (("accept", f"{JSON}, {FORM}"),)


def outcome(content_type: str, body: bytes) -> Publication | int:
    """What was published, or the status of the refusal."""
    try:
        return Publication.parse(content_type, body)
    except Refused as refused:
        return refused.status


DEEP = 100_000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"data": "x"} {}', "not JSON"),
        (b'{"data": "\xff"}', "not JSON"),
        ('{"data": "x"}'.encode("utf-16"), "not JSON"),
        (b"[" * DEEP + b"]" * DEEP, "not JSON"),
        (b'{"data": ' + b"[" * DEEP + b"]" * DEEP + b"}", "not JSON"),
        (b'{"data": NaN}', "not JSON compliant"),
        (b'{"data": [-Infinity]}', "not JSON compliant"),
        (b'{"data": "x", "retry": NaN}', "'retry'"),
        (b'{"data": 1e999}', "not JSON compliant"),
        (b"[]", "not a JSON object"),
        (b'"data"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", "'data' is missing"),
        (b'{"topic": "a"}', "'data' is missing"),
        (b'{"data": "x", "id": "7"}', "the server numbers events itself"),
        (b'{"data": "x", "event": "news"}', "unknown field 'event'"),
        (b'{"data": "x", "type": 1}', "'type' is a string"),
        (b'{"data": "x", "type": 0}', "'type' is a string"),
        (b'{"data": "x", "type": false}', "'type' is a string"),
        (b'{"data": "x", "type": []}', "'type' is a string"),
        (b'{"data": "x", "type": "a\\nid: 1"}', "line break"),
        (b'{"data": "x", "type": "a\\r"}', "line break"),
        (b'{"data": "\\ud800"}', "surrogate"),
        (b'{"data": "x", "type": "\\ud800"}', "surrogate"),
        (b'{"data": "x", "topic": "\\ud800"}', "surrogate"),
        (b'{"data": "x", "retry": -1}', "'retry'"),
        (b'{"data": "x", "retry": 1.0}', "'retry'"),
        (b'{"data": "x", "retry": true}', "'retry'"),
        (b'{"data": "x", "retry": "1s"}', "'retry'"),
        ('{"data": "x", "retry": "²"}'.encode(), "'retry'"),
        (b'{"data": "x", "retry": 1' + b"0" * 15 + b"}", "retry"),
        (b'{"data": "x", "retry": []}', "'retry'"),
        (b'{"data": "x", "topic": 1}', "'topic'"),
        (b'{"data": "x", "topic": ["a", 1]}', "'topic'"),
        (b'{"data": "x", "topic": {"a": 1}}', "'topic'"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bad_json_is_400_and_says_what_is_bad(body: bytes, words: str) -> None:
    refused = refusal(JSON, body)
    assert refused.status == 400
    assert words in refused.text
    json.dumps(refused.text).encode()  # it can be told


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "'data' is missing"),
        (b"data", "not a form"),
        (b"data=x&", "not a form"),
        (b"data=%ff", "UTF-8"),
        (b"data=\xff", "UTF-8"),
        (b"data=x&data=y", "'data' comes twice"),
        (b"data=x&retry=1&retry=2", "'retry' comes twice"),
        (b"data=x&id=7", "the server numbers events itself"),
        (b"data=x&Type=a", "unknown field 'Type'"),
        (b"data=x&retry=-1", "'retry'"),
        (b"data=x&retry=1" + b"0" * 15, "'retry'"),
        (b"data=x&type=a%0Ab", "line break"),
        (b"data=x" + b"&topic=a" * 1000, "not a form"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bad_forms_are_400_and_say_what_is_bad(body: bytes, words: str) -> None:
    refused = refusal(FORM, body)
    assert refused.status == 400
    assert words in refused.text


def test_json_of_any_depth_is_published_or_refused() -> None:
    # What can be read is not always what can be written: each has a limit of its own.
    outcomes = set()
    for depth in range(1, 2 * sys.getrecursionlimit(), 7):
        nested = "[" * depth + "]" * depth
        came = outcome(JSON, f'{{"data":{nested}}}'.encode())
        outcomes.add(came == Publication(Event(nested), ("default",)) or came)
    assert True in outcomes
    assert outcomes <= {True, 400}


@given(body=st.binary(max_size=60), content_type=st.sampled_from([JSON, FORM]))
@settings(deadline=None)
def test_no_bytes_do_anything_else_than_that(body: bytes, content_type: str) -> None:
    came = outcome(content_type, body)
    assert came == 400 or isinstance(came, Publication)


_JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    fields=st.dictionaries(
        st.sampled_from(["data", "topic", "type", "retry", "id"]), _JSON_VALUES, max_size=4
    )
)
@settings(deadline=None)
def test_no_object_does_anything_else_than_that(fields: dict[str, Any]) -> None:
    came = outcome(JSON, json.dumps(fields).encode())
    if isinstance(came, int):
        assert came == 400
    else:
        encode(came.event)
        assert "".join(came.topics).encode() is not None


PRINTABLE = st.characters(codec="ascii", min_codepoint=0x20, max_codepoint=0x7E)


@given(st.text(PRINTABLE, min_size=1, max_size=MAX_KEY))
def test_a_key_survives_its_header(key: str) -> None:
    """Whatever of quotes and backslashes is in it (RFC 8941, 3.3.3)."""
    assert idempotency_key(key_header(key)) == key
