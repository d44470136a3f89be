"""Server-sent events for Trio."""

from __future__ import annotations

from ._access import Access as Access
from .asgi import Endpoint as Endpoint
from .errors import HubClosed as HubClosed
from .errors import Refused as Refused
from .errors import SessionEnded as SessionEnded
from .hooks import Hooks as Hooks
from .hub import Hub as Hub
from .hub import HubLimits as HubLimits
from .hub import HubStatistics as HubStatistics
from .log import EventLog as EventLog
from .log import MemoryLog as MemoryLog
from .log import Record as Record
from .outbox import OutboxLimits as OutboxLimits
from .server import serve as serve
from .session import EndReason as EndReason
from .session import Request as Request
from .session import Session as Session
from .session import SessionStatistics as SessionStatistics
from .wire import Decoder as Decoder
from .wire import Event as Event
from .wire import EventTooLarge as EventTooLarge
from .wire import encode as encode
