"""What the documentation says is so: its code runs, its tables and names are the code's own."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import click
import prometheus_client
import pytest
import trio
import trio.testing
from hypercorn.config import Config
from test_cli import PATIENCE, free_port

import trio_sse
from trio_sse import testing
from trio_sse.cli import main
from trio_sse.log import redis, sqlite
from trio_sse.session import EndKind

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of one language that stand in a page."""
    fenced = rf"^```{language}\n(.*?)^```$"
    return re.findall(fenced, page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def names_of(page: str) -> dict[str, Any]:
    """All that a page's Python blocks define; running the blocks is half of the test."""
    path = ROOT / page
    names: dict[str, Any] = {"__name__": path.stem.replace("-", "_")}
    for block in blocks(path, "python"):
        exec(compile(block, page, "exec"), names)
    return names


def example(name: str) -> ModuleType:
    """A module of `examples/`, as new."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


async def data(stream: testing.Stream) -> str | None:
    return (await stream.receive_event()).data


# Code.


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
async def test_the_python_of_a_page_runs(
    page: Path, autojump_clock: trio.testing.MockClock
) -> None:
    names = names_of(str(page.relative_to(ROOT)))
    for name, function in names.items():
        if name.startswith("test_"):
            await function()


def test_no_page_has_code_of_a_language_nobody_checks() -> None:
    known = {"console", "go", "html", "js", "python", "sh", "text", "toml"}
    directive = re.compile(r"\{[\w-]+\}.*")  # MyST's
    for page in PAGES:
        fences = re.findall(r"^```(.+)$", page.read_text("utf-8"), re.MULTILINE)
        assert {fence for fence in fences if not directive.fullmatch(fence)} <= known, page


def test_every_example_is_shown_somewhere() -> None:
    text = "".join(page.read_text("utf-8") for page in PAGES)
    in_readme = {"quickstart.py", "follow.py"}
    for path in EXAMPLES.iterdir():
        if path.is_file():
            assert path.name in in_readme or f"examples/{path.name}" in text, path


async def test_the_shape(capsys: pytest.CaptureFixture[str]) -> None:
    await example("shape").main()
    assert capsys.readouterr().out == "hello\nended once\n"


def test_the_tests_of_the_countdown_pass() -> None:
    options = ["-c", os.devnull, "--rootdir", str(EXAMPLES), "-o", "trio_mode=true"]
    options += ["-p", "no:cacheprovider"]
    result = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", *options, str(EXAMPLES / "test_countdown.py")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "3 passed" in result.stdout, result.stdout + result.stderr


async def test_presence(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    async with testing.lifespan(example("presence").make_app()) as app:
        refused = await testing.request(app, "GET", "/")
        assert (refused.status, refused.json()["detail"]) == (
            400,
            "say who you are, as in ?name=ada",
        )
        async with testing.open_stream(app, "/?name=ada") as ada:
            assert await data(ada) == "+ada"
            async with testing.open_stream(app, "/?name=bob"):
                assert await data(ada) == "+bob"
            assert await data(ada) == "-bob"
    assert capsys.readouterr().err.splitlines() == [
        "bob left after 0 s: client-left",
        "ada left after 0 s: client-left",
    ]


async def test_authorise(autojump_clock: trio.testing.MockClock) -> None:
    async with testing.lifespan(example("authorise").make_app()) as app:
        assert (await testing.request(app, "GET", "/")).status == 401
        by_bob = await testing.request(
            app, "POST", "/?access_token=token-of-bob", form={"data": ""}
        )
        assert (by_bob.status, by_bob.json()["detail"]) == (403, "bob may not publish")
        bearer = {"authorization": "Bearer token-of-bob"}
        async with testing.open_stream(app, "/", headers=bearer) as bob:
            for topic in ("user/ada", "user/bob", "news"):
                form = {"topic": topic, "data": f"to {topic}"}
                posted = await testing.request(
                    app, "POST", "/?access_token=token-of-ada", form=form
                )
                assert posted.status == 201
            assert [await data(bob), await data(bob)] == ["to user/bob", "to news"]


async def test_hooks_say_goodbye_and_replace(autojump_clock: trio.testing.MockClock) -> None:
    names = names_of("docs/howto-hooks.md")
    hub = trio_sse.Hub()
    names["keep_one_each"](hub)
    ended: list[trio_sse.EndReason] = []
    hub.hooks.on_unregister(lambda session, reason: ended.append(reason))
    app = trio_sse.Endpoint(hub, names["handle"])
    async with hub, testing.open_stream(app) as first:
        assert await data(first) == "tick"
        async with testing.open_stream(app) as second:  # nobody is authorised: the same nobody
            await first.wait_finished()
            assert ended == [trio_sse.EndReason.REPLACED]
            await hub.drain(10)
            seen = [event.data for event in decoded(await second.read())]
    assert seen == ["tick", "see you"]
    assert ended[1].kind == "application"


def decoded(body: bytes) -> list[trio_sse.Event]:
    return trio_sse.Decoder().feed(body)


async def test_resuming(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    names = names_of("docs/howto-resume.md")
    async with testing.lifespan(names["make_app"](trio_sse.Hub())) as app:
        whole = await testing.request(app, "GET", "/")
        assert [event.data for event in decoded(whole.body)] == names["PAGES"]
        rest = await testing.request(app, "GET", "/", headers={"last-event-id": "2"})
        assert [event.data for event in decoded(rest.body)] == ["three"]

    ours, theirs = trio.testing.memory_stream_pair()

    async def open_stream(host: str, port: int) -> trio.abc.Stream:
        return ours

    body = b'event: gap\ndata: {"reason": "epoch"}\n\ndata: x\n\n'
    await theirs.send_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    transport = trio_sse.Transport(open_stream=open_stream)
    source = trio_sse.connect("http://example.org/", transport=transport, reconnect=None)
    async with source:
        await names["follow"](source)
    assert capsys.readouterr().out == "something was missed (epoch): fetching everything\nx\n"


async def test_a_registry_of_ones_own(autojump_clock: trio.testing.MockClock) -> None:
    names = names_of("docs/howto-metrics.md")
    async with trio_sse.Hub() as hub:
        text = prometheus_client.generate_latest(names["make_registry"](hub)).decode()
    assert "trio_sse_sessions 0.0" in text


@pytest.mark.parametrize("way", ["run", "run_plainly"])
async def test_serving_with_a_farewell(way: str) -> None:
    """Under plain Hypercorn too, if one drains in its trigger."""
    names = names_of("docs/howto-deploy.md")
    app = trio_sse.Endpoint(trio_sse.Hub())
    address = f"127.0.0.1:{free_port()}"
    stop = trio.Event()
    config = Config()
    config.bind = [address]
    config.errorlog = None
    async with trio.open_nursery() as nursery:
        if way == "run":
            nursery.start_soon(names["run"], app, address)
        else:
            nursery.start_soon(names["run_plainly"], app, config, stop)
        async with trio_sse.connect(
            f"http://{address}/",
            every_block=True,
            reconnect=trio_sse.Reconnect(initial=0.02, floor=0.01),  # until it listens
        ) as source:
            with trio.fail_after(PATIENCE):
                assert (await source.__anext__()).retry == 2000
                if way == "run":
                    nursery.start_soon(app.hub.drain)  # a hub that is closed stops it too
                else:
                    stop.set()
                assert (await source.__anext__()).comment == "draining"


# Commands and files.


def commands() -> list[list[str]]:
    """What the pages tell readers to type, as far as it is ours."""
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            for part in re.split(r"\n|&&|\|", block):
                words = shlex.split(part)
                if "trio-sse" in (name := next((w for w in words if "=" not in w), "")):
                    found.append(words[words.index(name) + 1 :])
    return found


def test_commands_are_understood() -> None:
    assert len(commands()) > 8
    for name, *args in commands():
        command = main.commands[name]
        with command.make_context(name, args) as context:
            assert isinstance(context, click.Context)


def test_settings_files_are_understood(tmp_path: Path) -> None:
    [text] = blocks(DOCS / "howto-deploy.md", "toml")
    path = tmp_path / "hub.toml"
    path.write_text(text)
    with main.commands["serve"].make_context("serve", ["--config", str(path)]) as context:
        assert context.params["log_events"] == 500_000
        assert context.params["overflow"] == "drop-oldest"
        assert context.params["workers"] == 2
        assert len(context.params["bind"]) == 2


def test_units_for_systemd() -> None:
    service, sockets = configparser.RawConfigParser(), configparser.RawConfigParser()
    service.optionxform = sockets.optionxform = str  # type: ignore[assignment, method-assign]  # as its documentation has it
    service.read(DOCS / "trio-sse.service")
    sockets.read(DOCS / "trio-sse.socket")
    program, name, *args = shlex.split(service["Service"]["ExecStart"])
    assert (Path(program).name, name) == ("trio-sse", "serve")
    options = {option for param in main.commands["serve"].params for option in param.opts}
    assert {arg for arg in args if arg.startswith("-")} <= options
    assert service["Service"]["Type"] == "notify"
    grace = inspect.signature(trio_sse.serve).parameters["grace"].default
    assert float(service["Service"]["TimeoutStopSec"]) > grace
    assert sockets["Socket"]["ListenStream"] == "127.0.0.1:8000"


# Tables and names.


def default_of(name: str) -> object:
    """The default of a parameter, as in ``Hub.drain.grace``, or of a setting of Hypercorn's."""
    *path, parameter = name.split(".")
    if path == ["Config"]:
        return getattr(Config(), parameter)
    engines = {"SqliteLog": sqlite, "RedisLog": redis}
    owner: Any = engines.get(path[0], trio_sse)
    for part in path:
        owner = getattr(owner, part)
    return inspect.signature(owner).parameters[parameter].default


def test_the_defaults_in_the_page_on_time_outs() -> None:
    text = (DOCS / "timeouts.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| (\S+) \|", text, re.MULTILINE)
    assert len(rows) == text.count("\n| `")
    assert {name: ast.literal_eval(value) for name, value in rows} == {
        name: default_of(name) for name, _ in rows
    }
    # And none is missing: those of which all parameters are bounds.
    for bounds in ("HubLimits", "MemoryLog", "Hooks"):
        parameters = inspect.signature(getattr(trio_sse, bounds)).parameters
        assert {f"{bounds}.{name}" for name in parameters} <= {name for name, _ in rows}


def test_the_kinds_of_end() -> None:
    text = (DOCS / "howto-hooks.md").read_text("utf-8")
    assert re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE) == list(get_args(EndKind))


