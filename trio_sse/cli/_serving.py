"""What the commands that serve have in common: their options, and running until stopped."""

from __future__ import annotations

import gc
import ipaddress
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, final

import click
import trio
from hypercorn.config import Config

from .._respond import ASGIApp
from ..hooks import collect
from ..hub import Hub
from ..server import serve as serve_app
from ..service import report_drain
from ._settings import load_config_file
from ._systemd import READY, STOPPING, notify

BACKLOG: Final = 2048
_GC_THRESHOLDS: Final = (50_000, 20, 100)

F = TypeVar("F", bound=Callable[..., Any])


def option(*names: str, **settings: Any) -> Callable[[F], F]:
    return click.option(*names, show_envvar=True, **settings)


SECONDS: Final = click.FloatRange(min=0, min_open=True)
COUNT: Final = click.IntRange(min=1)

config_option: Final = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=load_config_file,
    show_envvar=True,
    help="A TOML file with any of these settings, as in: bind = '0.0.0.0:80'",
)
bind_option: Final = option(
    "--bind",
    "-b",
    multiple=True,
    default=("127.0.0.1:8000",),
    metavar="HOST:PORT",
    help="Where to listen; also unix:PATH and fd://N. May be repeated.",
)
certfile_option: Final = option(
    "--certfile", type=click.Path(exists=True, dir_okay=False), help="TLS certificate chain."
)
keyfile_option: Final = option(
    "--keyfile", type=click.Path(exists=True, dir_okay=False), help="Its private key."
)
allow_origin_option: Final = option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="Let pages of this web origin in, as https://example.org; '*' for any. May be repeated.",
)
allow_host_option: Final = option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Answer only to these host names; behind a proxy on this machine, its public name.",
)
max_connections_option: Final = option("--max-connections", type=COUNT, help="Connections in all.")
grace_option: Final = option(
    "--grace", type=SECONDS, default=10.0, metavar="SECONDS", help="Time to drain in."
)
send_timeout_option: Final = option(
    "--send-timeout",
    type=SECONDS,
    default=30.0,
    metavar="SECONDS",
    help="Cut clients that take nothing for this long.",
)
http2_option: Final = option(
    "--http2",
    is_flag=True,
    help="Allow HTTP/2, without backpressure: a stalled client then costs memory without bound.",
)
console_option: Final = option(
    "--console/--no-console", default=True, help="Serve the console at /."
)
log_format_option: Final = option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", help="Of log lines."
)
log_level_option: Final = option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="Log lines from this level up.",
)


def check_tls(settings: Mapping[str, Any]) -> None:
    """Refuse half of what TLS needs."""
    if (settings["certfile"] is None) != (settings["keyfile"] is None):
        raise click.UsageError("TLS needs both: --certfile CERT.pem --keyfile KEY.pem")


def is_local(bind: str) -> bool:
    """Whether only this machine can connect there."""
    if bind.startswith("unix:"):
        return True
    host = bind.rpartition(":")[0].strip("[]") if ":" in bind else bind
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def cannot_listen(settings: Mapping[str, Any], exc: Exception) -> click.ClickException:
    """What to tell of addresses that cannot be bound."""
    where, why = ", ".join(settings["bind"]), getattr(exc, "strerror", None) or exc
    return click.ClickException(
        f"cannot listen on {where}: {why}; choose another place with --bind HOST:PORT"
    )


async def run_until_stopped(
    app: ASGIApp,
    hub: Hub,
    settings: Mapping[str, Any],
    greeting: Callable[[str], Sequence[str]],
) -> bool:
    """Serve until told to stop; whether every session was told goodbye.

    Args:
        app: what is served, whose hub is ``hub``.
        greeting: the lines to print for each URL that is served.
    """
    config = Config()
    config.bind = list(settings["bind"])
    config.certfile = settings["certfile"]
    config.keyfile = settings["keyfile"]
    config.backlog = BACKLOG
    config.errorlog = logging.getLogger("trio_sse.server")
    failures: list[Exception] = []
    with collect(failures):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_drain, hub, settings["grace"])
            await serve_app(
                app,
                config,
                grace=settings["grace"],
                send_timeout=settings["send_timeout"],
                max_connections=settings["max_connections"],
                http2=settings["http2"],
                task_status=_Started(greeting),
            )
            nursery.cancel_scope.cancel(reason="the server has stopped")
    if failures:
        raise failures[0]
    return "cancelled" not in hub.statistics().unregistered


async def _watch_drain(hub: Hub, grace: float) -> None:
    await hub.wait_draining()
    notify(STOPPING)
    await report_drain(hub, grace)


@final
class _Started:
    """What to do once the server listens."""

    def __init__(self, greeting: Callable[[str], Sequence[str]]) -> None:
        self._greeting = greeting

    def started(self, value: Sequence[str] | None = None) -> None:
        for url in value or ():
            click.echo("\n".join(self._greeting(url)), err=True)
        notify(READY)
        # What was made so far stays: the collector need not look at it again. And it
        # should not look often: ten thousand sessions are a lot to look through.
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
