"""Where Redis is: a URL, taken apart, and the coredis client that it stands for."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from anyio.abc import ByteStream
from coredis import Redis, RedisCluster, Sentinel
from coredis.connection import (
    BaseConnection,
    TCPConnection,
    TCPLocation,
    UnixDomainSocketConnection,
    UnixDomainSocketLocation,
)
from coredis.pool import ConnectionPool
from coredis.retry import NoRetryPolicy

CONNECT_TIMEOUT: Final = 2.0
"""Seconds for a connection to be made, the TLS handshake included."""

_DEFAULT_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_SCHEMES: Final = {
    "redis": "one",
    "rediss": "one",
    "valkey": "one",
    "valkeys": "one",
    "unix": "unix",
    "redis+unix": "unix",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
}
_TLS_OPTIONS: Final = (
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_check_hostname",
    "ssl_cert_reqs",
)
_OPTIONS: Final = ("db", "sentinel_username", "sentinel_password", *_TLS_OPTIONS)
_FALSE: Final = ("0", "false", "no", "off")

AnyClient = Redis[bytes] | RedisCluster[bytes]


class Address(NamedTuple):
    host: str
    port: int


class _Tcp(TCPConnection):
    async def _connect(self) -> ByteStream:
        try:
            return await super()._connect()
        except BaseException:
            _close_buffers(self)
            raise


class _Unix(UnixDomainSocketConnection):
    async def _connect(self) -> ByteStream:
        try:
            return await super()._connect()
        except BaseException:
            _close_buffers(self)
            raise


def _close_buffers(connection: BaseConnection) -> None:
    """What coredis leaves open when it cannot connect: each would be a ResourceWarning."""
    for name in ("write_buffer", "push_message_buffer", "streamed_message_buffer"):
        for end in ("in", "out"):
            getattr(connection, f"_{name}_{end}").close()


def _close_errors(cluster: RedisCluster[bytes]) -> None:
    """Likewise, what it leaves open in any case."""
    for end in getattr(cluster.connection_pool.cluster_layout, "_error_stream", ()):
        end.close()


@final
class Target:
    """A server, the primary that Sentinels know of, or a Cluster.

    ``redis://[[user]:password@]host[:port][/db]``, ``rediss://…`` with TLS,
    ``unix://[[user]:password@]/path/to/socket[?db=1]``,
    ``redis+cluster://host:port,host:port`` and
    ``redis+sentinel://host:port,host:port/name-of-the-primary[/db]``, the last two with
    ``rediss+`` for TLS. What is in the user's name and in the password is percent-encoded.

    Options of the query: ``db``; for TLS ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``,
    ``ssl_check_hostname=false``, ``ssl_cert_reqs=none``; the Sentinels' own
    ``sentinel_username`` and ``sentinel_password``.

    Raises:
        ValueError: it is not such a URL. The message does not tell the password.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        kind = _SCHEMES.get(parts.scheme)
        if kind is None:
            raise ValueError(
                f"{parts.scheme or 'no'}: is no URL of a Redis; as in redis://localhost:6379/0 "
                f"(there is {', '.join(_SCHEMES)})"
            )
        self._kind = kind
        self._options = _options(parts)
        userinfo, _, hosts = parts.netloc.rpartition("@")
        username, _, password = userinfo.partition(":")
        self._username = unquote(username) or None
        self._password = unquote(password) or None
        path = [unquote(part) for part in parts.path.split("/") if part]
        self.addresses: list[Address] = []
        self._path = self._service = ""
        if kind == "unix":
            self._path = unquote(parts.path)
            path = []
        else:
            default = _SENTINEL_PORT if kind == "sentinel" else _DEFAULT_PORT
            self.addresses = [_address(text, default) for text in hosts.split(",")]
        if kind == "sentinel":
            if not path:
                raise ValueError(
                    "a URL for Sentinel names the primary, as in "
                    "redis+sentinel://host:26379/mymaster"
                )
            self._service, *path = path
        self._db = _db(self._options.get("db") or "".join(path[:1]) or "0")
        if kind == "cluster" and self._db:
            raise ValueError("a Redis Cluster has no databases but 0: leave it out of the URL")
        tls = parts.scheme.partition("+")[0] in ("rediss", "valkeys")
        self._ssl_context = _ssl_context(self._options) if tls else None

    @property
    def is_cluster(self) -> bool:
        """Whether keys live on several servers, so that one command cannot read them all."""
        return self._kind == "cluster"

    def __str__(self) -> str:
        """Where it is, without who asks and without a password."""
        if self._kind == "unix":
            return f"unix:{self._path}"
        hosts = ",".join(f"{host}:{port}" for host, port in self.addresses)
        if self._kind == "sentinel":
            return f"{self._service} of {hosts}"
        return f"{hosts}/{self._db}" if self._db else hosts

    def redacted(self, text: str) -> str:
        """``text`` without the passwords, should they be in it."""
        for secret in (self._password, self._options.get("sentinel_password")):
            if secret:
                text = text.replace(secret, "***")
        return text

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[AnyClient, None]:
        """A client of its own, which repeats nothing by itself. Leaving closes it."""
        common: dict[str, Any] = {
            "username": self._username,
            "password": self._password,
            "connect_timeout": CONNECT_TIMEOUT,
            "ssl_context": self._ssl_context,
        }
        once: dict[str, Any] = {"retry_policy": NoRetryPolicy(), "verify_version": False}
        if self._kind == "cluster":
            nodes = [TCPLocation(*address) for address in self.addresses]
            cluster: RedisCluster[bytes] = RedisCluster(
                startup_nodes=nodes,
                max_connections_per_node=True,
                decode_responses=False,
                **common,
                **once,
            )
            try:
                async with cluster:
                    yield cluster
            finally:
                _close_errors(cluster)
        elif self._kind == "sentinel":
            async with self._sentinel(common) as sentinel:
                primary = sentinel.primary_for(self._service, db=self._db, **common)
                async with primary:
                    yield primary
        else:
            pool = self._pool(dict(common, db=self._db))
            client: Redis[bytes] = Redis(connection_pool=pool, decode_responses=False, **once)
            async with client:
                yield client

    def _pool(self, common: dict[str, Any]) -> ConnectionPool[Any]:
        if self._kind == "unix":
            place = UnixDomainSocketLocation(self._path)
            return ConnectionPool(connection_class=_Unix, location=place, **common)
        return ConnectionPool(
            connection_class=_Tcp, location=TCPLocation(*self.addresses[0]), **common
        )

    def _sentinel(self, common: dict[str, Any]) -> Sentinel[bytes]:
        own: dict[str, Any] = {
            "connect_timeout": CONNECT_TIMEOUT,
            "ssl_context": common["ssl_context"],
            "username": self._options.get("sentinel_username"),
            "password": self._options.get("sentinel_password"),
        }
        nodes = [TCPLocation(*address) for address in self.addresses]
        return Sentinel(nodes, sentinel_kwargs=own, retry_policy=NoRetryPolicy())


def _options(parts: SplitResult) -> dict[str, str]:
    options = dict(parse_qsl(parts.query))
    for name in options:
        if name not in _OPTIONS:
            raise ValueError(f"a Redis URL has no option {name!r}; there is {', '.join(_OPTIONS)}")
    return options


def _address(text: str, default_port: int) -> Address:
    try:
        parts = urlsplit(f"//{text}")
        return Address(parts.hostname or "localhost", parts.port or default_port)
    except ValueError:
        raise ValueError(f"{text!r} is no host and port, as in localhost:6379") from None


def _db(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is no number of a database, as in redis://localhost:6379/0")
    return int(text)


def _ssl_context(options: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if certificate := options.get("ssl_certfile"):
            context.load_cert_chain(certificate, options.get("ssl_keyfile"))
    except OSError as exc:
        raise ValueError(f"the certificates that the Redis URL names: {exc}") from exc
    if options.get("ssl_check_hostname", "").lower() in _FALSE:
        context.check_hostname = False
    if options.get("ssl_cert_reqs", "").lower() == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
