"""Everything that is checked about this project; ``nox`` alone runs the whole gate.

One session: ``nox -s lint``. One interpreter: ``nox -s tests-3.13``. What follows ``--``
goes to pytest: ``nox -s tests-3.13 -- tests/test_wire.py -k decoder``.

uv makes the environments when it is installed, virtualenv when it is not.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PACKAGE = "trio_sse"
PYTHONS = nox.project.python_versions(PYPROJECT)
MEASURED = {PYTHONS[-1]}
"""The interpreters whose tests count for coverage: where sys.monitoring makes that cheap."""

nox.needs_version = ">=2025.5.1"  # dependency groups, "requires"
nox.options.default_venv_backend = os.environ.get("NOX_DEFAULT_VENV_BACKEND", "uv|virtualenv")
nox.options.download_python = "never"
# On a developer's machine a missing interpreter is skipped, and nox says so.
nox.options.error_on_missing_interpreters = bool(os.environ.get("CI"))
nox.options.sessions = ["lint", "typing", "docs", "build", "tests", "mcp", "coverage"]

MCP_TESTS = ["tests/test_mcp_conformance.py", "tests/test_mcp_clients.py"]

# Run in a session's environment: is it the wheel's package that gets imported there?
IS_THE_WHEEL = """
import sys, zipfile, trio_sse
from pathlib import Path
installed = Path(next(iter(trio_sse.__path__)))
assert installed.is_relative_to(sys.prefix), f"{installed} is not in {sys.prefix}"
with zipfile.ZipFile(sys.argv[1]) as wheel:
    for name in wheel.namelist():
        if name.startswith("trio_sse/"):
            same = (installed.parent / name).read_bytes() == wheel.read(name)
            assert same, f"the installed {name} is not the one in {sys.argv[1]}"
print("testing", installed)
"""


def group(name: str) -> list[str]:
    return list(nox.project.dependency_groups(PYPROJECT, name))


@nox.session
def lint(session: nox.Session) -> None:
    """ruff's rules, its format, and flake8-async, which finds what ruff's ASYNC does not."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    python_dirs = [d for d in (PACKAGE, "tests", "examples", "benchmarks") if Path(d).is_dir()]
    # Of its optional rules, only the one against asynchronous generators.
    select = "--select=ASYNC1,ASYNC2,ASYNC3,ASYNC4,ASYNC900"
    # 114 and 128 lose sight of a task status that is handed on. In tests and examples,
    # handlers that do nothing are what it is often about; benchmarks look after processes.
    ignore = "--extend-ignore=ASYNC114,ASYNC128"
    quiet = "ASYNC110,ASYNC111,ASYNC124,ASYNC127,ASYNC220"
    elsewhere = ",".join(f"{where}/*:{quiet}" for where in ("tests", "examples", "benchmarks"))
    per_file = f"--per-file-ignores={elsewhere}"
    session.run("flake8", "--isolated", select, ignore, per_file, *python_dirs)


@nox.session
def typing(session: nox.Session) -> None:
    """mypy and pyright, both strict, over the package and tests/typing."""
    session.install(*PYPROJECT["project"]["dependencies"], *group("typing"))
    session.run("mypy")
    session.run("pyright")


@nox.session(requires=["build"])
def docs(session: nox.Session) -> None:
    """The documentation: a warning, or a reference that leads nowhere, is an error."""
    session.install(str(the("*.whl")), *group("docs"))
    session.run("python", "-I", "-m", "sphinx", "-qEWn", "docs", "docs/_build/html")


@nox.session
def build(session: nox.Session) -> None:
    """The sdist, and from it the wheel that the other sessions install."""
    uv = session.venv_backend == "uv"
    session.install("build[uv]" if uv else "build")
    for old in dist_dir().glob("*"):
        old.unlink()
    installer = ["--installer", "uv"] if uv else []
    session.run("python", "-m", "build", *installer, "--outdir", str(dist_dir()), silent=True)
    check_wheel(session, the("*.whl"))
    check_sdist(session, the("*.tar.gz"))


@nox.session(python=PYTHONS, requires=["build"])
def tests(session: nox.Session) -> None:
    """The tests, against the installed wheel, on every supported interpreter."""
    wheel = the("*.whl")
    session.install(str(wheel), *group("test"))
    args = [*pytest_options(), *from_root(session.posargs)]
    leave_sources(session, wheel)
    if session.python in MEASURED and not session.posargs:
        for old in coverage_files(session.name):
            old.unlink()
        env = {"COVERAGE_FILE": str(coverage_dir() / session.name)}
        config = f"--rcfile={ROOT / 'pyproject.toml'}"
        select = ["-m", "not mcp_real"]
        session.run("coverage", "run", config, "-m", "pytest", *select, *args, env=env)
    elif session.posargs:
        session.run("pytest", *args)
    else:  # what takes minutes ran with coverage
        session.run("pytest", "-m", "not exhaustive and not mcp_real", *args)