async def gap_after_another_epoch() -> trio_sse.Event:
    request = trio_sse.Request(last_event_id="5f0c9a3e.17")
    async with trio_sse.Hub() as hub, hub.open_session(request) as (_, receive_end):
        [gap] = decoded(await receive_end.receive())
        return gap


async def gap_after_an_overflow() -> trio_sse.Event:
    limits = trio_sse.OutboxLimits(max_events=1, overflow="drop-oldest")
    async with (
        trio_sse.Hub(outbox=limits) as hub,
        hub.open_session(trio_sse.Request()) as (_, receive_end),
    ):
        for number in range(3):
            await hub.publish(trio_sse.Event(str(number)))
            await trio.testing.wait_all_tasks_blocked()
        return decoded(await receive_end.receive())[0]


@pytest.mark.parametrize(
    ("page", "happens"),
    [
        ("howto-resume.md", gap_after_another_epoch),
        ("howto-overflow.md", gap_after_an_overflow),
    ],
)
async def test_gaps_look_as_they_are_shown(
    page: str,
    happens: Callable[[], Awaitable[trio_sse.Event]],
    autojump_clock: trio.testing.MockClock,
) -> None:
    [shown] = [block for block in blocks(DOCS / page, "text") if "event: gap" in block]
    [as_shown] = decoded(shown.encode() + b"\n")
    gap = await happens()
    assert gap.type == as_shown.type == "gap"
    assert bool(gap.id) == bool(as_shown.id)
    assert list(json.loads(gap.data or "")) == list(json.loads(as_shown.data or ""))


def test_the_tests_that_the_promises_name_are_there() -> None:
    text = (DOCS / "promises-and-limits.md").read_text("utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 20
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not re.search(rf"def {name}\(", (ROOT / "tests" / file).read_text("utf-8"))
    ]
    assert not missing


def test_a_page_may_be_left_by_every_link_in_it() -> None:
    for page in PAGES:
        links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        assert not [
            link for link in links if ":" not in link and not (page.parent / link).exists()
        ], page
