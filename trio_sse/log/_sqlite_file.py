"""The file of a `SqliteLog`: what makes it one, and how it is recognised.

Everything here blocks: it is called in threads.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
import time
from contextlib import closing
from typing import Final, Literal, NamedTuple
from urllib.parse import quote

from ..errors import LogUnavailable, UnusableLog

Sync = Literal["full", "normal", "off"]

APPLICATION_ID: Final = 0x74535345
"""``tSSE``, in the file's header, where ``file`` and `PRAGMA application_id` find it."""
VERSION: Final = 1
BUSY_SECONDS: Final = 5.0
"""How long to wait for what another process has locked."""
CHECKED_SIZE: Final = 256 << 20
"""Files up to this size are read whole before they are opened."""

# A log's positions are dense, so that a range of them is a bound on rows. `total` is the
# size of this event and all before it: what a range takes is one subtraction. `data` is
# the event as it goes over the wire, without the id, which follows from the position.
SCHEMA: Final = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    """CREATE TABLE event (position INTEGER PRIMARY KEY, time INTEGER NOT NULL,
  total INTEGER NOT NULL, topics TEXT NOT NULL, key TEXT, data TEXT NOT NULL)""",
    "CREATE UNIQUE INDEX event_key ON event (key) WHERE key IS NOT NULL",
    "CREATE TABLE room (data BLOB)",
)


class Opened(NamedTuple):
    """A log's file, ready to be written.

    Attributes:
        connection: for one thread at a time; gives text as bytes.
        epoch: what the positions in it belong to.
        identity: device and inode.
    """

    connection: sqlite3.Connection
    epoch: str
    identity: tuple[int, int]


def open_file(path: str, sync: Sync) -> Opened:
    """The log in the file ``path``, which is made if there is none.

    Raises:
        UnusableLog: the file is something else, or damaged, or of a newer version. It
            was not changed, and there is nothing beside it that was not there before.
        LogUnavailable: it stays locked, or cannot be read or written.
    """
    try:
        is_new = not _examine(path)
        connection = connect(path, "rwc" if is_new else "rw")
        try:
            if is_new:
                _create(connection, path)
            _begin_wal(connection, path)
            _configure(connection, sync)
            epoch = _current_epoch(connection, sync)
            connection.text_factory = bytes
            connection.execute("PRAGMA busy_timeout=0")  # the store waits in its own way
            return Opened(connection, epoch, identity(path))
        except BaseException:
            connection.close()
            raise
    except (sqlite3.Error, OSError) as exc:
        raise translated(exc, path, "opened") from exc


def connect(path: str, mode: str) -> sqlite3.Connection:
    """A connection for one thread at a time, whichever that is."""
    # Immutable, SQLite makes no file and takes no lock: it looks, and touches nothing.
    query = "mode=ro&immutable=1" if mode == "immutable" else f"mode={mode}"
    return sqlite3.connect(
        f"file:{quote(os.path.abspath(path))}?{query}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def reader(path: str) -> sqlite3.Connection:
    """A connection that cannot write, and gives text as bytes."""
    connection = connect(path, "rw")  # a read-only one could not recover what a crash left
    try:
        connection.text_factory = bytes
        connection.execute("PRAGMA query_only=1")
    except BaseException:
        connection.close()
        raise
    return connection


def second(path: str, sync: Sync) -> sqlite3.Connection:
    """Another connection that writes, beside `Opened.connection`."""
    connection = connect(path, "rw")
    try:
        _configure(connection, sync)
    except BaseException:
        connection.close()
        raise
    return connection


def identity(path: str) -> tuple[int, int]:
    """Which file ``path`` is at the moment."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def translated(exc: BaseException, path: str, what: str) -> Exception:
    """What SQLite or the system said, for who has to do something about it."""
    text = str(exc)
    if is_damage(exc):
        return UnusableLog(
            f"{path} is damaged ({text}): put a copy back, or move it away together with "
            f"{path}-wal and {path}-shm for a new log"
        )
    advice = next((advice for sign, advice in _ADVICE.items() if sign in text), _ADVICE[""])
    return LogUnavailable(f"the log {path} cannot be {what} ({text}): {advice}")


def is_damage(exc: BaseException) -> bool:
    """Whether trying again is of no use, because the file itself is broken."""
    return isinstance(exc, sqlite3.DatabaseError) and any(
        sign in str(exc) for sign in ("malformed", "not a database", "unsupported file format")
    )


_ADVICE: Final = {
    "is full": "make room on its disk; it goes on by itself",
    "is locked": "another program keeps it locked; end that program, or its transaction",
    "readonly": "let this process write to the file and to its directory",
    "I/O error": "look at the disk and at the system's log",
    "removed": "put the file back, or restart for a new log",
    "": "see that its directory is there, and that this process may read and write both",
}


def _examine(path: str) -> bool:
    """Whether there is a log; ``False`` if there is nothing, and one may be made.

    Raises:
        UnusableLog: there is something else.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode):
        raise UnusableLog(f"{path} is not a file: name one, as in sqlite:events.db")
    if status.st_size == 0:
        return False
    if status.st_size < 512:  # SQLite takes it for one that is empty
        raise UnusableLog(_no_database(path))
    with closing(connect(path, "immutable")) as connection:
        # Otherwise SQLite refuses a file that is shorter than its header says, as it is
        # after a crash between two writes that the write-ahead log still has.
        connection.execute("PRAGMA writable_schema=1")
        _check_header(connection, path)
    _check_content(path)
    return True