@nox.session(python=PYTHONS[-1], requires=["build"])
def mcp(session: nox.Session) -> None:
    """`trio_sse.mcp` and what others made: the protocol's conformance suite, released clients.

    ``nox -s mcp -- write`` writes the table of docs/mcp-clients.md anew.
    """
    wheel = the("*.whl")
    session.install(f"{wheel}[mcp]", *group("mcp"))
    env = {"TRIO_SSE_NODE_MODULES": str(node_modules(session))}
    args = [*pytest_options(), "-m", "mcp_real"]
    posargs = [*session.posargs]
    if posargs == ["write"]:
        env["TRIO_SSE_WRITE_PAGE"] = "yes"
        posargs = ["tests/test_mcp_clients.py", "-n", "0"]
    leave_sources(session, wheel)
    session.run("pytest", *args, *from_root(posargs or MCP_TESTS), env=env)


@nox.session
def coverage(session: nox.Session) -> None:
    """Lines that no test reached, in the last whole run of each measured one."""
    files = [str(path) for name in MEASURED for path in coverage_files(f"tests-{name}")]
    if not files:
        session.skip(f"none of the interpreters it is measured on ran: {sorted(MEASURED)}")
    session.install(*group("coverage"))
    env = {"COVERAGE_FILE": str(coverage_dir() / "combined")}
    session.run("coverage", "combine", "--quiet", "--keep", *files, env=env)
    session.run("coverage", "report", env=env)


@nox.session(requires=["build"])
def soak(session: nox.Session) -> None:
    """Ten minutes of chaos against the wheel; not part of the gate, whose tests have it in small.

    What follows ``--`` goes to it: ``nox -s soak -- --seconds 60 --clients 500 --seed 7``.
    """
    session.install(str(the("*.whl")))
    session.run("python", str(ROOT / "benchmarks" / "chaos.py"), *session.posargs)


def pytest_options() -> list[str]:
    return [
        *("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)),
        *("-n", "4", "--dist", "worksteal"),  # many wait, for a process or a timer
        *("--timeout", "120"),  # seconds: a hang is a failure with a traceback
    ]


def leave_sources(session: nox.Session, wheel: Path) -> None:
    """Go to a directory without sources, and see that the wheel's are imported there.

    Neither pytest nor a process that a test starts can then import the package from the
    current directory.
    """
    run_dir = Path(session.cache_dir, "run", session.name)
    run_dir.mkdir(parents=True, exist_ok=True)
    session.chdir(run_dir)
    session.run("python", "-c", IS_THE_WHEEL, str(wheel), log=False)


def node_modules(session: nox.Session) -> Path:
    """The programs of tests/mcp_real/package.json, installed unless they are already."""
    wanted = ROOT / "tests" / "mcp_real"
    folder = Path(session.cache_dir, "mcp_real").resolve()
    lock = (wanted / "package-lock.json").read_bytes()
    installed = folder / "installed-lock.json"
    if not installed.is_file() or installed.read_bytes() != lock:
        folder.mkdir(parents=True, exist_ok=True)
        installed.unlink(missing_ok=True)
        for name in ("package.json", "package-lock.json"):
            (folder / name).write_bytes((wanted / name).read_bytes())
        quiet = ["--no-audit", "--no-fund", "--ignore-scripts"]
        cache = ["--cache", str(folder / "cache")]
        session.run("npm", "ci", *quiet, *cache, "--prefix", str(folder), silent=True)
        installed.write_bytes(lock)
    return folder / "node_modules"


def dist_dir() -> Path:
    return ROOT / "dist"


def the(pattern: str) -> Path:
    """The one file in dist/ that matches."""
    [path] = dist_dir().glob(pattern)
    return path


def coverage_dir() -> Path:
    path = ROOT / ".nox" / ".coverage"
    path.mkdir(parents=True, exist_ok=True)
    return path


def coverage_files(session_name: str) -> list[Path]:
    return sorted(coverage_dir().glob(f"{session_name}.*"))


def from_root(args: list[str]) -> list[str]:
    """pytest's arguments as they would be if it ran in the project's directory."""
    paths = [arg for arg in args if (ROOT / arg.split("::")[0]).exists()]
    others = [arg for arg in args if arg not in paths]
    return [*others, *(str(ROOT / path) for path in paths or ["tests"])]


def package_files() -> set[str]:
    """What the wheel must contain beside its metadata: no more, no less."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def check_wheel(session: nox.Session, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    if found != package_files():
        session.error(f"{wheel.name} differs from {PACKAGE}/: {found ^ package_files()}")
    if f"{PACKAGE}/py.typed" not in found:
        session.error(f"{wheel.name} has no py.typed")
    print(f"{wheel.name}: {len(found)} files of {PACKAGE}/ and nothing else")


def check_sdist(session: nox.Session, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "noxfile.py"}
    if missing := (package_files() | needed) - found:
        session.error(f"{sdist.name} lacks {missing}")
    print(f"{sdist.name}: {len(found)} files")
