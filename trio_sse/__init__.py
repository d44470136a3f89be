"""Server-sent events for Trio."""

from __future__ import annotations

from ._access import Access as Access
from ._backoff import Reconnect as Reconnect
from ._client_errors import ClientError as ClientError
from ._client_errors import NetworkError as NetworkError
from ._client_errors import ProtocolError as ProtocolError
from ._client_errors import RequestRefused as RequestRefused
from ._client_errors import SourceClosed as SourceClosed
from ._client_types import ReadyState as ReadyState
from ._client_types import SourceStatistics as SourceStatistics
from ._client_types import StateChange as StateChange
from ._dial import Transport as Transport
from ._names import name_after as _name_after
from ._registry import HubLimits as HubLimits
from .asgi import Endpoint as Endpoint
from .client import EventSource as EventSource
from .client import connect as connect
from .errors import HubClosed as HubClosed
from .errors import KeyReused as KeyReused
from .errors import LogUnavailable as LogUnavailable
from .errors import Refused as Refused
from .errors import SessionEnded as SessionEnded
from .errors import UnusableLog as UnusableLog
from .hooks import Hooks as Hooks
from .hub import Hub as Hub
from .hub import HubStatistics as HubStatistics
from .log import EventLog as EventLog
from .log import Gap as Gap
from .log import MemoryLog as MemoryLog
from .log import Page as Page
from .log import Record as Record
from .log import Replay as Replay
from .log import SequenceReplay as SequenceReplay
from .log import open_log as open_log
from .outbox import OutboxLimits as OutboxLimits
from .outbox import OutboxReceiveEnd as OutboxReceiveEnd
from .outbox import OutboxStatistics as OutboxStatistics
from .server import serve as serve
from .session import EndReason as EndReason
from .session import Request as Request
from .session import Session as Session
from .session import SessionStatistics as SessionStatistics
from .wire import Decoder as Decoder
from .wire import Event as Event
from .wire import EventTooLarge as EventTooLarge
from .wire import encode as encode

__all__ = [
    "Access",
    "ClientError",
    "Decoder",
    "EndReason",
    "Endpoint",
    "Event",
    "EventLog",
    "EventSource",
    "EventTooLarge",
    "Gap",
    "Hooks",
    "Hub",
    "HubClosed",
    "HubLimits",
    "HubStatistics",
    "KeyReused",
    "LogUnavailable",
    "MemoryLog",
    "NetworkError",
    "OutboxLimits",
    "OutboxReceiveEnd",
    "OutboxStatistics",
    "Page",
    "ProtocolError",
    "ReadyState",
    "Reconnect",
    "Record",
    "Refused",
    "Replay",
    "Request",
    "RequestRefused",
    "SequenceReplay",
    "Session",
    "SessionEnded",
    "SessionStatistics",
    "SourceClosed",
    "SourceStatistics",
    "StateChange",
    "Transport",
    "UnusableLog",
    "connect",
    "encode",
    "open_log",
    "serve",
]
_name_after(__name__, globals())
