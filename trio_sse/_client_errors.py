"""What a client can meet: the server's answer, the network, a peer that is not HTTP.

Foreign exceptions are translated once, where a stream is touched, and stay reachable as
``__cause__``. `EventTooLarge`, which the decoder raises, is in `trio_sse.wire`.
"""

from __future__ import annotations

from typing import final

import trio


class ClientError(Exception):
    """What every error of `connect` and `request` is an instance of, `EventTooLarge` apart.

    Attributes:
        for_good: connecting again would be of no use, so the source does not.
    """

    def __init__(self, message: str, *, for_good: bool = False) -> None:
        super().__init__(message)
        self.for_good = for_good


@final
class RequestRefused(ClientError):
    """The server answered, and the answer is not an event stream (9.2.3).

    Any status but 200 is such an answer, 204 among them, by which a server tells its clients
    to stay away; and so is a 200 of another content type.

    Attributes:
        status: the HTTP status.
        headers: the response's, names in lower case.
        body: the first 64 KiB, or less, of what the response said.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes = b"",
        for_good: bool = True,
    ) -> None:
        super().__init__(message, for_good=for_good)
        self.status = status
        self.headers = headers
        self.body = body


@final
class NetworkError(ClientError):
    """There was no connection to be had, or it broke, or nothing came over it in time."""


@final
class ProtocolError(ClientError):
    """What came over the connection is not what HTTP/1.1 or its content coding allow."""


@final
class SourceClosed(ClientError, trio.ClosedResourceError):
    """The source was used after it was closed; ``__cause__`` is what closed it, if it failed."""
