"""For the tests of applications: clients without sockets, and the interleaving explorer.

All of it runs under Trio's mock clock, `trio.testing.MockClock`, as well as without.
"""

from __future__ import annotations

from .._names import name_after as _name_after
from ._asgi import Response as Response
from ._asgi import Stream as Stream
from ._asgi import lifespan as lifespan
from ._asgi import open_stream as open_stream
from ._asgi import request as request
from ._explorer import BrokenInterleaving as BrokenInterleaving
from ._explorer import Deadlock as Deadlock
from ._explorer import Exploration as Exploration
from ._explorer import Moment as Moment
from ._explorer import NotRepeatable as NotRepeatable
from ._explorer import explore as explore

__all__ = [
    "BrokenInterleaving",
    "Deadlock",
    "Exploration",
    "Moment",
    "NotRepeatable",
    "Response",
    "Stream",
    "explore",
    "lifespan",
    "open_stream",
    "request",
]
_name_after(__name__, globals())
