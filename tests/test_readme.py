"""What the README says to do is done here, as it stands."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
from test_cli import PATIENCE, free_port, serving

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
RUN = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/trio-sse serve"
TEST = "python3 -m venv .venv && .venv/bin/pip install 'nox[uv]' && .venv/bin/nox"
ADDRESS = "127.0.0.1:8000"
BLOCKS = [
    (match[1], match[2])
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
]
SHELL = [text.strip() for language, text in BLOCKS if language == "sh"]
PYTHON = [text for language, text in BLOCKS if language == "python"]
ON_ANOTHER_PORT = """
import sys, hypercorn.config
hypercorn.config.Config._bind = [sys.argv[2]]
with open(sys.argv[1]) as file:
    exec(compile(file.read(), "README", "exec"))
"""


def test_two_commands_one_line_each() -> None:
    lines = README.splitlines()
    assert lines.count(RUN) == lines.count(TEST) == 1
    assert SHELL[0] == RUN
    gate = ROOT / ".ci" / "run"
    if gate.exists():  # not in a source distribution
        assert f'test_command="{TEST}"' in gate.read_text("utf-8")


def test_the_library_example_is_the_file_and_has_fifteen_lines_at_most() -> None:
    quickstart, follow = PYTHON
    assert quickstart == (ROOT / "examples" / "quickstart.py").read_text("utf-8")
    assert follow == (ROOT / "examples" / "follow.py").read_text("utf-8")
    assert len([line for line in quickstart.splitlines() if line]) <= 15


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def next_line(process: subprocess.Popen[str], part: str) -> str:
    """The next line of what it prints that has ``part`` in it."""
    assert process.stdout is not None
    for line in process.stdout:
        if part in line:
            return line
    raise AssertionError(f"it ended without {part!r}: {process.communicate()}")


def test_curl_sees_what_the_second_command_publishes() -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed, and this is about curl")
    listen, publish = SHELL[1:3]
    promised = next(text for language, text in BLOCKS if language == "text")
    with serving() as service:
        here = service.url.removeprefix("http://")
        with running(*shlex.split(listen.replace(ADDRESS, here))) as curl:
            next_line(curl, "retry")  # it is connected
            command = shlex.split(publish.replace(ADDRESS, here))
            assert command[0] == ".venv/bin/trio-sse"
            command[:1] = [sys.executable, "-m", "trio_sse"]
            subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
            seen = next_line(curl, "id: ") + next_line(curl, "data: ")
        an_epoch = re.compile(r"[0-9a-f]{8}\.")
        assert an_epoch.sub("EPOCH.", seen) == an_epoch.sub("EPOCH.", promised)
        code, _ = service.stop(signal.SIGINT)
        assert code == 0


def test_the_library_example_greets_and_says_goodbye(tmp_path: Path) -> None:
    quickstart, follow = PYTHON
    (tmp_path / "quickstart").write_text(quickstart)
    address = f"127.0.0.1:{free_port()}"
    assert follow.count(f"http://{ADDRESS}/events") == 1
    follow = follow.replace(f"http://{ADDRESS}/events", f"http://{address}/")
    command = [sys.executable, "-u", "-c"]
    with running(*command, ON_ANOTHER_PORT, str(tmp_path / "quickstart"), address) as server:
        assert server.stderr is not None
        assert "Running on" in server.stderr.readline()
        with running(*command, follow) as client:
            assert next_line(client, "hello") == " message hello, 127.0.0.1\n"
            with urlopen(f"http://{address}/", b"data=news", timeout=PATIENCE) as answer:
                assert answer.status == 201
            assert re.fullmatch(r"\w+\.1 message news\n", next_line(client, "news"))
            server.send_signal(signal.SIGINT)
            assert re.fullmatch(r"\w+\.1 farewell goodbye\n", next_line(client, "goodbye"))
            assert re.fullmatch(r"\S{8} handler-returned\n", next_line(server, "handler"))
        assert server.wait(PATIENCE) == 0
