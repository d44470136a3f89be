"""``trio-sse mcp``: any server of the MCP SDK's, over HTTP."""

from __future__ import annotations

import hmac
import re
import secrets
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click
import trio
from hypercorn.utils import LifespanFailureError

from .._access import Access
from ..errors import Refused
from ..session import Request
from ._log import Optional
from ._logging import configure_logging
from ._serving import (
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
    is_local,
    keyfile_option,
    log_format_option,
    log_level_option,
    max_connections_option,
    option,
    run_until_stopped,
    send_timeout_option,
)
from ._target import load_server

if TYPE_CHECKING:
    from ..mcp import McpApp, McpService

ENV_PREFIX: Final = "TRIO_SSE_MCP"


@click.command("mcp", context_settings={"auto_envvar_prefix": ENV_PREFIX, "show_default": True})
@click.argument("target", metavar="MODULE:SERVER")
@config_option
@bind_option
@option("--path", default="/mcp", metavar="PATH", help="Where clients are served.")
@certfile_option
@keyfile_option
@option("--token", help="What clients must send. Better set in the environment.")
@option(
    "--no-auth",
    is_flag=True,
    help="Let anyone in who can connect, also from other machines.",
)
@allow_origin_option
@allow_host_option
@option(
    "--stateless",
    is_flag=True,
    help="Give no sessions: every request stands alone, in all revisions of the protocol.",
)
@option(
    "--legacy",
    is_flag=True,
    help="Also serve clients of 2024-11-05: HTTP+SSE, at /sse and /message.",
)
@option(
    "--answers",
    type=click.Choice(["auto", "json", "sse"]),
    default="auto",
    help="How calls are answered. auto: JSON for what is done at once with nothing else to say.",
)
@option(
    "--node",
    metavar="NAME",
    help="End session ids with -NAME: a proxy for several nodes then knows whose they are.",
)
@option("--max-sessions", type=COUNT, default=10_000, help="Sessions in all.")
@option(
    "--idle",
    type=Optional(SECONDS),
    default=1800.0,
    metavar="SECONDS|none",
    help="End sessions of which nothing was heard for this long.",
)
@option(
    "--keep-alive",
    type=SECONDS,
    default=15.0,
    metavar="SECONDS",
    help="Write a comment to event streams that are silent for this long.",
)
@option("--max-body", type=COUNT, default=4 << 20, help="Bytes that a request may have.")
@max_connections_option
@grace_option
@send_timeout_option
@console_option
@log_format_option
@log_level_option
def mcp(target: str, **settings: Any) -> None:
    """Serve an MCP server over HTTP.

    MODULE:SERVER is a module, or a file, and the name that an `mcp.server.MCPServer` or
    `mcp.server.Server` has there. Its handlers run on Trio.

    \b
    trio-sse mcp notes:server                 in notes.py, in this directory
    trio-sse mcp examples/notes.py:server     or anywhere
    trio-sse mcp package.module               the only server there

    All revisions of the protocol are served at one address, the one with `initialize` and
    sessions as well as the one without:

    \b
    POST, GET, DELETE /mcp    Streamable HTTP; this is the address to give to a client
    GET  /healthz             200, or 503 while draining
    GET  /metrics             for Prometheus
    GET  /                    the console, which shows the sessions

    On an address that other machines can reach it wants a token, which clients send as
    "Authorization: Bearer TOKEN", or --no-auth.

    Ctrl-C or SIGTERM drains: what is in flight is answered, who listens is told, every
    session ends. A second one ends at once.

    Settings come from flags, from the environment (TRIO_SSE_MCP_BIND and so on), and from a
    TOML file, in this order.
    """
    _check(target, settings)
    service, app = _make(target, settings)
    configure_logging(settings["log_format"], settings["log_level"])
    try:
        graceful = trio.run(_run, service, settings)
    except LifespanFailureError as exc:
        raise click.ClickException(f"the server's lifespan failed: {exc}") from exc
    except (OSError, OverflowError) as exc:
        raise cannot_listen(settings, exc) from exc
    if app.hub.failure is not None:
        raise click.ClickException(f"the hub failed, and the server stopped: {app.hub.failure!r}")
    if not graceful:
        sys.exit(1)


async def _run(service: McpService, settings: dict[str, Any]) -> bool:
    """Serve until told to stop; whether every session was told goodbye."""
    app = service.app
    return await run_until_stopped(
        service,
        app.hub,
        {**settings, "http2": False},
        lambda url: _greeting(url, app, settings),
    )


def _check(target: str, settings: dict[str, Any]) -> None:
    """Refuse what cannot work or would be a surprise."""
    check_tls(settings)
    if not settings["token"] and not settings["no_auth"]:
        for bind in settings["bind"]:
            if not is_local(bind):
                raise click.UsageError(
                    f"on {bind} anyone who can connect could use the server's tools. "
                    "Set a token, as in\n"
                    f"  TRIO_SSE_MCP_TOKEN=... trio-sse mcp {target} --bind {bind}\n"
                    "or say that this is meant, with --no-auth"
                )


def _make(target: str, settings: dict[str, Any]) -> tuple[McpService, McpApp]:
    try:
        from ..mcp import LegacySse, McpApp, McpLimits, McpService  # noqa: PLC0415  # an extra
    except ModuleNotFoundError as exc:
        raise click.ClickException(
            f"the MCP SDK is not installed ({exc}): pip install 'trio-sse[mcp]'"
        ) from exc
    token = settings["token"] or None
    hosts = tuple(settings["allow_host"]) or None
    server = load_server(target)
    try:
        app = McpApp(
            server,
            path=settings["path"],
            access=Access(
                authorize=None if token is None else _Bearer(token),
                allowed_origins=tuple(settings["allow_origin"]),
                allowed_hosts=hosts,
            ),
            limits=McpLimits(
                max_sessions=settings["max_sessions"],
                max_body=settings["max_body"],
                idle=settings["idle"],
                keep_alive=settings["keep_alive"],
            ),
            stateful=not settings["stateless"],
            new_session_id=_ids_of(settings["node"]),
            answers=settings["answers"],
            legacy=LegacySse() if settings["legacy"] else None,
        )
        # The page may send the token in its stream's URL; clients of the protocol may not.
        watch = Access(publish_token=token, subscribe_token=token, allowed_hosts=hosts)
        service = McpService(
            app, access=watch, clients_path=settings["path"], console=settings["console"]
        )
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    return service, app


def _ids_of(node: str | None) -> Callable[[Request], str] | None:
    if not node:
        return None
    if not re.fullmatch(r"[A-Za-z0-9_.]+", node):
        raise ValueError(f"--node {node!r}: letters and digits, as in --node b")
    return lambda _: f"{secrets.token_urlsafe(16)}-{node}"


class _Bearer:
    """Lets those in who send the token."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def __call__(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            given.strip().encode("latin-1"), self._token
        ):
            raise Refused(
                401,
                "a token is needed: send it as 'Authorization: Bearer TOKEN'",
                headers=(("www-authenticate", "Bearer"),),
            )
        await trio.lowlevel.checkpoint()


def _greeting(url: str, app: McpApp, settings: dict[str, Any]) -> list[str]:
    address = url + settings["path"]
    lines = [f"trio-sse serves {app.name} at {address}"]
    if settings["legacy"]:
        lines.append(f"  2024-11-05  {url}/sse")
    if sys.stderr.isatty():
        lines.append(
            f"  try         npx @modelcontextprotocol/inspector --cli {address} --method tools/list"
        )
        if settings["console"]:
            lines.append(f"  look        {url}/")
    return lines
