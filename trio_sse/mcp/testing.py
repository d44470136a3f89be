"""A client in memory, for the tests of servers: the protocol as it is on the wire.

It runs under Trio's mock clock, needs no socket, and sees what a real client would::

    async with mcp_app, connect(mcp_app) as client:
        result = await client.request("tools/call", {"name": "add", "arguments": {"a": 1}})
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, cast, final

import trio

from .._respond import ASGIApp
from ..testing import Response, Stream, open_stream
from ..testing import request as http_request

__all__ = ["Client", "HttpFailed", "RequestFailed", "connect"]

ACCEPT: Final = "application/json, text/event-stream"

Answer = Callable[[dict[str, Any]], Awaitable[Any]]
"""Answers a request of the server's: ``await answer(params)`` is the result."""


@final
class RequestFailed(Exception):
    """The server answered with an error: its ``code``, ``message`` and ``data``."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(error["code"], error["message"])
        self.code: int = error["code"]
        self.message: str = error["message"]
        self.data: Any = error.get("data")


@final
class HttpFailed(Exception):
    """The server answered with an HTTP status that is no success: ``response`` has it."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status, response.text)
        self.response = response


@final
class Client:
    """A client of Streamable HTTP, with or without a session.

    Attributes:
        headers: sent with every request.
        session_id: as the server gave it.
        version: the revision agreed upon.
        server: what the server said of itself.
        received: notifications, and requests of the server's, in the order they came.
        answers: what is said to requests of the server's, by method.
    """

    def __init__(self, app: ASGIApp, path: str, headers: Mapping[str, str]) -> None:
        self._app = app
        self._path = path
        self._ids = itertools.count(1)
        self.headers = {"accept": ACCEPT, **headers}
        self.session_id: str | None = None
        self.version = ""
        self.server: dict[str, Any] = {}
        self.received: list[dict[str, Any]] = []
        self.answers: dict[str, Answer] = {}

    async def initialize(
        self, version: str = "2025-11-25", capabilities: Mapping[str, Any] | None = None
    ) -> None:
        """Open a session."""
        params = {
            "protocolVersion": version,
            "capabilities": dict(capabilities or {}),
            "clientInfo": {"name": "trio_sse.mcp.testing", "version": "0"},
        }
        async with self.open_request("initialize", params) as stream:
            self.server = await self._result(stream)
            self.session_id = stream.headers.get("mcp-session-id")
        self.version = self.server["protocolVersion"]
        if self.session_id is not None:
            self.headers["mcp-session-id"] = self.session_id
        self.headers["mcp-protocol-version"] = self.version
        await self.notify("notifications/initialized")

    async def request(self, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask; the result. What comes meanwhile is added to ``received``, and answered.

        Raises:
            RequestFailed: the answer is an error.
            HttpFailed: there is no answer.
        """
        async with self.open_request(method, params) as stream:
            return await self._result(stream)

    def open_request(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        id: int | str | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> AbstractAsyncContextManager[Stream]:
        """The same, as the response on which the answer comes."""
        id = next(self._ids) if id is None else id
        message: dict[str, Any] = {"jsonrpc": "2.0", "id": id, "method": method}
        if params is not None:
            message["params"] = dict(params)
        return self._open("POST", json.dumps(message).encode(), headers or {}, **options)

    async def notify(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        """Send a notification.

        Raises:
            HttpFailed: it was not taken.
        """
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        if params is not None:
            message["params"] = dict(params)
        await self._post(message)

    async def post(self, message: object, **headers: str) -> Response:
        """Send any JSON; the whole response, whatever its status."""
        return await http_request(
            self._app, "POST", self._path, headers={**self.headers, **headers}, json=message
        )

    def listen(
        self, last_event_id: str | None = None, **options: Any
    ) -> AbstractAsyncContextManager[Stream]:
        """The session's own stream, or the rest of one that was cut off."""
        headers = {} if last_event_id is None else {"last-event-id": last_event_id}
        return self._open("GET", b"", headers, **options)

    async def delete(self) -> Response:
        """End the session."""
        return await http_request(self._app, "DELETE", self._path, headers=self.headers)

    async def receive(self, stream: Stream) -> dict[str, Any]:
        """The next message on ``stream``; a request of the server's is answered, if it can be.

        Raises:
            trio.EndOfChannel: as `Stream.receive_event`.
        """
        while not (data := (await stream.receive_event()).data):
            pass
        message: dict[str, Any] = json.loads(data)
        if "method" in message:
            self.received.append(message)
            answer = self.answers.get(message["method"])
            if "id" in message and answer is not None:
                result = await answer(message.get("params", {}))
                await self._post({"jsonrpc": "2.0", "id": message["id"], "result": result})
        return message

    def _open(
        self, method: str, body: bytes, headers: Mapping[str, str], **options: Any
    ) -> AbstractAsyncContextManager[Stream]:
        more = {"content-type": "application/json"} if body else {}
        return open_stream(
            self._app,
            self._path,
            method=method,
            headers={**self.headers, **more, **headers},
            body=body,
            **options,
        )

    async def _post(self, message: object) -> None:
        response = await self.post(message)
        if response.status != 202:
            raise HttpFailed(response)

    async def _result(self, stream: Stream) -> dict[str, Any]:
        if stream.status != 200:
            raise HttpFailed(Response(stream.status, stream.headers, await stream.read()))
        if stream.headers["content-type"] == "application/json":
            message: dict[str, Any] = json.loads(await stream.read())
        else:
            message = await self.receive(stream)
            while "method" in message:
                message = await self.receive(stream)
        if "error" in message:
            raise RequestFailed(cast("dict[str, Any]", message["error"]))
        return cast("dict[str, Any]", message["result"])


@asynccontextmanager
async def connect(
    app: ASGIApp,
    path: str = "/mcp",
    *,
    version: str = "2025-11-25",
    capabilities: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    answers: Mapping[str, Answer] | None = None,
) -> AsyncGenerator[Client, None]:
    """A client with a session, which is ended in the end if it has not been.

    Args:
        app: that is open, as in ``async with app:``.
        version: the revision to ask for.
        capabilities: the client's.
        headers: to be sent with every request.
        answers: see `Client`.
    """
    client = Client(app, path, headers or {})
    client.answers.update(answers or {})
    await client.initialize(version, capabilities)
    try:
        yield client
    finally:
        if client.session_id is not None:
            with trio.move_on_after(5, shield=True):
                await client.delete()
