"""Who gets in: hosts, origins, tokens, and what CORS tells browsers."""

from __future__ import annotations

import hmac
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trio_sse import Access, Endpoint, Hub, Refused, Request, testing

LOOPBACK = ("127.0.0.1", 8000)
PUBLIC = ("192.0.2.1", 8000)


def scope(server: tuple[str, int | None] | None = PUBLIC) -> dict[str, Any]:
    return {"type": "http", "server": server}


def request(method: str = "GET", query: str = "", **headers: str) -> Request:
    """Headers by name, ``_`` for ``-``; as latin-1, which is how ASGI has them."""
    return Request(
        method=method,
        query_string=query,
        raw_headers=tuple(
            (name.replace("_", "-").encode(), value.encode("latin-1"))
            for name, value in headers.items()
        ),
    )


async def status(access: Access, asked: Request, **options: Any) -> int:
    try:
        await access.check(scope(**options), asked)
    except Refused as refused:
        return refused.status
    return 200


# Hosts.


@pytest.mark.parametrize(
    "server", [LOOPBACK, ("::1", 8000), ("127.8.9.1", 80), ("::ffff:127.0.0.1", 1)]
)
@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200),
        ("LocalHost:8000", 200),
        ("localhost.", 200),
        ("localhost.:8000", 200),
        ("app.localhost:8000", 200),
        ("127.0.0.1", 200),
        ("127.0.0.1:9", 200),
        ("127.1.2.3", 200),
        ("[::1]", 200),
        ("[::1]:8000", 200),
        ("[::ffff:127.0.0.1]:8000", 200),
        ("", 403),
        ("example.org", 403),
        ("example.org:8000", 403),
        ("127.0.0.1.example.org", 403),
        ("localhost.example.org", 403),
        ("example.org:localhost", 403),
        ("notlocalhost", 403),
        ("[2001:db8::1]:8000", 403),
        ("192.0.2.1", 403),
        ("0.0.0.0", 403),
        ("2130706433", 403),
        ("localhost, example.org", 403),
        ("[", 403),
        ("[]", 403),
        ("]", 403),
        (":", 403),
        ("\xff", 403),
    ],
)
async def test_a_loopback_address_answers_to_loopback_names(
    server: tuple[str, int], host: str, expected: int
) -> None:
    assert await status(Access(), request(host=host), server=server) == expected


@pytest.mark.parametrize("server", [PUBLIC, ("::", 8000), None, ("/run/a.sock", None)])
async def test_other_addresses_answer_to_any_name(server: tuple[str, int | None] | None) -> None:
    assert await status(Access(), request(host="example.org"), server=server) == 200
    assert await status(Access(), request(), server=server) == 200


@pytest.mark.parametrize(
    ("allowed", "host", "expected"),
    [
        (("example.org",), "example.org", 200),
        (("example.org",), "Example.ORG:8443", 200),
        (("Example.org",), "example.org.", 200),
        (("example.org",), "www.example.org", 403),
        (("example.org",), "badexample.org", 403),
        (("example.org",), "localhost", 403),
        (("*.example.org",), "www.example.org", 200),
        (("*.example.org",), "a.b.example.org.:80", 200),
        (("*.example.org",), "example.org", 403),
        (("*.example.org",), "badexample.org", 403),
        (("a", "b"), "b", 200),
        (("::1",), "[::1]:80", 200),
        (("[::1]",), "[::1]:80", 200),
        (("*",), "anything", 200),
        (("*",), "", 200),
        ((), "localhost", 403),
    ],
)
@pytest.mark.parametrize("server", [LOOPBACK, PUBLIC])
async def test_allowed_hosts_are_what_counts_if_given(
    allowed: tuple[str, ...], host: str, expected: int, server: tuple[str, int]
) -> None:
    access = Access(allowed_hosts=allowed)
    assert await status(access, request(host=host), server=server) == expected


