"""The event log: an ordered sequence of what was published.

An event's id is its place in it, ``<epoch>.<position>``. The epoch is made anew when
positions start again, so that an old id is never mistaken for a new one.
"""

from ._protocol import Cursor as Cursor
from ._protocol import EventLog as EventLog
from ._protocol import Gap as Gap
from ._protocol import Page as Page
from ._protocol import Record as Record
from ._protocol import Replay as Replay
from ._replay import SequenceReplay as SequenceReplay
from .memory import MemoryLog as MemoryLog
from .url import open_log as open_log