def _check_header(connection: sqlite3.Connection, path: str) -> None:
    try:
        [application_id] = connection.execute("PRAGMA application_id").fetchone()
        [version] = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as exc:
        if "not a database" not in str(exc):
            raise
        raise UnusableLog(_no_database(path)) from exc
    if application_id != APPLICATION_ID:
        raise UnusableLog(
            f"{path} is another program's database (application_id {application_id:#x}): "
            "name another file"
        )
    if version > VERSION:
        raise UnusableLog(
            f"{path} was written by a newer version of trio_sse (layout {version}, here "
            f"{VERSION}): upgrade this one, or name another file"
        )
    schema = sorted(sql for [sql] in connection.execute("SELECT sql FROM sqlite_master") if sql)
    if version < 1 or schema != sorted(SCHEMA):
        raise sqlite3.DatabaseError("malformed: it lacks tables")


def _no_database(path: str) -> str:
    return f"{path} is not an event log, nor any SQLite database: name another file"


def _check_content(path: str) -> None:
    """Read it all, if nobody uses it and if it is not so large that this takes long."""
    before = _in_use(path), os.stat(path)
    if before[0] or before[1].st_size > CHECKED_SIZE:
        return
    try:
        with closing(connect(path, "immutable")) as connection:
            [found] = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(f"malformed: {found}")
    except sqlite3.DatabaseError:
        after = _in_use(path), os.stat(path)
        if before[0] == after[0] and before[1].st_mtime_ns == after[1].st_mtime_ns:
            raise
        # Somebody has begun to use it, and what was read is of two times.


def _in_use(path: str) -> bool:
    """Or left by a crash: what is in the file alone is not the whole."""
    return any(os.path.exists(path + suffix) for suffix in ("-wal", "-journal"))


def _create(connection: sqlite3.Connection, path: str) -> None:
    # With a rollback journal: so the header tells from the first moment what this is.
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("BEGIN EXCLUSIVE")
    with connection:
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            for statement in SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={VERSION}")
            _set(connection, "trimmed", 0)
            _set(connection, "total_trimmed", 0)
            _set(connection, "epoch", secrets.token_hex(4))
            return
    _check_header(connection, path)  # another process was faster


def _configure(connection: sqlite3.Connection, sync: Sync) -> None:
    connection.execute(f"PRAGMA synchronous={sync}")
    # Checkpoints are the log's own business, see `Store.checkpoint`.
    connection.execute("PRAGMA wal_autocheckpoint=0")
    # Some builds overwrite what is deleted, which here is half of all writing. Pages that
    # are free are used again, so the file stays as large as it ever had to be: moving
    # pages about to give them back (auto_vacuum) costs more, and they are needed again.
    connection.execute("PRAGMA secure_delete=0")


def _begin_wal(connection: sqlite3.Connection, path: str) -> None:
    # SQLite does not wait for a lock here, and processes may start together.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            [mode] = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            break
        except sqlite3.OperationalError as exc:
            if "is locked" not in str(exc) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise LogUnavailable(
            f"the log {path} cannot be opened (its file system has no shared memory, which "
            "SQLite's write-ahead log needs): put it on a local disk"
        )


def _current_epoch(connection: sqlite3.Connection, sync: Sync) -> str:
    """The log's epoch, made anew if the system was restarted since it was not synced.

    Events that readers have had may be gone then, and their positions be given again.
    """
    boot = _boot_id()
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        values = dict(connection.execute("SELECT name, value FROM meta").fetchall())
        epoch = str(values["epoch"])
        unsynced_in = values.get("boot")
        lossy = unsynced_in is not None and unsynced_in != boot
        if lossy:
            epoch = secrets.token_hex(4)
            _set(connection, "epoch", epoch)
        if sync != "full":
            _set(connection, "boot", boot)
        elif lossy:
            _set(connection, "boot", None)
    return epoch


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:  # not Linux: a restart cannot be told
        return "unknown"


def _set(connection: sqlite3.Connection, name: str, value: object) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))
