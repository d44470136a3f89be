"""The event log: an ordered sequence of what was published.

An event's id is its place in it, ``<epoch>.<position>``. The epoch is made anew when
positions start again, so that an old id is never mistaken for a new one.
"""

from ._protocol import Cursor as Cursor
from ._protocol import EventLog as EventLog
from ._protocol import Record as Record
from .memory import MemoryLog as MemoryLog
