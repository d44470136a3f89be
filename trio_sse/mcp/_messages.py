"""JSON-RPC bodies: read within limits, written once, and refused with the proper status."""

from __future__ import annotations

import json
from typing import Any, Final, cast, final

import pydantic_core
from mcp_types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
)
from pydantic import ValidationError

from ..errors import Refused

_STATUS_CODES: Final = {400: INVALID_REQUEST}
"""JSON-RPC codes for HTTP statuses; others than these are in the range left to servers."""
_SERVER_ERROR: Final = -32000

_Kind = (
    type[JSONRPCRequest] | type[JSONRPCNotification] | type[JSONRPCResponse] | type[JSONRPCError]
)


@final
class Rejected(Exception):
    """A request that is answered with a JSON-RPC error and an HTTP status.

    Args:
        status: the HTTP status.
        message: what to tell the client.
        code: the JSON-RPC error code; by default one for the status.
        id: the request's, where it is known.
        data: further particulars.
        headers: further response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: int | None = None,
        id: RequestId | None = None,
        data: Any = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.code = _STATUS_CODES.get(status, _SERVER_ERROR) if code is None else code
        self.id = id
        self.data = data
        self.headers = headers

    @classmethod
    def from_refused(cls, refused: Refused) -> Rejected:
        """The same refusal, as this protocol's clients understand it."""
        headers = [(name.lower().encode(), value.encode()) for name, value in refused.headers]
        if refused.retry_after is not None:
            headers.append((b"retry-after", str(refused.retry_after).encode()))
        return cls(refused.status, refused.text, headers=tuple(headers))

    def body(self) -> bytes:
        """The JSON-RPC error response."""
        return error_body(self.code, self.message, id=self.id, data=self.data)


def error_body(code: int, message: str, *, id: RequestId | None, data: Any = None) -> bytes:
    """A JSON-RPC error response; an ``id`` that is not known is ``null``."""
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return json.dumps({"jsonrpc": "2.0", "id": id, "error": error}).encode()


def parse(body: bytes) -> object:
    """The JSON value in ``body``.

    Raises:
        Rejected: 400; it is not JSON, too deeply nested, or has numbers that JSON has not.
    """
    try:
        return cast("object", pydantic_core.from_json(body, allow_inf_nan=False))
    except ValueError as exc:
        raise Rejected(400, f"not JSON: {exc}", code=PARSE_ERROR) from None


def member(value: object, name: str) -> object:
    """The member ``name`` of a JSON object; ``None`` if there is none, or it is no object."""
    return cast("dict[str, object]", value).get(name) if isinstance(value, dict) else None


def to_message(decoded: object) -> JSONRPCMessage:
    """The JSON-RPC message that ``decoded`` is; its members say which of the four.

    Raises:
        Rejected: 400; it is none.
    """
    kind: _Kind | None = None
    if isinstance(decoded, dict):
        if "method" in decoded:
            kind = JSONRPCRequest if "id" in decoded else JSONRPCNotification
        elif "result" in decoded:
            kind = JSONRPCResponse
        elif "error" in decoded:
            kind = JSONRPCError
    if kind is None:
        raise Rejected(400, "the body is no JSON-RPC message")
    try:
        return kind.model_validate(decoded, by_name=False)
    except ValidationError as exc:
        where = ".".join(str(part) for part in exc.errors()[0]["loc"])
        raise Rejected(400, f"the body is no JSON-RPC message: see {where!r}") from None


def dump(message: JSONRPCMessage) -> str:
    """``message`` as JSON, on one line."""
    return message.model_dump_json(by_alias=True, exclude_unset=True)


def kernel_id(id: RequestId) -> RequestId:
    """The id under which the SDK's dispatcher is to know a client's request.

    It takes ``"1"`` and ``1`` for the same, and they are not (JSON-RPC 2.0, 4). A string
    that reads like a number goes by its JSON text instead, quotation marks included.
    """
    if isinstance(id, str):
        try:
            int(id)
        except ValueError:
            return id
        return json.dumps(id)
    return id