async def test_the_refusal_of_a_host_says_how_to_allow_it() -> None:
    with pytest.raises(Refused, match=r"'example\.org'.*allowed_hosts"):
        await Access().check(scope(LOOPBACK), request(host="example.org:1"))


# Origins.


@pytest.mark.parametrize(
    ("origin", "host", "expected"),
    [
        ("http://example.org", "example.org", 200),
        ("https://example.org", "example.org", 200),  # a proxy ends TLS
        ("http://Example.org", "example.ORG", 200),
        ("http://example.org:80", "example.org", 200),
        ("http://example.org", "example.org:80", 200),
        ("https://example.org", "example.org:443", 200),
        ("https://example.org:8443", "example.org:8443", 200),
        ("http://[::1]:8000", "[::1]:8000", 200),
        ("http://example.org:8000", "example.org", 403),
        ("http://example.org", "example.org:8000", 403),
        ("https://example.org:80", "example.org", 403),
        ("http://other.org", "example.org", 403),
        ("http://example.org.other.org", "example.org", 403),
        ("http://example.org@other.org", "example.org", 403),
        ("null", "example.org", 403),
        ("null", "", 403),
        ("", "", 403),
        ("", "example.org", 403),
        ("example.org", "example.org", 403),
        ("http://[", "example.org", 403),
        ("http://[::1", "[::1", 403),
        ("http://\xbd", "example.org", 403),
        ("http://example.org, http://example.org", "example.org", 403),
    ],
)
async def test_pages_of_the_same_origin_may_and_others_may_not(
    origin: str, host: str, expected: int
) -> None:
    assert await status(Access(), request(origin=origin, host=host)) == expected


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_allowed_origins_may(method: str) -> None:
    access = Access(allowed_origins=("https://a.org", "http://b.org:8000", "null"))
    for origin in ("https://a.org", "http://b.org:8000", "null"):
        assert await status(access, request(method, origin=origin, host="x")) == 200
    for origin in ("http://a.org", "https://a.org:8000", "http://b.org", "https://c.org"):
        assert await status(access, request(method, origin=origin, host="x")) == 403
    assert await status(access, request(method, host="x")) == 200  # no page at all


async def test_any_origin_may_if_allowed() -> None:
    access = Access(allowed_origins=("*",))
    assert await status(access, request(origin="https://c.org", host="x")) == 200


@pytest.mark.parametrize(
    "origin", ["example.org", "https://example.org/", "https://a.org?x", "", "https://"]
)
def test_what_is_no_origin_cannot_be_allowed(origin: str) -> None:
    with pytest.raises(ValueError, match=r"'https://example\.org'"):
        Access(allowed_origins=(origin,))


# Tokens.

TOKEN = Access(subscribe_token="s3cret", publish_token="pübl1sh")


