"""The servers that are compared: how each is started, and what it lacks to be started."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final, final
from urllib.request import urlopen

from processes import BUILD, HERE, Failed, cores, free_port, output, running, wait_for_port

_APPS: Final = HERE / "apps"
_NCHAN: Final = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
_BETTER_SSE: Final = "better-sse@0.16.1"
_UVICORN: Final = ("--loop=uvloop", "--no-access-log", "--log-level=warning", "--backlog=2048")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A server.

    Attributes:
        name: what it is called on the command line and in figures.
        title: and in tables.
        command: its arguments for a port and a directory of its own.
        lacks: what it needs and is not there, with how to get it; ``None`` if it is.
        about: its version, and that of what it runs on.
        has_blast: whether it publishes by itself (``POST /blast``); if not, it is
            published to over HTTP.
        as_it_is: its arguments where it need not do that, if they are others.
    """

    name: str
    title: str
    command: Callable[[int, Path], list[str]]
    lacks: Callable[[], str | None]
    about: Callable[[], str]
    has_blast: bool = True
    as_it_is: Callable[[int, Path], list[str]] | None = None
    env: dict[str, str] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class Running:
    """A server that has been started."""

    kind: Kind
    port: int
    process: subprocess.Popen[bytes]

    @property
    def events(self) -> str:
        return f"http://127.0.0.1:{self.port}/events"

    @property
    def pid(self) -> str:
        """As the load generator wants it: with the children, if it has any."""
        return f"{self.process.pid}+"

    def blast_url(self, *, events: int, size: int, rate: float = 0) -> str:
        return f"http://127.0.0.1:{self.port}/blast?n={events}&size={size}&rate={rate}"

    def metric(self, start: str) -> float:
        """The metric whose line begins with ``start``; 0 if there is none. Only of ours."""
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as response:
            for line in response.read().decode().splitlines():
                if line.startswith(start):
                    return float(line.rsplit(" ", 1)[1])
        return 0.0


