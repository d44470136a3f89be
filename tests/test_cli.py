"""The command, as a user runs it: real processes, real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

COMMAND = [sys.executable, "-m", "trio_sse"]
PATIENCE = 30.0  # seconds; nothing here takes one


def run(*args: str, text: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args],
        input=text,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL if text is None else None,
        check=False,
    )


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Service:
    """A running ``trio-sse serve``."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        self.events = f"{url}/events"

    def get(self, path: str) -> tuple[int, str]:
        with urlopen(self.url + path, timeout=PATIENCE) as response:
            return response.status, response.read().decode()

    def stop(self, signum: int = signal.SIGTERM) -> tuple[int, str]:
        """Send the signal; exit code and the rest of standard error."""
        self.process.send_signal(signum)
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err


@contextlib.contextmanager
def serving(*args: str, **env: str) -> Iterator[Service]:
    arguments = [*args] if "--bind" in args else ["--bind", "127.0.0.1:0", *args]
    process = subprocess.Popen(
        [*COMMAND, "serve", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"trio-sse serves (\S+)", line):
                break
        else:
            raise AssertionError(f"did not start: exit code {process.wait(PATIENCE)}")
        yield Service(process, found[1])
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def listening(url: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """``trio-sse listen``, connected."""
    process = subprocess.Popen(
        [*COMMAND, "listen", url, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        assert process.stderr.readline() == "trio-sse: connected\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_help_teaches_every_command() -> None:
    top = run("--help")
    assert top.returncode == 0
    for command in ("serve", "publish", "listen"):
        assert command in top.stdout
        text = run(command, "--help")
        assert text.returncode == 0
        assert "trio-sse" in text.stdout or "GET" in text.stdout
    assert run("--version").stdout.startswith("trio-sse, version ")


def test_from_publish_to_listen_to_a_drain() -> None:
    with serving() as service:
        with listening(service.events, "--topic", "a", "--json", "--count", "2") as listener:
            ids = run("publish", service.events, "one", "zwei ✓", "--topic", "a", "--type", "x")
            assert ids.returncode == 0
            run("publish", service.events, "not for a", "--topic", "b")
            out, _ = listener.communicate(timeout=PATIENCE)
            assert listener.returncode == 0
            first, second = map(json.loads, out.splitlines())
            assert first == {"id": ids.stdout.split()[0], "type": "x", "data": "one"}
            assert second["data"] == "zwei ✓"
        with listening(service.events) as listener:
            code, err = service.stop()
            assert code == 0
            assert "draining: 1 session" in err
            assert "ended: drained" in err
            assert listener.stderr is not None
            assert "the server ended the stream; again in" in listener.stderr.readline()


def test_publish_takes_lines_of_standard_input() -> None:
    with serving() as service:
        published = run("publish", service.events, text="one\r\ntwo\n\nfour")
        assert [event_id.rpartition(".")[2] for event_id in published.stdout.split()] == [
            "1", "2", "3", "4",
        ]  # fmt: skip
        epoch = published.stdout.split(".")[0]
        with listening(service.events, "--last-event-id", f"{epoch}.0", "-n", "4") as listener:
            assert listener.communicate(timeout=PATIENCE)[0] == "one\ntwo\n\nfour\n"


def test_listen_ends_cleanly_when_its_reader_leaves() -> None:
    with serving() as service, listening(service.events) as listener:
        assert listener.stdout is not None
        listener.stdout.close()
        run("publish", service.events, "into the closed pipe")
        assert listener.wait(PATIENCE) == 0
        assert listener.stderr is not None
        assert "Traceback" not in listener.stderr.read()


def test_listen_says_where_it_was_on_ctrl_c() -> None:
    with serving() as service, listening(service.events) as listener:
        published = run("publish", service.events, "x")
        assert listener.stdout is not None
        assert listener.stdout.readline() == "x\n"
        listener.send_signal(signal.SIGINT)
        _, err = listener.communicate(timeout=PATIENCE)
        assert listener.returncode == 130
        assert f"the last event id is {published.stdout.strip()!r}" in err
        assert "Traceback" not in err


def test_a_second_signal_ends_at_once() -> None:
    # A subscriber that reads nothing keeps the drain busy for the whole grace.
    with serving("--grace", "600", "--queue-bytes", "100000000") as service:
        host, port = service.url.removeprefix("http://").split(":")
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect((host, int(port)))
            stalled.sendall(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert stalled.recv(20).startswith(b"HTTP/1.1 200")
            for _ in range(10):
                body = json.dumps({"data": "x" * 900_000}).encode()
                post = Request(service.events, body, {"content-type": "application/json"})
                with urlopen(post, timeout=PATIENCE):
                    pass
            service.process.send_signal(signal.SIGINT)
            assert service.process.stderr is not None
            while "draining" not in service.process.stderr.readline():
                pass
            with pytest.raises(subprocess.TimeoutExpired):
                service.process.wait(0.5)
            began = time.monotonic()
            service.stop(signal.SIGINT)
            assert time.monotonic() - began < PATIENCE


def test_health_and_metrics() -> None:
    with serving() as service, listening(service.events):
        run("publish", service.events, "x")
        status, health = service.get("/healthz")
        assert (status, json.loads(health)) == (200, {"status": "ok", "sessions": 1})
        _, text = service.get("/metrics")
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        assert values["trio_sse_sessions"] == "1.0"
        assert values["trio_sse_events_published_total"] == "1.0"
        assert values['trio_sse_sessions_unregistered_total{reason="drained"}'] == "0.0"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["serve", "--bind", "0.0.0.0:0"], "TRIO_SSE_PUBLISH_TOKEN=... trio-sse serve"),
        (["serve", "--bind", "[::]:0"], "--no-auth"),
        (["serve", "--bind", "127.0.0.1:99999"], "--bind HOST:PORT"),
        (["serve", "--workers", "2"], "--log sqlite:events.db"),
        (["serve", "--log", "sqlite::memory:"], "memory"),
        (["serve", "--certfile", __file__], "--keyfile"),
        (["serve", "--keep-alive", "0"], "0"),
        (["serve", "--keep-alive", "-1"], "-1"),
        (["publish", "http://127.0.0.1:9/events", "x"], "trio-sse serve"),
        (["publish", "no-url", "x"], "no-url"),
        (["listen", "no-url"], "https://example.org/events"),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(args: list[str], said: str) -> None:
    result = run(*args)
    assert result.returncode != 0
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use_is_an_error_that_says_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("serve", "--bind", f"127.0.0.1:{taken.getsockname()[1]}")
    assert result.returncode == 1
    assert "Address already in use" in result.stderr
    assert "--bind" in result.stderr
    assert "Traceback" not in result.stderr


def test_settings_flag_then_environment_then_file(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(3)]
    file = tmp_path / "hub.toml"
    file.write_text(f'bind = "127.0.0.1:{ports[0]}"\nlog-format = "json"\n')
    config = ["--config", str(file)]
    with serving("--bind", f"127.0.0.1:{ports[2]}", *config) as service:
        assert service.url.endswith(f":{ports[2]}")
    for env, port in (({"TRIO_SSE_BIND": f"127.0.0.1:{ports[1]}"}, ports[1]), ({}, ports[0])):
        process = subprocess.Popen(
            [*COMMAND, "serve", *config],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        assert process.stderr is not None
        line = json.loads(process.stderr.readline())
        assert line["message"] == f"Running on http://127.0.0.1:{port}"
        process.terminate()
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bnid = 'x'", "did you mean 'bind'?"),
        ("workers = [1, 2]", "takes one plain value"),
        ("grace = 'soon'", "soon"),
        ("= nothing", "hub.toml"),
    ],
)
def test_a_wrong_settings_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "hub.toml"
    file.write_text(text)
    result = run("serve", "--config", str(file))
    assert result.returncode == 2
    assert said in result.stderr


def test_tokens_guard_publishing_and_subscribing() -> None:
    tokens = {"TRIO_SSE_PUBLISH_TOKEN": "p-secret", "TRIO_SSE_SUBSCRIBE_TOKEN": "s-secret"}
    clean = {"TRIO_SSE_PUBLISH_TOKEN": "", "TRIO_SSE_SUBSCRIBE_TOKEN": ""}
    with serving(**tokens) as service:
        refused = run("publish", service.events, "x", **clean)
        assert refused.returncode == 1
        assert "--token or TRIO_SSE_PUBLISH_TOKEN" in refused.stderr
        assert run("publish", service.events, "x", "--token", "s-secret").returncode == 1
        assert run("publish", service.events, "x", **tokens).returncode == 0
        refused = run("listen", service.events, **clean)
        assert refused.returncode == 1
        assert "401" in refused.stderr
        _, err = service.stop()
        assert "secret" not in err
