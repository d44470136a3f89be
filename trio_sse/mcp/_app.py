"""The ASGI application: who may ask, what is asked, and which transport answers."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType, TracebackType
from typing import Any, Final, final

from mcp.server import MCPServer
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import ResourceUpdated, ServerEvent, SubscriptionBus
from mcp.shared.subscriptions import event_to_notification
from mcp_types import PROTOCOL_VERSION_META_KEY
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from .._access import Access
from .._respond import ClientGone, Headers, Receive, Scope, Send, read_body, respond
from ..asgi import SERVER, request_from_scope, run_lifespan
from ..errors import HubClosed, Refused
from ..hub import Hub
from ..session import EndReason, Request, Session
from ._core import Core, McpLimits
from ._exchange import Exchange
from ._hooks import RequestHooks
from ._legacy import LegacySse, LegacyTransport
from ._messages import Rejected, dump, member, parse
from ._metadata import ResourceMetadata
from ._session import Fate, McpSession, notification
from ._stateless import StatelessTransport
from ._streamable import Answers, StreamableTransport

_UPDATED: Final = "notifications/resources/updated"
_VERSION: Final = "mcp-protocol-version"
_EXPOSED: Final = b"mcp-session-id, mcp-protocol-version, www-authenticate, retry-after"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Notified:
    """Who got a notification, by session id.

    Attributes:
        sent: it is on a stream that the client has open. Those that listen in the revision
            without sessions are among them, by the ids of their listening.
        kept: it waits for the client to open one.
        lost: their sessions ended, or are not initialised yet.
        unwanted: it is a log message below the level that they have set.
    """

    sent: tuple[str, ...]
    kept: tuple[str, ...]
    lost: tuple[str, ...]
    unwanted: tuple[str, ...]


@final
class McpApp:
    """An ASGI application that serves an MCP server, in all revisions of the protocol.

    As an application of its own it opens itself at start-up (ASGI lifespan). Mounted, it
    gets no lifespan: open it in the framework's, ``async with app:``.

    Handlers find the HTTP request (`trio_sse.Request`, with what ``authorize`` returned as
    its identity) as ``ctx.request``, and the context variables that middleware has set.

    Args:
        server: the SDK's, either kind. Its tools, resources and so on are served; what an
            ``MCPServer`` has of HTTP itself, as custom routes, is not.
        path: where, below the place it is mounted at; ``{name}`` stands for any one segment.
        hub: where sessions live; by default one of its own. One that is not open is opened.
        access: who may ask. By default only pages of the same origin and, on a loopback
            address, only loopback host names. A session is bound to the identity that opened
            it: ``authorize`` is to return what is equal from request to request.
        limits: on bodies, sessions, streams, requests and times.
        hooks: around requests; those on sessions are the hub's.
        stateful: whether clients of the revisions up to 2025-11-25 are given sessions;
            or a function that decides for each request which has none.
        new_session_id: makes the id of a new session, of visible ASCII characters. One that
            is taken is refused with 409.
        answers: how calls are answered: ``"sse"``, ``"json"``, which leaves no way for
            notifications and requests to the client meanwhile, or ``"auto"``: JSON for what
            is done at once with nothing else to say.
        retry: milliseconds after which a client is to come back whose stream was ended.
        legacy: the transport of 2024-11-05, which is off unless this is given.
        changes: where the server publishes what changes (the SDK's ``SubscriptionBus``). It
            is passed on to sessions: that lists have changed to all, a resource's update to
            those that have subscribed to it. By default an ``MCPServer``'s own, which is what
            ``ctx.notify_resource_updated`` and its like publish to.
        resource_metadata: for clients that must find their authorisation server (RFC 9728):
            ``resource``, ``authorization_servers`` and so on. A 401 then names its URL.

    Raises:
        ValueError: ``path`` does not begin with a slash, or is no pattern; ``resource`` is
            missing; the server has authorisation of its own, which would not be asked.
    """

    def __init__(  # noqa: PLR0913  # all but one by name, each with its default
        self,
        server: Server[Any] | MCPServer,
        *,
        path: str = "/mcp",
        hub: Hub | None = None,
        access: Access | None = None,
        limits: McpLimits | None = None,
        hooks: RequestHooks | None = None,
        stateful: bool | Callable[[Request], bool] = True,
        new_session_id: Callable[[Request], str] | None = None,
        answers: Answers = "auto",
        retry: int = 1000,
        legacy: LegacySse | None = None,
        changes: SubscriptionBus | None = None,
        resource_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.access = Access() if access is None else access
        self.hooks = RequestHooks() if hooks is None else hooks
        self.hub = Hub() if hub is None else hub
        if isinstance(server, MCPServer):
            _check_auth(server)
            if changes is None:
                changes = server._subscriptions  # pyright: ignore[reportPrivateUsage]  # as below
            server = server._lowlevel_server  # pyright: ignore[reportPrivateUsage]  # it has no other way to the kernel
        self._changes = changes
        limits = McpLimits() if limits is None else limits
        self._core = Core(server, self.hub, limits, self.hooks, new_session_id)
        self._stateful = stateful
        self._stateless = StatelessTransport(self._core)
        self._streamable = StreamableTransport(self._core, answers, retry)
        self._metadata = None if resource_metadata is None else ResourceMetadata(resource_metadata)
        self._routes: list[tuple[re.Pattern[str], str, _Answer]] = [
            (_pattern(path), "GET, POST, DELETE", self._answer_main)
        ]
        if legacy is not None:
            transport = LegacyTransport(self._core, legacy)

            async def answer_sse(exchange: Exchange, _: object) -> None:
                await transport.answer_sse(exchange)

            self._routes += [
                (_pattern(legacy.sse_path), "GET", answer_sse),
                (_pattern(legacy.message_path), "POST", transport.answer_message),
            ]
        self._opened: AbstractAsyncContextManager[None] | None = None

    @property
    def name(self) -> str:
        """The server's."""
        return self._core.server.name

    def __repr__(self) -> str:
        return f"<McpApp {self.name!r}, {len(self.sessions)} sessions, {self.hub!r}>"

    # Opening and closing.

    async def __aenter__(self) -> McpApp:
        self._opened = self._everything()
        await self._opened.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        assert self._opened is not None
        return await self._opened.__aexit__(exc_type, exc, tb)  # noqa: ASYNC102  # nothing more

    @asynccontextmanager
    async def _everything(self) -> AsyncGenerator[None, None]:
        async with self._core.opened(), self._stateless.opened():
            # The bus itself tells those that listen in the revision without sessions.
            tell_no_more = _nothing
            if self._changes is not None:
                tell_no_more = self._changes.subscribe(self._pass_on)
            try:
                yield
            finally:
                tell_no_more()

    def _pass_on(self, event: ServerEvent) -> None:
        message = event_to_notification(event, {})
        uri = event.uri if isinstance(event, ResourceUpdated) else None
        params = None if uri is None else {"uri": uri}
        self._notify_sessions(message.method, params, _subscribed(uri))

    async def drain(self, grace: float = 10.0) -> None:
        """As `Hub.drain`: for who serves it with something else than `trio_sse.serve`.

        Requests in flight have half of ``grace`` to be answered.
        """
        await self.hub.drain(grace)

    # What the application asks for.

    @property
    def sessions(self) -> Mapping[str, McpSession]:
        """The MCP sessions by id; a live, read-only view."""
        return MappingProxyType(self._core.sessions)

    def session_of(self, session: Session) -> McpSession | None:
        """The MCP session that a hub's session is: for the hub's hooks.

        ``None`` if it is none of this application's, or of the revision without sessions.
        """
        found = self._core.by_request.get(id(session.request))
        return found if found is not None and found.request is session.request else None

    def notify_all(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        where: Callable[[McpSession], bool] | None = None,
    ) -> Notified:
        """Send a notification to all sessions, or to those for which ``where`` is true.

        It goes to each client's own stream, and never waits for a client. Without ``where``,
        it also goes to those that listen in the revision without sessions, if it is one that
        they have asked for.
        """
        told = self._notify_sessions(method, params, where)
        if where is None:
            told = replace(told, sent=(*told.sent, *self._stateless.notify(method, params)))
        return told

    def notify_updated(self, uri: str) -> Notified:
        """Tell those that have subscribed to the resource at ``uri`` that it has changed."""
        params = {"uri": uri}
        told = self._notify_sessions(_UPDATED, params, _subscribed(uri))
        return replace(told, sent=(*told.sent, *self._stateless.notify(_UPDATED, params)))

    def _notify_sessions(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        where: Callable[[McpSession], bool] | None,
    ) -> Notified:
        text = dump(notification(method, params))
        fates: dict[Fate, list[str]] = {"sent": [], "kept": [], "lost": [], "unwanted": []}
        for id, session in list(self.sessions.items()):
            if where is None or where(session):
                fates[session.notify_text(method, params, text)].append(id)
        return Notified(**{fate: tuple(ids) for fate, ids in fates.items()})

    def send(self, session_id: str, method: str, params: Mapping[str, Any] | None = None) -> Fate:
        """As `McpSession.notify`, by id; ``"lost"`` if there is no such session."""
        session = self.sessions.get(session_id)
        return "lost" if session is None else session.notify(method, params)

    def end(self, session_id: str, reason: EndReason | str) -> bool:
        """End one session; whether there is one that had not been ended."""
        session = self.sessions.get(session_id)
        if session is None or not session.is_open:
            return False
        session.end(reason)
        return True

    def end_all(self, reason: EndReason | str) -> int:
        """End every session, for ``reason``; how many that were."""
        return sum([self.end(id, reason) for id in list(self.sessions)])

    # HTTP.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        hub_server = scope.get("state", {}).get(SERVER)
        if hub_server is not None:
            hub_server.serves(self.hub)
        if scope["type"] == "lifespan":
            await run_lifespan(self, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "websocket":
            # Any client may ask: that is no defect of the application's.
            await send({"type": "websocket.close"})
        else:
            raise RuntimeError(
                f"trio_sse.mcp.McpApp speaks http, not {scope['type']!r}: "
                "route only HTTP requests to it"
            )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = request_from_scope(scope)
        headers = request.headers
        cors = self.access.cors_headers(headers.get("origin"))
        if cors:
            cors.append((b"access-control-expose-headers", _EXPOSED))
        exchange = Exchange(scope, receive, send, request, headers, cors)
        try:
            await self._answer_checked(exchange)
        except Rejected as rejected:
            await exchange.reject(rejected)
        except Refused as refused:
            await exchange.reject(self._told_where(Rejected.from_refused(refused)))
        except HubClosed as closed:
            await exchange.reject(Rejected(503, str(closed), headers=((b"retry-after", b"5"),)))
        except ClientGone:
            pass  # there is nobody to answer

    def _told_where(self, rejected: Rejected) -> Rejected:
        """A 401 says where to find out about authorisation (RFC 9728, 5.1)."""
        if rejected.status == 401 and self._metadata is not None:
            others = [pair for pair in rejected.headers if pair[0] != b"www-authenticate"]
            challenge = f'Bearer resource_metadata="{self._metadata.url}"'
            rejected.headers = (*others, (b"www-authenticate", challenge.encode()))
        return rejected

    async def _answer_checked(self, exchange: Exchange) -> None:
        scope, method = exchange.scope, exchange.request.method
        path = _path_here(scope)
        if self._metadata is not None and path == self._metadata.path:
            await self._metadata.answer(method, exchange.send)
            return
        methods, answer = self._route(path)
        if method == "OPTIONS":
            self.access.check_host(scope, exchange.headers.get("host", ""))
            await self._answer_options(exchange, f"{methods}, OPTIONS")
            return
        if method not in methods.split(", "):
            raise Rejected(
                405, f"{method} is not for here", headers=((b"allow", methods.encode()),)
            )
        exchange = Exchange(
            scope,
            exchange.receive,
            exchange.send,
            await self.access.check(scope, exchange.request),
            exchange.headers,
            exchange.cors,
        )
        self.hub.check_open()
        await answer(exchange, await self._read(exchange) if method == "POST" else None)

    def _route(self, path: str) -> tuple[str, _Answer]:
        for pattern, methods, answer in self._routes:
            if pattern.fullmatch(path.rstrip("/")):
                return methods, answer
        raise Rejected(404, "there is nothing here")

    async def _answer_options(self, exchange: Exchange, methods: str) -> None:
        headers: Headers = [(b"allow", methods.encode()), *exchange.cors]
        if exchange.cors:
            # Which headers a call has depends on its tool, so those asked for are allowed.
            wanted = exchange.headers.get("access-control-request-headers", "").encode("latin-1")
            for name, value in self.access.preflight_headers(methods):
                headers.append((name, wanted if name == b"access-control-allow-headers" else value))
        await respond(exchange.send, 204, headers=headers)

    async def _read(self, exchange: Exchange) -> object:
        content_type = exchange.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() != "application/json":
            raise Rejected(415, "the body must be application/json")
        limits = self._core.limits
        declared = exchange.headers.get("content-length", "0")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > limits.max_body:
            raise Refused(413, f"the body is larger than {limits.max_body} bytes")
        return parse(
            await read_body(exchange.receive, limit=limits.max_body, seconds=limits.body_timeout)
        )

    async def _answer_main(self, exchange: Exchange, decoded: object) -> None:
        version = exchange.headers.get(_VERSION)
        if _is_modern(version, decoded):
            await self._stateless.answer(exchange, decoded)
        elif exchange.request.method == "POST":
            stateful = self._stateful
            if not isinstance(stateful, bool):
                stateful = stateful(exchange.request)
            await self._streamable.answer_post(exchange, decoded, stateful=stateful)
        elif exchange.request.method == "GET":
            await self._streamable.answer_get(exchange)
        else:
            await self._streamable.answer_delete(exchange)


_Answer = Callable[[Exchange, object], Awaitable[None]]


def _subscribed(uri: str | None) -> Callable[[McpSession], bool] | None:
    return None if uri is None else lambda session: uri in session.subscriptions


def _nothing() -> None:
    pass


def _check_auth(server: MCPServer[Any]) -> None:
    if server.settings.auth is not None:
        raise ValueError(
            "McpApp(server): MCPServer(auth=...) is not asked here. Leave it out, and say who "
            "may come in with McpApp(server, access=Access(authorize=...)), and where clients "
            "get their tokens with resource_metadata={...}"
        )


def _is_modern(version: str | None, decoded: object) -> bool:
    """Whether a request is of a revision without handshake; a version that none has is told so."""
    if version is not None:
        return version not in HANDSHAKE_PROTOCOL_VERSIONS
    if member(decoded, "method") == "initialize":
        return False
    return member(member(member(decoded, "params"), "_meta"), PROTOCOL_VERSION_META_KEY) is not None


def _path_here(scope: Scope) -> str:
    """The request's path below the place where the application is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(f"{root}/")):
        return path[len(root) :]
    return path


def _pattern(path: str) -> re.Pattern[str]:
    """``/a/{b}/c`` as a regular expression, without a slash at its end."""
    if not path.startswith("/"):
        raise ValueError(f"McpApp(path={path!r}): a path begins with a slash, as in '/mcp'")
    parts: Iterable[str] = path.rstrip("/").split("/")
    return re.compile(
        "/".join("[^/]+" if re.fullmatch(r"\{\w+\}", part) else re.escape(part) for part in parts)
    )
