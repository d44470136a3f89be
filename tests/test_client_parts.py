"""URLs, redirects, content types, dates: what the client decides without any I/O."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_sse._client_errors import ProtocolError
from trio_sse._fetch import build_request, mime_type, redirected, retry_after
from trio_sse._http1 import Request, checked_headers, header_value
from trio_sse._url import Url, environment_proxy, parse_proxy, parse_url


@pytest.mark.parametrize(
    ("text", "absolute"),
    [
        ("http://example.org", "http://example.org/"),
        ("HTTPS://Example.ORG:443/a#b", "https://example.org/a"),
        ("http://example.org:443/", "http://example.org:443/"),
        ("http://u:p@example.org:8000?x=1", "http://example.org:8000/?x=1"),
        ("http://[::1]:8000/a", "http://[::1]:8000/a"),
        ("http://bücher.example/ü ?ü=%20&b", "http://xn--bcher-kva.example/%C3%BC%20?%C3%BC=%20&b"),
        ('http://h/"<>\\^`{|}', "http://h/%22%3C%3E%5C%5E%60%7B%7C%7D"),
    ],
)
def test_url_is_made_ready_to_send(text: str, absolute: str) -> None:
    url = parse_url(text)
    assert url.absolute == absolute
    assert parse_url(absolute) == Url(url.scheme, url.host, url.port, url.target)


@pytest.mark.parametrize(
    "text",
    [
        *("", "/a", "example.org", "ftp://h/", "http://", "http://:80", "http://a b/"),
        *("http://[::1", "http://[1.2.3]/", "http://h:x/", "http://h:99999/", "http://h\0/"),
        *("http://" + "ü" * 70, "http://a/\ud800"),
    ],
)
def test_url_that_is_none_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="as in 'https"):
        parse_url(text)


@given(st.text(max_size=30))
def test_url_from_any_text_is_sendable_or_a_value_error(text: str) -> None:
    for candidate in (text, "http://" + text, "http://h/" + text):
        try:
            url = parse_url(candidate)
        except ValueError:
            continue
        for sent in (url.target, url.host_and_port, url.absolute):
            assert sent.isascii()
            assert sent.isprintable()
            assert " " not in sent


def test_url_shown_keeps_secrets() -> None:
    assert parse_url("http://u:secret@h:81/a?token=secret").shown == "http://h:81/a?..."
    assert parse_url("http://u:secret@h/a").shown == "http://h/a"


REQUEST = Request(
    "POST",
    parse_url("https://example.org/a/b"),
    (("authorization", b"x"), ("content-type", b"text/plain"), ("accept", b"y"), ("x", b"z")),
    b"body",
)


@pytest.mark.parametrize(
    ("location", "url", "kept"),
    [
        ("c", "https://example.org/a/c", True),
        ("/c?d#e", "https://example.org/c?d", True),
        ("?d", "https://example.org/a/b?d", True),
        ("", "https://example.org/a/b", True),
        ("//example.org:443/c", "https://example.org/c", True),
        ("https://example.org:444/c", "https://example.org:444/c", False),
        ("http://example.org/c", "http://example.org/c", False),
        ("//www.example.org/c", "https://www.example.org/c", False),
    ],
)
def test_redirect_to_another_origin_drops_what_may_be_credentials(
    location: str, url: str, kept: bool
) -> None:
    request = redirected(REQUEST, 307, location)
    assert request.url.absolute == url
    assert (request.method, request.body) == ("POST", b"body")
    names = ["authorization", "content-type", "accept", "x"] if kept else ["content-type", "accept"]
    assert [name for name, _ in request.headers] == names


def test_redirect_gives_an_error_for_good_where_it_leads_nowhere() -> None:
    for location in ("ftp://h/", "https://u:p@other/"):
        with pytest.raises(ProtocolError) as caught:
            redirected(REQUEST, 307, location)
        assert caught.value.for_good


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("text/event-stream", "text/event-stream"),
        ("Text/Event-Stream ; a=b", "text/event-stream"),
        ("text/html,text/event-stream", "text/event-stream"),
        ("text/event-stream,", "text/event-stream"),
        ("text/event-stream, x", "text/event-stream"),
        ('text/html; a="b, text/event-stream', "text/html"),
        ('text/html; a="\\", text/event-stream", */*', "text/html"),
    ],
)
def test_mime_type(header: str | None, expected: str | None) -> None:
    assert mime_type(header) == expected


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("9" * 400, 999999999999999),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("", None),
        ("Wed, 99 Foo 2015 07:28:00 GMT", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after((("retry-after", value),)) == seconds


def test_retry_after_a_date_is_by_the_servers_clock_if_it_tells() -> None:
    later, now = formatdate(1000 + 90, usegmt=True), formatdate(1000, usegmt=True)
    assert retry_after((("retry-after", later), ("date", now))) == 90
    assert retry_after((("retry-after", now), ("date", later))) == 0
    soon = formatdate(time.time() + 1000, usegmt=True)
    for date in ((), (("date", "nonsense"),)):
        assert 990 < (retry_after((("retry-after", soon), *date)) or 0) <= 1000
    assert retry_after(()) is None


def test_headers_may_be_a_mapping_or_pairs() -> None:
    expected = (("x-a", b"1"), ("x-a", "ü".encode()))
    assert checked_headers([("X-A", " 1\t"), ("x-a", "ü")], reserved={}) == expected
    assert checked_headers({"X-A": "1"}, reserved={}) == expected[:1]
    assert checked_headers(None, reserved={}) == ()


@given(st.text(max_size=20))
def test_header_value_is_one_line_or_nothing(value: str) -> None:
    raw = header_value(value)
    assert (raw is None) == any((c < " " and c != "\t") or c == "\x7f" for c in value)
    if raw is not None:
        assert raw.decode() == value.strip(" \t")


def test_headers_of_the_caller_replace_the_defaults() -> None:
    request = build_request(
        "GET",
        "http://u:p@h/",
        {"Accept": "a/b", "Authorization": "Bearer x"},
        None,
        defaults={"accept": b"c/d", "user-agent": b"e"},
        reserved={},
    )
    assert sorted(request.headers) == [
        ("accept", b"a/b"),
        ("authorization", b"Bearer x"),
        ("user-agent", b"e"),
    ]


def test_proxy_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    def proxy(url: str) -> str | None:
        return environment_proxy(parse_url(url))

    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert proxy("http://example.org/") is None
    monkeypatch.setenv("HTTP_PROXY", "http://a:1")
    monkeypatch.setenv("HTTPS_PROXY", "b:2")
    assert proxy("http://example.org/") == "http://a:1"
    assert proxy("https://example.org/") in {"b:2", "http://b:2"}
    monkeypatch.setenv("NO_PROXY", "example.org, ::1, other.net:8080")
    assert proxy("http://example.org/") is None
    assert proxy("https://www.example.org/") is None
    assert proxy("http://notexample.org/") == "http://a:1"
    assert proxy("http://[::1]:99/") is None
    assert proxy("http://other.net:8080/") is None
    assert proxy("http://other.net/") == "http://a:1"
    monkeypatch.setenv("NO_PROXY", "*")
    assert proxy("http://notexample.org/") is None
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("HTTP_PROXY")
    monkeypatch.setenv("ALL_PROXY", "http://c:3")
    assert proxy("http://example.org/") == "http://c:3"
    # A CGI script's HTTP_PROXY is the request's "Proxy:" header.
    monkeypatch.delenv("ALL_PROXY")
    monkeypatch.setenv("HTTP_PROXY", "http://evil:1")
    monkeypatch.setenv("REQUEST_METHOD", "GET")
    assert proxy("http://example.org/") is None


def test_proxy_address() -> None:
    assert parse_proxy("p:3128").host_and_port == "p:3128"
    assert parse_proxy("https://u:s@p:3128").userinfo == "u:s"
    for wrong in ("socks5://u:secret@p:1080", "http://u:secret@p:x"):
        with pytest.raises(ValueError, match=r"Transport\(open_stream=") as caught:
            parse_proxy(wrong)
        assert "secret" not in str(caught.value)
