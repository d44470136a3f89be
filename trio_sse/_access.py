"""Who may ask for what: hosts, origins, tokens, or a coroutine of your own."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, final
from urllib.parse import urlsplit

from ._respond import Headers, Scope
from .errors import Refused
from .session import Request

Authorize = Callable[[Request], Awaitable[Any]]

_PREFLIGHT_SECONDS: Final = 600


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may subscribe and publish.

    Args:
        subscribe_token: what subscribers must send, as ``Authorization: Bearer …`` or,
            since a browser's ``EventSource`` cannot set headers, as the
            ``access_token`` query parameter.
        publish_token: the same for publishers.
        authorize: is awaited with the `Request`, after the tokens were checked. What it
            returns becomes ``session.request.identity``; raising `Refused` says no.
        allowed_origins: other web origins whose pages may use this endpoint, as
            ``"https://example.org"``; ``"*"`` for any, which then cannot send
            credentials. The endpoint's own origin always may.
        allowed_hosts: what the ``Host`` header may be, without port; ``"*.example.org"``
            for subdomains, ``"*"`` for any. ``None`` lets everything through except on
            a loopback address, where only loopback names pass: a page elsewhere cannot
            reach a local server by making its own name point here (DNS rebinding).

    Raises:
        ValueError: an empty token, which anyone could send, or something that is not
            an origin.
    """

    subscribe_token: str | None = None
    publish_token: str | None = None
    authorize: Authorize | None = None
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("subscribe_token", "publish_token"):
            if getattr(self, name) == "":
                raise ValueError(
                    f'Access({name}=""): an empty token is none; leave it out to ask for no token'
                )
        for origin in self.allowed_origins:
            parts = urlsplit(origin)
            if origin not in ("*", "null") and (
                not parts.scheme or not parts.netloc or parts.path or parts.query
            ):
                raise ValueError(
                    f"Access(allowed_origins=({origin!r},)): an origin is scheme and host, "
                    "without a path, as in 'https://example.org'"
                )

    def __repr__(self) -> str:
        """Without the tokens: this gets into logs."""
        return (
            f"<Access subscribe_token={'set' if self.subscribe_token else None} "
            f"publish_token={'set' if self.publish_token else None} "
            f"authorize={self.authorize} allowed_origins={self.allowed_origins} "
            f"allowed_hosts={self.allowed_hosts}>"
        )

    async def check(self, scope: Scope, request: Request) -> Request:
        """``request`` with its identity, if it may pass.

        Raises:
            Refused: 401 or 403, or as ``authorize`` says.
        """
        headers = request.headers
        self.check_host(scope, headers.get("host", ""))
        self._check_origin(headers.get("origin"), headers.get("host", ""))
        token = self.publish_token if request.method == "POST" else self.subscribe_token
        if token is not None:
            _check_token(token, request)
        if self.authorize is not None:
            return replace(request, identity=await self.authorize(request))
        return request

    def check_host(self, scope: Scope, host: str) -> None:
        name = _host_name(host)
        if self.allowed_hosts is None:
            address = _server_address(scope)
            if name == address or _is_loopback(name) or not _is_loopback(address):
                return
        elif any(_host_matches(name, pattern) for pattern in self.allowed_hosts):
            return
        raise Refused(
            403,
            f"this server does not answer to the host name {name!r}; "
            "its operator can allow it (allowed_hosts)",
        )

    def _check_origin(self, origin: str | None, host: str) -> None:
        if origin is None or self._allows(origin) or _is_same_origin(origin, host):
            return
        raise Refused(
            403,
            f"pages of {origin} may not use this endpoint; "
            "its operator can allow them (allowed_origins)",
        )

    def _allows(self, origin: str) -> bool:
        return "*" in self.allowed_origins or origin in self.allowed_origins

    def cors_headers(self, origin: str | None) -> Headers:
        """What lets an allowed page read the response, and caches tell pages apart."""
        if not self.allowed_origins:
            return []
        if "*" in self.allowed_origins:
            return [(b"access-control-allow-origin", b"*")]
        headers: Headers = [(b"vary", b"origin")]
        if origin is not None and self._allows(origin):
            headers.append((b"access-control-allow-origin", origin.encode("latin-1")))
            headers.append((b"access-control-allow-credentials", b"true"))
        return headers

    def preflight_headers(self, methods: str) -> Headers:
        return [
            (b"access-control-allow-methods", methods.encode()),
            (
                b"access-control-allow-headers",
                b"authorization, cache-control, content-type, idempotency-key, last-event-id",
            ),
            (b"access-control-max-age", str(_PREFLIGHT_SECONDS).encode()),
        ]


def _check_token(token: str, request: Request) -> None:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        given = credentials.strip().encode("latin-1")  # as it came: UTF-8, if anything
    else:
        given = request.query.get("access_token", [""])[0].encode()
    if hmac.compare_digest(given, token.encode()):
        return
    what = "publish" if request.method == "POST" else "subscribe"
    raise Refused(
        401,
        f"a token is needed to {what}: send it as 'Authorization: Bearer TOKEN', "
        "or as the query parameter access_token",
        headers=(("www-authenticate", "Bearer"),),
    )


def _host_name(host: str) -> str:
    """``Host`` without its port, in lower case, an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _host_matches(name: str, pattern: str) -> bool:
    pattern = pattern.lower().strip("[]")
    if pattern.startswith("*."):
        return name.endswith(pattern[1:])
    return pattern in ("*", name)


def _server_address(scope: Scope) -> str:
    server = scope.get("server")
    return server[0] if server and server[1] is not None else ""


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _is_same_origin(origin: str, host: str) -> bool:
    # The scheme is left out: behind a proxy that ends TLS ours is not the page's.
    try:
        parts = urlsplit(origin)
    except ValueError:  # not even a URL
        return False
    default = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return bool(host) and parts.netloc.lower().removesuffix(default) == host.lower().removesuffix(
        default
    )
