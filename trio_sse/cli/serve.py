"""``trio-sse serve``: the ready event hub."""

from __future__ import annotations

import gc
import ipaddress
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast, final, get_args

import click
import trio
from hypercorn.config import Config
from hypercorn.utils import LifespanFailureError

from .._access import Access
from ..asgi import Endpoint
from ..hooks import collect
from ..hub import Hub, HubLimits
from ..outbox import OutboxLimits, Overflow
from ..server import serve as serve_app
from ..service import EVENTS_PATH, Service, report_drain
from ._log import (
    Optional,
    cannot_open,
    check_log,
    log_options,
    make_log,
    try_log,
    without_secret,
)
from ._logging import configure_logging
from ._settings import load_config_file
from ._systemd import READY, STOPPING, notify
from ._workers import Supervisor

ENV_PREFIX: Final = "TRIO_SSE"
_BACKLOG: Final = 2048
_HOOK_PATIENCE: Final = 10.0
"""Seconds that a worker has to end after its grace, before it is killed."""
_GC_THRESHOLDS: Final = (50_000, 20, 100)


F = TypeVar("F", bound=Callable[..., Any])


def _option(*names: str, **settings: Any) -> Callable[[F], F]:
    return click.option(*names, show_envvar=True, **settings)


_SECONDS = click.FloatRange(min=0, min_open=True)
_COUNT = click.IntRange(min=1)


@click.command(context_settings={"auto_envvar_prefix": ENV_PREFIX, "show_default": True})
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=load_config_file,
    show_envvar=True,
    help="A TOML file with any of these settings, as in: bind = '0.0.0.0:80'",
)
@_option(
    "--bind",
    "-b",
    multiple=True,
    default=("127.0.0.1:8000",),
    metavar="HOST:PORT",
    help="Where to listen; also unix:PATH and fd://N. May be repeated.",
)
@_option("--certfile", type=click.Path(exists=True, dir_okay=False), help="TLS certificate chain.")
@_option("--keyfile", type=click.Path(exists=True, dir_okay=False), help="Its private key.")
@_option("--publish-token", help="What publishers must send. Better set in the environment.")
@_option("--subscribe-token", help="What subscribers must send. Better set in the environment.")
@_option(
    "--no-auth",
    is_flag=True,
    help="Let anyone publish who can connect, also from other machines.",
)
@_option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="Let pages of this web origin in, as https://example.org; '*' for any. May be repeated.",
)
@_option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Answer only to these host names; behind a proxy on this machine, its public name.",
)
@log_options
@_option("--max-sessions", type=_COUNT, help="Sessions in all.")
@_option("--max-sessions-per-client", type=_COUNT, help="Sessions of one address.")
@_option("--max-connections", type=_COUNT, help="Connections in all.")
@_option("--max-age", type=_SECONDS, metavar="SECONDS", help="End sessions after this time.")
@_option("--max-idle", type=_SECONDS, metavar="SECONDS", help="End sessions without events.")
@_option(
    "--keep-alive",
    type=Optional(_SECONDS),
    default=15.0,
    metavar="SECONDS|none",
    help="Write a comment to sessions that are silent for this long.",
)
@_option("--queue-events", type=_COUNT, default=1024, help="Events that wait for a slow client.")
@_option("--queue-bytes", type=_COUNT, default=1 << 20, help="Bytes that wait for one.")
@_option(
    "--overflow",
    type=click.Choice(get_args(Overflow)),
    default="close",
    help="What to do when more would have to wait.",
)
@_option(
    "--retry",
    type=Optional(click.IntRange(min=0)),
    default=2000,
    metavar="MS|none",
    help="The reconnection time that clients are told.",
)
@_option("--max-body", type=_COUNT, default=1 << 20, help="Bytes that may be published at once.")
@_option("--grace", type=_SECONDS, default=10.0, metavar="SECONDS", help="Time to drain in.")
@_option(
    "--send-timeout",
    type=_SECONDS,
    default=30.0,
    metavar="SECONDS",
    help="Cut clients that take nothing for this long.",
)
@_option(
    "--http2",
    is_flag=True,
    help="Allow HTTP/2, without backpressure: a stalled client then costs memory without bound.",
)
@_option("--console/--no-console", default=True, help="Serve the console at /.")
@_option(
    "--workers",
    type=_COUNT,
    default=1,
    help="Processes. More than one needs a log that they share: sqlite or redis.",
)
@_option("--log-format", type=click.Choice(["text", "json"]), default="text", help="Of log lines.")
@_option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="Log lines from this level up.",
)
def serve(**settings: Any) -> None:
    """Run an event hub.

    \b
    GET  /events?topic=a&topic=b   an event stream; all topics if none is named
    POST /events                   publish; a form or JSON: topic, data, type, retry
    GET  /healthz                  200, or 503 while draining
    GET  /metrics                  for Prometheus
    GET  /                         the console

    Ctrl-C or SIGTERM drains: clients are told, and come back to where they were when the
    hub is there again. A second one ends at once.

    Settings come from flags, from the environment (TRIO_SSE_BIND and so on), and from a
    TOML file, in this order.
    """
    _check(settings)
    configure_logging(settings["log_format"], settings["log_level"])
    access = Access(
        publish_token=settings["publish_token"] or None,
        subscribe_token=settings["subscribe_token"] or None,
        allowed_origins=tuple(settings["allow_origin"]),
        allowed_hosts=tuple(settings["allow_host"]) or None,
    )
    if settings["workers"] > 1:
        sys.exit(0 if _run_workers(settings) else 1)
    hub = Hub(
        log=make_log(settings),
        limits=HubLimits(
            max_sessions=settings["max_sessions"],
            max_sessions_per_client=settings["max_sessions_per_client"],
            max_age=settings["max_age"],
            max_idle=settings["max_idle"],
            keep_alive=settings["keep_alive"],
        ),
        outbox=OutboxLimits(
            max_events=settings["queue_events"],
            max_bytes=settings["queue_bytes"],
            overflow=settings["overflow"],
        ),
    )
    endpoint = Endpoint(
        hub,
        access=access,
        publish=True,
        retry=settings["retry"],
        max_body=settings["max_body"],
    )
    service = Service(endpoint, access, console=settings["console"])
    try:
        graceful = trio.run(_run, service, settings)
    except LifespanFailureError as exc:  # of which the hub's is the one there is
        raise cannot_open(settings, hub.failure or exc) from exc
    except (OSError, OverflowError) as exc:
        where, why = ", ".join(settings["bind"]), getattr(exc, "strerror", None) or exc
        raise click.ClickException(
            f"cannot listen on {where}: {why}; choose another place with --bind HOST:PORT"
        ) from exc
    if hub.failure is not None:
        why = without_secret(repr(hub.failure), settings)
        raise click.ClickException(f"the hub failed, and the server stopped: {why}")
    if not graceful:
        sys.exit(1)