@contextmanager
def started(kind: Kind, *, blast: bool) -> Generator[Running, None, None]:
    """Run a server of this kind, alone on its core; ``blast``: it is to publish by itself."""
    port = free_port()
    directory = BUILD / f"{kind.name}-{port}"
    directory.mkdir(parents=True)
    path = os.pathsep.join([str(_APPS), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    env = {"PYTHONPATH": path.rstrip(os.pathsep), **kind.env}
    try:
        command = kind.command if blast or kind.as_it_is is None else kind.as_it_is
        argv = command(port, directory)
        with running(argv, core=cores()[0], env=env, cwd=directory) as (process, log):
            wait_for_port(process, log, port)
            yield Running(kind, port, process)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _modules(*names: str) -> Callable[[], str | None]:
    """Whether these can be imported."""

    def lacks() -> str | None:
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        packages = " ".join(name.replace("_", "-") for name in missing)
        return f"pip install {packages}" if missing else None

    return lacks


def _versions(*names: str) -> Callable[[], str]:
    return lambda: ", ".join(f"{name} {version(name)}" for name in names)


def _python(*args: str) -> Callable[[int, Path], list[str]]:
    """Python with ``args``, in which ``{port}`` is the port."""

    def command(port: int, directory: Path) -> list[str]:
        del directory
        return [sys.executable, *(arg.replace("{port}", str(port)) for arg in args)]

    return command


def _uvicorn(app: str) -> Callable[[int, Path], list[str]]:
    return _python("-m", "uvicorn", app, "--host=127.0.0.1", "--port={port}", *_UVICORN)


@cache
def _node_modules() -> Path | str:
    """Where better-sse is installed; if it cannot be, why not."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "Node and npm"
    directory = BUILD / "node"
    if not (directory / "node_modules" / "better-sse").is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        try:
            output(["npm", "install", "--prefix", str(directory), _BETTER_SSE], seconds=120)
        except Failed as failure:
            return f"npm install {_BETTER_SSE}, which failed: {failure}"
    return directory


def _lacks_better_sse() -> str | None:
    found = _node_modules()
    return found if isinstance(found, str) else None


def _better_sse(port: int, directory: Path) -> list[str]:
    node_modules = _node_modules()
    assert isinstance(node_modules, Path)
    # Node looks for packages beside the file that imports them.
    program = node_modules / "better_sse.mjs"
    shutil.copyfile(_APPS / "better_sse.mjs", program)
    return ["node", str(program), str(port)]


def _nchan(port: int, directory: Path) -> list[str]:
    text = (_APPS / "nchan.conf").read_text()
    for name, value in (("MODULE", _NCHAN), ("DIR", directory), ("PORT", port)):
        text = text.replace(f"@{name}@", str(value))
    config = directory / "nginx.conf"
    config.write_text(text)
    return ["nginx", "-c", str(config), "-p", str(directory), "-e", str(directory / "error.log")]


def _lacks_nchan() -> str | None:
    if shutil.which("nginx") is None or not _NCHAN.exists():
        return "Debian's libnginx-mod-nchan"
    return None


def _node_version() -> str:
    return f"{_BETTER_SSE.replace('@', ' ')}, Node {output(['node', '--version']).decode().strip()}"


def _nginx_version() -> str:
    done = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=False, timeout=10)
    return done.stderr.strip().rpartition(" ")[2] + ", libnginx-mod-nchan"


def _always() -> None:
    return None


KINDS: Final = (
    Kind(
        name="trio-sse",
        title="trio-sse",
        command=_python(str(_APPS / "ours.py"), "{port}"),
        as_it_is=_python(
            *("-m", "trio_sse", "serve", "--bind", "127.0.0.1:{port}"),
            *("--log-level", "warning"),
        ),
        lacks=_modules("trio_sse"),
        about=_versions("trio", "hypercorn", "h11"),
    ),
    Kind(
        name="trio-sse-asgi",
        title="trio-sse, direct writes off",
        command=_python(str(_APPS / "ours.py"), "{port}", "--no-direct"),
        lacks=_modules("trio_sse"),
        about=_versions("trio", "hypercorn", "h11"),
    ),
    Kind(
        name="sse-starlette",
        title="sse-starlette on uvicorn, uvloop",
        command=_uvicorn("sse_starlette_app:app"),
        lacks=_modules("sse_starlette", "uvicorn", "uvloop", "httptools"),
        about=_versions("sse-starlette", "starlette", "uvicorn", "uvloop"),
    ),
    Kind(
        name="sse-starlette-joined",
        title="sse-starlette, joining by hand",
        command=_uvicorn("sse_starlette_app:app"),
        env={"JOIN": "1"},
        lacks=_modules("sse_starlette", "uvicorn", "uvloop", "httptools"),
        about=_versions("sse-starlette", "starlette", "uvicorn", "uvloop"),
    ),
    Kind(
        name="fastapi",
        title="FastAPI's own on uvicorn, uvloop",
        command=_uvicorn("fastapi_app:app"),
        lacks=_modules("fastapi", "fastapi.sse", "uvicorn", "uvloop", "httptools"),
        about=_versions("fastapi", "uvicorn", "uvloop"),
    ),
    Kind(
        name="aiohttp-sse",
        title="aiohttp-sse, uvloop",
        command=_python(str(_APPS / "aiohttp_app.py"), "{port}"),
        lacks=_modules("aiohttp_sse", "uvloop"),
        about=_versions("aiohttp-sse", "aiohttp", "uvloop"),
    ),
    Kind(
        name="hypercorn-trio",
        title="plain ASGI on hypercorn-trio",
        command=_python(
            *("-m", "hypercorn", "-k", "trio", "-w", "0", "--backlog", "2048"),
            *("--log-level", "WARNING", "-b", "127.0.0.1:{port}", "asgi_trio_app:app"),
        ),
        lacks=_modules("hypercorn", "trio"),
        about=_versions("hypercorn", "trio"),
    ),
    Kind(
        name="better-sse",
        title="better-sse on Node",
        command=_better_sse,
        lacks=_lacks_better_sse,
        about=_node_version,
    ),
    Kind(
        name="nchan",
        title="nchan in nginx",
        command=_nchan,
        lacks=_lacks_nchan,
        about=_nginx_version,
        has_blast=False,
    ),
    Kind(
        name="raw",
        title="a loop of socket.send",
        command=_python(str(_APPS / "raw_loop.py"), "{port}"),
        lacks=_always,
        about=lambda: f"Python {sys.version.split()[0]}",
    ),
)
