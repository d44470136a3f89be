"""What ``MODULE:SERVER`` on a command line stands for."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, cast

import click

if TYPE_CHECKING:
    from mcp.server import MCPServer, Server


def load_server(target: str) -> Server[Any] | MCPServer[Any]:
    """The SDK's server that ``target`` names: ``package.module:name``, or ``file.py:name``.

    Modules are looked for in the current directory too. Without a name it is the only server
    that the module has.

    Raises:
        click.ClickException: there is none, and what to do.
    """
    from mcp.server import MCPServer, Server  # noqa: PLC0415  # only here is the extra needed

    where, _, name = target.partition(":")
    module = _load_module(where)
    kinds: tuple[type, type] = (Server, MCPServer)
    servers = [key for key, value in vars(module).items() if isinstance(value, kinds)]
    if not name:
        if len({id(getattr(module, key)) for key in servers}) != 1:
            raise click.UsageError(f"which server? {_choice(where, servers)}")
        name = servers[0]
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise click.UsageError(f"{where} has no {name!r}. {_choice(where, servers)}")
        value = getattr(value, part)
    if isinstance(value, kinds):
        return cast("Server[Any] | MCPServer[Any]", value)
    hint = _choice(where, servers)
    if callable(value) and not isinstance(value, (type, FunctionType)):
        hint = (
            "An ASGI application is served by `hypercorn -k trio`, or by trio_sse.serve; "
            f"here, name what it is made of. {hint}"
        )
    raise click.UsageError(f"{target} is no MCP server but of type {type(value).__name__}. {hint}")


def _choice(where: str, servers: list[str]) -> str:
    if servers:
        return "It has " + ", ".join(f"{where}:{name}" for name in servers)
    return (
        'It has no server of the SDK\'s, as in: server = mcp.server.MCPServer("demo"). '
        "One that a function makes needs a name in the module"
    )


def _load_module(where: str) -> ModuleType:
    try:
        if where.endswith(".py") or "/" in where:
            return _load_file(Path(where))
        if sys.path[:1] != [""]:
            sys.path.insert(0, "")
        return importlib.import_module(where)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (where == exc.name or where.startswith(f"{exc.name}.")):
            raise click.UsageError(
                f"there is no module {where!r}, neither in this directory nor installed here. "
                f"A file would be: trio-sse mcp ./{where.replace('.', '/')}.py:server"
            ) from exc
        raise _failed(where, exc) from exc
    except ValueError as exc:  # an empty name, or one that begins with dots
        raise click.UsageError(
            f"{where!r} is no module: name one, as in: trio-sse mcp package.module:server"
        ) from exc
    except click.ClickException:
        raise
    except Exception as exc:
        raise _failed(where, exc) from exc


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise click.UsageError(f"there is no file {path}")
    sys.path.insert(0, str(path.parent.resolve()))  # as if it were run
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise click.UsageError(f"{path} is no Python file: its name would end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _failed(where: str, exc: Exception) -> click.ClickException:
    traceback.print_exception(exc)
    return click.ClickException(f"{where} cannot be imported: see above")
