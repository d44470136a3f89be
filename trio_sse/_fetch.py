"""Requests as the WHATWG Fetch standard sends them, as far as an event source needs it."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from time import time
from typing import Final

import trio

from ._client_errors import NetworkError, ProtocolError
from ._dial import DEFAULT_TRANSPORT, Dialer, Transport, read_into, refusal
from ._http1 import Headers, Incoming, RawHeaders, Request, Response, checked_headers, with_defaults
from ._url import parse_url

MAX_REDIRECTS: Final = 20  # Fetch, 4.4, "HTTP-redirect fetch"

_ABOUT_BODY: Final = {"content-encoding", "content-language", "content-location", "content-type"}
_HARMLESS: Final = {
    *("accept", "accept-encoding", "accept-language", "cache-control", "last-event-id"),
    *("pragma", "user-agent", *_ABOUT_BODY),
}
"""What goes on to another origin. Anything else that a caller adds may be a credential."""

_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"?')
_MIME_TYPE: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+/[!#$%&'*+.^_`|~0-9a-z-]+")


def build_request(
    method: str,
    url: str,
    headers: Headers | None,
    body: bytes | None,
    *,
    defaults: dict[str, bytes],
    reserved: dict[str, str],
) -> Request:
    """A request from what a caller gave; credentials in the URL become a header.

    Raises:
        ValueError: for what cannot be sent.
    """
    if not re.fullmatch(r"[A-Z]+", method) or method in {"CONNECT", "HEAD"}:
        raise ValueError(f"method={method!r}: an HTTP method with a body to answer, as in 'GET'")
    parsed = parse_url(url)
    if parsed.userinfo:
        defaults = {**defaults, "authorization": parsed.basic_auth}
    checked = with_defaults(checked_headers(headers, reserved=reserved), defaults)
    return Request(method, parsed, checked, body)


def redirected(request: Request, status: int, location: str) -> Request:
    """The request that a redirect asks for (Fetch, 4.4, "HTTP-redirect fetch").

    Raises:
        ProtocolError: if there is none to make. It will not be otherwise next time.
    """
    where = request.url.shown
    try:  # Fetch has non-ASCII bytes escaped as they are
        url = request.url.join(location.encode("latin-1").decode(errors="replace"))
    except ValueError as exc:
        raise ProtocolError(f"{where} redirects to nowhere: {exc}", for_good=True) from exc
    method, headers, body = request.method, request.headers, request.body
    if (status in {301, 302} and method == "POST") or (status == 303 and method != "GET"):
        method, body = "GET", None
        headers = _without(headers, _ABOUT_BODY)
    if url.origin != request.url.origin:
        if url.userinfo:
            raise ProtocolError(
                f"{where} redirects to another origin with credentials in its URL", for_good=True
            )
        headers = tuple((name, value) for name, value in headers if name in _HARMLESS)
    elif url.userinfo:
        headers = (
            *_without(headers, {"authorization"}),
            ("authorization", url.basic_auth),
        )
    return Request(method, url, headers, body)


def _without(headers: RawHeaders, names: set[str]) -> RawHeaders:
    return tuple((name, value) for name, value in headers if name not in names)


async def fetch(request: Request, dialer: Dialer) -> Incoming:
    """Send the request, follow redirects, return the answer that is none.

    Raises:
        ClientError: as for `Dialer.send`; or a redirect leads nowhere, or too far.

    Cancelled or failed, it has closed what it opened.
    """
    for _ in range(MAX_REDIRECTS + 1):
        answer = await dialer.send(request)
        location = answer.header("location")
        if answer.status not in {301, 302, 303, 307, 308} or location is None:
            return answer
        try:
            request = redirected(request, answer.status, location)
        finally:
            with trio.move_on_after(1, shield=True):
                await answer.aclose()
    raise ProtocolError(
        f"{request.url.shown}: redirected more than {MAX_REDIRECTS} times", for_good=True
    )


async def open_event_stream(request: Request, dialer: Dialer) -> Incoming:
    """`fetch`, and the check that the answer is an event stream (9.2.3).

    Raises:
        RequestRefused: if it is not.
        ClientError: as for `fetch`.

    Cancelled or failed, it has closed what it opened.
    """
    answer = await fetch(request, dialer)
    try:
        found = f"{answer.url.shown} answered {answer.status}"
        if answer.status != 200:
            raise await refusal(answer, found)
        if (mime := mime_type(answer.header("content-type"))) != "text/event-stream":
            raise await refusal(answer, f"{found} with {mime or 'no type'}, not text/event-stream")
        answer.undo_coding()
    except BaseException:
        with trio.move_on_after(1, shield=True):
            await answer.aclose()
        raise
    return answer


def mime_type(header: str | None) -> str | None:
    """The type and subtype that a ``Content-Type`` means (Fetch, 3.7, "extract a MIME type").

    Of several the last that is one counts; parameters do not.
    """
    essence = None
    for value in _QUOTED.sub('""', header or "").lower().split(","):
        candidate = value.partition(";")[0].strip()
        if _MIME_TYPE.fullmatch(candidate) and candidate != "*/*":
            essence = candidate
    return essence


def retry_after(headers: tuple[tuple[str, str], ...]) -> float | None:
    """Seconds to wait by ``Retry-After`` (RFC 9110, 10.2.3), ``None`` if it is not there."""
    named = dict(headers)
    value = named.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:15])
    try:
        then = parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    try:  # by the server's clock, which need not be ours
        now = parsedate_to_datetime(named["date"]).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError):
        now = time()
    return max(0.0, then - now)


async def request(
    method: str,
    url: str,
    *,
    headers: Headers | None = None,
    body: bytes | None = None,
    transport: Transport = DEFAULT_TRANSPORT,
    max_body_size: int = 1 << 20,
) -> Response:
    """One request, its answer read whole. Redirects are answers too.

    All of it has `connect_timeout` to happen in.

    Args:
        max_body_size: bytes of the answer's body.

    Raises:
        ValueError: if there is no such request to send.
        NetworkError: no connection, or it broke, or it took too long.
        ProtocolError: the answer is not HTTP/1.1, or is larger than `max_body_size`.
        RequestRefused: the proxy refused to connect.

    Cancelled, it has closed its connection; the server may have acted on the request.
    """
    defaults = {"accept-encoding": b"identity", "user-agent": b"trio-sse"}
    prepared = build_request(method, url, headers, body, defaults=defaults, reserved={})
    with trio.move_on_after(transport.connect_timeout):
        return await _read_whole(prepared, Dialer(transport), max_body_size)
    raise NetworkError(
        f"{prepared.url.shown}: no answer within {transport.connect_timeout:g} seconds"
    )


async def _read_whole(request: Request, dialer: Dialer, limit: int) -> Response:
    answer = await dialer.send(request)
    try:
        answer.undo_coding()
        body = bytearray()
        await read_into(body, answer, limit=limit)
    finally:
        with trio.move_on_after(1, shield=True):
            await answer.aclose()
    if len(body) > limit:
        raise ProtocolError(f"{answer.url.shown}: the answer is larger than {limit} bytes")
    return Response(answer.status, answer.text_headers(), bytes(body))
