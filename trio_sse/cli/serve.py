"""``trio-sse serve``: the ready event hub."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, Final, cast, get_args

import click
import trio
from hypercorn.config import Config
from hypercorn.utils import LifespanFailureError

from .._access import Access
from .._registry import HubLimits
from ..asgi import Endpoint
from ..hub import Hub
from ..outbox import OutboxLimits, Overflow
from ..service import EVENTS_PATH, Service
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
from ._serving import (
    BACKLOG,
    COUNT,
    SECONDS,
    allow_host_option,
    allow_origin_option,
    bind_option,
    cannot_listen,
    certfile_option,
    check_tls,
    config_option,
    console_option,
    grace_option,
    http2_option,
    is_local,
    keyfile_option,
    log_format_option,
    log_level_option,
    max_connections_option,
    option,
    run_until_stopped,
    send_timeout_option,
)
from ._workers import Supervisor

ENV_PREFIX: Final = "TRIO_SSE"
_HOOK_PATIENCE: Final = 10.0
"""Seconds that a worker has to end after its grace, before it is killed."""


@click.command(context_settings={"auto_envvar_prefix": ENV_PREFIX, "show_default": True})
@config_option
@bind_option
@certfile_option
@keyfile_option
@option("--publish-token", help="What publishers must send. Better set in the environment.")
@option("--subscribe-token", help="What subscribers must send. Better set in the environment.")
@option(
    "--no-auth",
    is_flag=True,
    help="Let anyone publish who can connect, also from other machines.",
)
@allow_origin_option
@allow_host_option
@log_options
@option("--max-sessions", type=COUNT, help="Sessions in all.")
@option("--max-sessions-per-client", type=COUNT, help="Sessions of one address.")
@max_connections_option
@option("--max-age", type=SECONDS, metavar="SECONDS", help="End sessions after this time.")
@option("--max-idle", type=SECONDS, metavar="SECONDS", help="End sessions without events.")
@option(
    "--keep-alive",
    type=Optional(SECONDS),
    default=15.0,
    metavar="SECONDS|none",
    help="Write a comment to sessions that are silent for this long.",
)
@option("--queue-events", type=COUNT, default=1024, help="Events that wait for a slow client.")
@option("--queue-bytes", type=COUNT, default=1 << 20, help="Bytes that wait for one.")
@option(
    "--overflow",
    type=click.Choice(get_args(Overflow)),
    default="close",
    help="What to do when more would have to wait.",
)
@option(
    "--retry",
    type=Optional(click.IntRange(min=0)),
    default=2000,
    metavar="MS|none",
    help="The reconnection time that clients are told.",
)
@option("--max-body", type=COUNT, default=1 << 20, help="Bytes that may be published at once.")
@grace_option
@send_timeout_option
@http2_option
@console_option
@option(
    "--workers",
    type=COUNT,
    default=1,
    help="Processes. More than one needs a log that they share: sqlite or redis.",
)
@log_format_option
@log_level_option
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
        raise cannot_listen(settings, exc) from exc
    if hub.failure is not None:
        why = without_secret(repr(hub.failure), settings)
        raise click.ClickException(f"the hub failed, and the server stopped: {why}")
    if not graceful:
        sys.exit(1)


def _check(settings: dict[str, Any]) -> None:
    """Refuse what cannot work or would be a surprise."""
    check_tls(settings)
    if not settings["publish_token"] and not settings["no_auth"]:
        for bind in settings["bind"]:
            if not is_local(bind):
                raise click.UsageError(
                    f"on {bind} anyone who can connect could publish. Set a token, as in\n"
                    f"  TRIO_SSE_PUBLISH_TOKEN=... trio-sse serve --bind {bind}\n"
                    "or say that this is meant, with --no-auth"
                )
    check_log(settings)


async def _run(service: Service, settings: dict[str, Any]) -> bool:
    """Serve until told to stop; whether every session was told goodbye."""
    return await run_until_stopped(
        service, service.hub, settings, lambda url: _greeting(url, settings)
    )


def _greeting(url: str, settings: dict[str, Any]) -> list[str]:
    lines = [f"trio-sse serves {url}"]
    if sys.stderr.isatty():
        lines += [
            f"  listen   trio-sse listen {url}{EVENTS_PATH}",
            f"  publish  trio-sse publish {url}{EVENTS_PATH} hello",
        ]
        if settings["console"]:
            lines.append(f"  look     {url}/")
    return lines


def _run_workers(settings: dict[str, Any]) -> bool:
    """Have several processes do it; whether they all ended in good order."""
    trio.run(try_log, settings)
    config = Config()
    config.bind = list(settings["bind"])
    config.backlog = BACKLOG
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
