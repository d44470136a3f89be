"""The settings of ``trio-sse serve`` that are about the event log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, get_args
from urllib.parse import unquote, urlsplit

import click

from ..errors import LogUnavailable
from ..log import EventLog, open_log
from ..log.url import OPTIONS, SHARED, Sync, engine_of, without_password

F = TypeVar("F", bound=Callable[..., Any])

_FLAGS: Final[Mapping[str, str]] = {
    "log_events": "max_events",
    "log_bytes": "max_bytes",
    "log_age": "max_age",
    "log_sync": "sync",
    "log_name": "name",
    "log_shards": "shards",
}
"""The settings, and what `open_log` calls them."""


class Optional(click.ParamType[Any]):
    """A positive number, or ``none`` for no limit."""

    name = "number|none"

    def __init__(self, number: click.ParamType[Any]) -> None:
        self._number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.strip().lower() == "none":
            return None
        return self._number.convert(value, param, ctx)


_COUNT: Final = click.IntRange(min=1)
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "--log": {
        "default": "memory",
        "metavar": "URL",
        "help": "Where events are kept. memory: until the process ends. sqlite:FILE: on disk, "
        "for one machine. redis://HOST:PORT/DB: for several. A URL with a password is better "
        "set in the environment.",
    },
    "--log-events": {
        "type": _COUNT,
        "show_default": "100000",
        "help": "Events that the log keeps; in Redis, of each shard.",
    },
    "--log-bytes": {
        "type": _COUNT,
        "show_default": "67108864",
        "help": "Bytes that the log keeps, roughly. Not for Redis.",
    },
    "--log-age": {
        "type": Optional(click.FloatRange(min=0, min_open=True)),
        "show_default": "none",
        "metavar": "SECONDS|none",
        "help": "Forget events that are older, even if there is room. Not for memory.",
    },
    "--log-sync": {
        "type": click.Choice(get_args(Sync)),
        "show_default": "full",
        "help": "SQLite: what is on disk when a publication is answered. full: the event. "
        "normal: a power cut may lose the last moments. off: and may damage the file.",
    },
    "--log-shards": {
        "type": _COUNT,
        "metavar": "N",
        "show_default": "1",
        "help": "Redis: streams that topics are spread over; more than one only if one is "
        "not enough. The same for all nodes, and for good.",
    },
    "--log-name": {
        "show_default": "trio_sse",
        "metavar": "NAME",
        "help": "Redis: what its keys begin with. Hubs with the same name share a log.",
    },
}


def log_options(command: F) -> F:
    """Give ``command`` the options that are about the log."""
    for name, settings in reversed(_OPTIONS.items()):
        command = click.option(name, show_envvar=True, **settings)(command)
    return command


def check_log(settings: Mapping[str, Any]) -> None:
    """Refuse what the log that was chosen does not have, and what cannot work.

    Raises:
        click.UsageError: and what would.
    """
    try:
        engine = engine_of(settings["log"])
    except ValueError as exc:
        raise click.UsageError(f"--log: {exc}") from exc
    for flag, option in _FLAGS.items():
        if settings[flag] is not None and option not in OPTIONS[engine]:
            has = [_written(flag) for flag, option in _FLAGS.items() if option in OPTIONS[engine]]
            raise click.UsageError(
                f"{_written(flag)} is not for --log {_shown(settings)}, which has {', '.join(has)}"
            )
    if settings["workers"] > 1 and engine not in SHARED:
        raise click.UsageError(
            "several workers need a log that they share, and the memory log is each "
            "process's own: use --log sqlite:events.db, or --log redis://localhost:6379/0, "
            "or --workers 1"
        )


def make_log(settings: Mapping[str, Any]) -> EventLog:
    """The log that was chosen; the hub opens it.

    Raises:
        click.UsageError: there can be none.
        click.ClickException: a package is missing.
    """
    options = {option: settings[flag] for flag, option in _FLAGS.items()}
    try:
        return open_log(settings["log"], **options)
    except ValueError as exc:
        raise click.UsageError(
            f"--log {_shown(settings)}: {without_secret(str(exc), settings)}"
        ) from exc
    except ImportError as exc:
        raise click.ClickException(f"--log {_shown(settings)}: {exc}") from exc


def cannot_open(settings: Mapping[str, Any], exc: BaseException) -> click.ClickException:
    """What to tell of a log that ``exc`` keeps from being opened."""
    what = without_secret(str(exc), settings) or type(exc).__name__
    if engine_of(settings["log"]) == "redis" and isinstance(exc, LogUnavailable):
        what += (
            "\nIs it running there? It has to be when the service starts; later it may go "
            "and come back."
        )
    return click.ClickException(f"cannot open the log {_shown(settings)}: {what}")


async def try_log(settings: Mapping[str, Any]) -> None:
    """Open the log and close it: what is wrong with it is better found out once.

    Raises:
        click.ClickException: it cannot be opened.
    """
    try:
        async with make_log(settings):
            pass
    except Exception as exc:
        if isinstance(exc, click.ClickException):
            raise
        raise cannot_open(settings, exc) from exc


def _written(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def _shown(settings: Mapping[str, Any]) -> str:
    return without_password(settings["log"])


def without_secret(text: str, settings: Mapping[str, Any]) -> str:
    """``text`` without the password of the log's URL, whoever put it there."""
    url: str = settings["log"]
    text = text.replace(url, without_password(url))
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        password = ""
    for secret in filter(None, (password, unquote(password))):
        text = text.replace(secret, "***")
    return text