def _check(settings: dict[str, Any]) -> None:
    """Refuse what cannot work or would be a surprise."""
    if (settings["certfile"] is None) != (settings["keyfile"] is None):
        raise click.UsageError("TLS needs both: --certfile CERT.pem --keyfile KEY.pem")
    if not settings["publish_token"] and not settings["no_auth"]:
        for bind in settings["bind"]:
            if not _is_local(bind):
                raise click.UsageError(
                    f"on {bind} anyone who can connect could publish. Set a token, as in\n"
                    f"  TRIO_SSE_PUBLISH_TOKEN=... trio-sse serve --bind {bind}\n"
                    "or say that this is meant, with --no-auth"
                )
    check_log(settings)


def _is_local(bind: str) -> bool:
    if bind.startswith("unix:"):
        return True
    host = bind.rpartition(":")[0].strip("[]") if ":" in bind else bind
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _run(service: Service, settings: dict[str, Any]) -> bool:
    """Serve until told to stop; whether every session was told goodbye."""
    config = Config()
    config.bind = list(settings["bind"])
    config.certfile = settings["certfile"]
    config.keyfile = settings["keyfile"]
    config.backlog = _BACKLOG
    config.errorlog = logging.getLogger("trio_sse.server")
    failures: list[Exception] = []
    with collect(failures):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_drain, service.hub, settings["grace"])
            await serve_app(
                service,
                config,
                grace=settings["grace"],
                send_timeout=settings["send_timeout"],
                max_connections=settings["max_connections"],
                http2=settings["http2"],
                task_status=_Started(settings),
            )
            nursery.cancel_scope.cancel(reason="the server has stopped")
    if failures:
        raise failures[0]
    return "cancelled" not in service.hub.statistics().unregistered


def _run_workers(settings: dict[str, Any]) -> bool:
    """Have several processes do it; whether they all ended in good order."""
    trio.run(try_log, settings)
    config = Config()
    config.bind = list(settings["bind"])
    config.backlog = _BACKLOG
    sockets = config.create_sockets().insecure_sockets
    own = {**settings, "workers": 1, "bind": [f"fd://{sock.fileno()}" for sock in sockets]}
    supervisor = Supervisor(
        [sys.executable, "-m", "trio_sse", "serve", "--no-auth"],
        worker_environment(own),
        sockets,
        settings["workers"],
        patience=settings["grace"] + _HOOK_PATIENCE,
    )
    return trio.run(supervisor.run)


def worker_environment(settings: dict[str, Any]) -> dict[str, str]:
    """An environment in which ``trio-sse serve`` has just these settings."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(f"{ENV_PREFIX}_")}
    own: dict[str, str] = {}
    for name, value in settings.items():
        if value is None:
            # Where there is a default, "none" is what it was set to.
            text = "none" if name in ("keep_alive", "retry") else ""
        elif isinstance(value, (tuple, list)):
            text = " ".join(cast("Sequence[str]", value))
        else:
            text = str(value)
        if text:
            own[f"{ENV_PREFIX}_{name.upper()}"] = text
    return {**inherited, **own}


async def _watch_drain(hub: Hub, grace: float) -> None:
    await hub.wait_draining()
    notify(STOPPING)
    await report_drain(hub, grace)


@final
class _Started:
    """What to do once the server listens."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def started(self, value: Sequence[str] | None = None) -> None:
        for url in value or ():
            click.echo("\n".join(self._greeting(url)), err=True)
        notify(READY)
        # What was made so far stays: the collector need not look at it again. And it
        # should not look often: ten thousand sessions are a lot to look through.
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)

    def _greeting(self, url: str) -> list[str]:
        lines = [f"trio-sse serves {url}"]
        if sys.stderr.isatty():
            lines += [
                f"  listen   trio-sse listen {url}{EVENTS_PATH}",
                f"  publish  trio-sse publish {url}{EVENTS_PATH} hello",
            ]
            if self._settings["console"]:
                lines.append(f"  look     {url}/")
        return lines