@pytest.mark.parametrize(
    ("headers", "query", "expected"),
    [
        ({}, "", 401),
        ({"authorization": "Bearer s3cret"}, "", 200),
        ({"authorization": "bearer s3cret"}, "", 200),
        ({"authorization": "BEARER  s3cret "}, "", 200),
        ({"authorization": "Bearer s3cre"}, "", 401),
        ({"authorization": "Bearer s3crets"}, "", 401),
        ({"authorization": "Bearer S3CRET"}, "", 401),
        ({"authorization": "Bearer"}, "", 401),
        ({"authorization": "Bearer "}, "", 401),
        ({"authorization": "s3cret"}, "", 401),
        ({"authorization": "Basic s3cret"}, "", 401),
        ({"authorization": "Bearer s3cret, Bearer s3cret"}, "", 401),
        ({"authorization": "Bearer \xff"}, "", 401),
        ({}, "access_token=s3cret", 200),
        ({}, "a=b&access_token=s3cret", 200),
        ({}, "access_token=s3%63ret", 200),
        ({}, "access_token=", 401),
        ({}, "access_token", 401),
        ({}, "access_token=no&access_token=s3cret", 401),
        ({}, "Access_Token=s3cret", 401),
        ({}, "access_token=%ff%00", 401),
        ({"authorization": "Basic eA=="}, "access_token=s3cret", 200),
        ({"authorization": "Bearer no"}, "access_token=s3cret", 401),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_subscribers_need_their_token(
    headers: dict[str, str], query: str, expected: int, method: str
) -> None:
    assert await status(TOKEN, request(method, query, **headers)) == expected


@pytest.mark.parametrize(
    ("given", "query", "expected"),
    [
        ("pübl1sh".encode().decode("latin-1"), "", 200),
        ("pübl1sh", "", 401),  # latin-1: nobody sends that
        ("s3cret", "", 401),
        ("", "access_token=p%C3%BCbl1sh", 200),
    ],
)
async def test_publishers_need_another(given: str, query: str, expected: int) -> None:
    headers = {"authorization": f"Bearer {given}"} if given else {}
    assert await status(TOKEN, request("POST", query, **headers)) == expected


async def test_each_token_is_asked_for_alone() -> None:
    assert await status(Access(publish_token="x"), request("GET")) == 200
    assert await status(Access(publish_token="x"), request("POST")) == 401
    assert await status(Access(subscribe_token="x"), request("POST")) == 200
    assert await status(Access(subscribe_token="x"), request("GET")) == 401


async def test_a_missing_token_is_challenged() -> None:
    with pytest.raises(Refused, match=r"subscribe.*access_token") as caught:
        await TOKEN.check(scope(), request())
    assert caught.value.headers == (("www-authenticate", "Bearer"),)


async def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert await status(TOKEN, request(authorization="Bearer s3cret")) == 401
    assert compared == [(b"s3cret", b"s3cret")]


@pytest.mark.parametrize("name", ["subscribe_token", "publish_token"])
def test_an_empty_token_is_none(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Access(**{name: ""})  # type: ignore[arg-type]  # each of the two names in turn


def test_tokens_do_not_get_into_logs() -> None:
    text = repr(TOKEN)
    assert "s3cret" not in text
    assert "pübl1sh" not in text
    assert "subscribe_token=set" in text
    assert "subscribe_token=None" in repr(Access())


# The application's own word.


async def test_what_authorize_returns_is_the_identity() -> None:
    async def authorize(asked: Request) -> str:
        await trio.lowlevel.checkpoint()
        return f"{asked.method} {asked.path}"

    passed = await Access(authorize=authorize).check(scope(), request())
    assert passed.identity == "GET /"
    assert (await Access().check(scope(), request())).identity is None


async def test_authorize_is_asked_last() -> None:
    asked: list[str] = []

    async def authorize(request: Request) -> None:
        asked.append(request.method)
        raise Refused(402, "pay first")

    access = Access(authorize=authorize, subscribe_token="x", allowed_hosts=("a",))
    assert await status(access, request(host="b", authorization="Bearer x")) == 403
    assert (
        await status(access, request(host="a", origin="http://c", authorization="Bearer x")) == 403
    )
    assert await status(access, request(host="a")) == 401
    assert asked == []
    assert await status(access, request(host="a", authorization="Bearer x")) == 402
    assert await status(access, request("POST", host="a")) == 402
    assert asked == ["GET", "POST"]


# CORS.

ALLOW_ORIGIN, CREDENTIALS = "access-control-allow-origin", "access-control-allow-credentials"


def cors(access: Access, origin: str | None) -> dict[str, str]:
    return {name.decode(): value.decode("latin-1") for name, value in access.cors_headers(origin)}


@pytest.mark.parametrize("origin", [None, "https://a.org"])
def test_without_allowed_origins_there_is_no_cors(origin: str | None) -> None:
    assert cors(Access(), origin) == {}


def test_an_allowed_origin_is_named_and_caches_know() -> None:
    access = Access(allowed_origins=("https://a.org", "https://b.org"))
    assert cors(access, "https://b.org") == {
        "vary": "origin",
        ALLOW_ORIGIN: "https://b.org",
        CREDENTIALS: "true",
    }
    assert cors(access, "https://c.org") == {"vary": "origin"}
    assert cors(access, None) == {"vary": "origin"}


@pytest.mark.parametrize("allowed", [("*",), ("https://a.org", "*")])
@pytest.mark.parametrize("origin", [None, "https://a.org", "\xff"])
def test_any_origin_is_allowed_without_credentials(
    allowed: tuple[str, ...], origin: str | None
) -> None:
    assert cors(Access(allowed_origins=allowed), origin) == {ALLOW_ORIGIN: "*"}


# Through HTTP.


@pytest.fixture
async def hub(nursery: trio.Nursery) -> Any:
    async with Hub() as hub:
        yield hub


async def test_a_refusal_is_told_to_pages_that_may_read_it(hub: Hub) -> None:
    app = Endpoint(hub, access=Access(subscribe_token="x", allowed_origins=("https://a.org",)))
    response = await testing.request(app, "GET", "/", headers={"origin": "https://a.org"})
    assert response.status == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers[ALLOW_ORIGIN] == "https://a.org"
    other = await testing.request(app, "GET", "/", headers={"origin": "https://b.org"})
    assert other.status == 403
    assert ALLOW_ORIGIN not in other.headers


async def test_a_preflight_needs_no_token(hub: Hub) -> None:
    access = Access(
        subscribe_token="x",
        publish_token="y",
        allowed_origins=("https://a.org",),
        allowed_hosts=("a",),
    )
    app = Endpoint(hub, access=access, publish=True)
    asks = {
        "host": "a",
        "origin": "https://a.org",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    response = await testing.request(app, "OPTIONS", "/", headers=asks)
    assert response.status == 204
    assert response.body == b""
    assert dict(response.headers) == {
        "allow": "GET, HEAD, OPTIONS, POST",
        "vary": "origin",
        ALLOW_ORIGIN: "https://a.org",
        CREDENTIALS: "true",
        "access-control-allow-methods": "GET, HEAD, OPTIONS, POST",
        "access-control-allow-headers": (
            "authorization, cache-control, content-type, idempotency-key, last-event-id"
        ),
        "access-control-max-age": "600",
    }
    elsewhere = await testing.request(app, "OPTIONS", "/", headers={**asks, "host": "b"})
    assert elsewhere.status == 403
    stranger = await testing.request(app, "OPTIONS", "/", headers={**asks, "origin": "null"})
    assert ALLOW_ORIGIN not in stranger.headers


async def test_the_identity_reaches_the_session(hub: Hub) -> None:
    async def authorize(asked: Request) -> str:
        return asked.headers["authorization"]

    app = Endpoint(hub, access=Access(authorize=authorize))
    async with testing.open_stream(app, headers={"authorization": "me"}):
        [session] = hub.sessions.values()
        assert session.request.identity == "me"


@given(
    headers=st.dictionaries(
        st.sampled_from(["host", "origin", "authorization", "x"]),
        st.text(st.characters(max_codepoint=255)) | st.sampled_from(["http://[", "Bearer x"]),
    ),
    query=st.text(st.characters(min_codepoint=33, max_codepoint=126)),
)
def test_no_header_does_anything_but_pass_or_be_refused(
    headers: dict[str, str], query: str
) -> None:
    access = Access(subscribe_token="x", allowed_hosts=("*.a", "b"), allowed_origins=("https://a",))

    async def main() -> None:
        for access_ in (access, Access()):
            access_.cors_headers(headers.get("origin"))
            assert await status(access_, request("GET", query, **headers), server=LOOPBACK) in (
                200,
                401,
                403,
            )

    trio.run(main)
