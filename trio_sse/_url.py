"""Where to connect to: ``http`` and ``https`` URLs, and which proxy the environment names."""

from __future__ import annotations

import ipaddress
import re
from base64 import b64encode
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_KEPT: Final = "!#$%&'()*+,/:;=?@[]~"  # percent signs too: what is escaped stays as it is
_HOST: Final = re.compile(r"[a-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Url:
    """An absolute URL, taken apart for connecting.

    Attributes:
        host: in lower case, an international name as IDNA has it, IPv6 without brackets.
        target: path and query, percent-encoded: what goes into the request line.
        userinfo: ``user:password`` with the percent-encoding undone, ``""`` if none is given.
    """

    scheme: str
    host: str
    port: int
    target: str
    userinfo: str = ""

    @property
    def origin(self) -> tuple[str, str, int]:
        """What two URLs must share for one to be sent the other's credentials."""
        return self.scheme, self.host, self.port

    @property
    def host_and_port(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def authority(self) -> str:
        """The ``Host`` header: without the port where it is the scheme's own."""
        if self.port == DEFAULT_PORTS[self.scheme]:
            return self.host_and_port.rpartition(":")[0]
        return self.host_and_port

    @property
    def absolute(self) -> str:
        """The whole, without credentials."""
        return f"{self.scheme}://{self.authority}{self.target}"

    @property
    def shown(self) -> str:
        """For messages: without credentials, and without the query, which may hold a token."""
        path, query, _ = self.target.partition("?")
        return f"{self.scheme}://{self.authority}{path}{query and '?...'}"

    @property
    def basic_auth(self) -> bytes:
        return b"Basic " + b64encode(self.userinfo.encode())

    def join(self, location: str) -> Url:
        """The URL that ``location`` means in an answer from this one.

        Raises:
            ValueError: if that is no ``http`` or ``https`` URL.
        """
        return parse_url(urljoin(self.absolute, location))


def parse_url(text: str) -> Url:
    """Take a URL apart.

    Raises:
        ValueError: if it is not an absolute ``http`` or ``https`` URL with a host.
    """
    try:
        parts = urlsplit(text)
        scheme = parts.scheme.lower()
        if scheme not in DEFAULT_PORTS or not parts.hostname:
            raise ValueError("it needs a scheme, http or https, and a host")
        port = parts.port
        host = _host(parts.hostname, bracketed="[" in parts.netloc)
        target = _target(parts)
    except ValueError as exc:
        raise ValueError(
            f"{text!r} is not a URL to connect to: {exc}; "
            "write it in full, as in 'https://example.org/events'"
        ) from None
    return Url(
        scheme=scheme,
        host=host,
        port=DEFAULT_PORTS[scheme] if port is None else port,
        target=target,
        userinfo=unquote(parts.netloc.rpartition("@")[0]),
    )


def _host(name: str, *, bracketed: bool) -> str:
    if bracketed or ":" in name:
        ipaddress.IPv6Address(name)
        return name
    ascii_name = name.encode("idna").decode() if not name.isascii() else name
    if not _HOST.fullmatch(ascii_name):
        raise ValueError(f"{name!r} is not a host name")
    return ascii_name


def _target(parts: SplitResult) -> str:
    path = quote(parts.path, safe=_KEPT) or "/"
    return f"{path}?{quote(parts.query, safe=_KEPT)}" if parts.query else path


def environment_proxy(url: Url) -> str | None:
    """The proxy that ``HTTP_PROXY`` and its kin, or the system's settings, name for ``url``."""
    # Imported here because it brings a good deal that a server never needs.
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415  # see above

    # With the port for a NO_PROXY that names one; without, for an IPv6 address.
    if proxy_bypass(url.host_and_port) or proxy_bypass(url.host):
        return None
    proxies = getproxies()
    return proxies.get(url.scheme) or proxies.get("all")


def parse_proxy(text: str) -> Url:
    """Take a proxy's address apart; without a scheme it is ``http``.

    Raises:
        ValueError: if it is of another kind than an HTTP proxy.
    """
    url = text if "://" in text else f"http://{text}"
    try:
        return parse_url(url)
    except ValueError:
        scheme = url.partition("://")[0]
        what = "not understood" if scheme in DEFAULT_PORTS else f"{scheme!r} is not supported"
        # The address may hold a password, so it is not shown.
        raise ValueError(
            f"the proxy's address: {what}; an HTTP proxy is needed, as in "
            "'http://proxy.example:3128', or Transport(open_stream=...) for another way"
        ) from None
