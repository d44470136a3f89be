"""``trio-sse publish`` against a hub that is away, or whose answers are lost."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from test_cli import free_port, run, serving

pytestmark = pytest.mark.exhaustive


class Script(ThreadingHTTPServer):
    """Answers one request after the other as it is told; keeps what came."""

    def __init__(self, *answers: int | None) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.answers = [*answers]
        self.received: list[tuple[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/events"


class Answering(BaseHTTPRequestHandler):
    server: Script

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append((self.headers["idempotency-key"], json.loads(body)["data"]))
        status = self.server.answers.pop(0)
        if status is None:  # the hub has it, and nobody hears of that
            self.close_connection = True
            return
        body = json.dumps({"id": f"e.{len(self.server.received)}", "detail": "as told"}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        if status == 503:
            self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def scripted(*answers: int | None) -> Iterator[Script]:
    with Script(*answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_what_may_have_been_lost_is_sent_again_under_its_key() -> None:
    with scripted(None, 503, 201, 502, 201) as hub:
        result = run("publish", hub.url, "one", "two")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["e.3", "e.5"]
    keys = [key for key, _ in hub.received]
    assert [data for _, data in hub.received] == ["one"] * 3 + ["two"] * 2
    assert len({*keys[:3]}) == len({*keys[3:]}) == 1
    assert keys[0] != keys[3]
    assert keys[0][0] == keys[0][-1] == '"'
    assert result.stderr.count("; again in") == 3
    assert "the hub said 503: as told" in result.stderr


@pytest.mark.parametrize("status", [400, 401, 413, 422, 500])
def test_an_answer_that_will_stay_is_the_last(status: int) -> None:
    with scripted(status) as hub:
        result = run("publish", hub.url, "one")
    assert result.returncode == 1
    assert f"the hub said {status}: as told" in result.stderr
    assert len(hub.received) == 1


def test_it_does_not_try_for_ever() -> None:
    with scripted(503, 503) as hub:
        result = run("publish", hub.url, "one", "--attempts", "2")
    assert result.returncode == 1
    assert "the hub said 503: as told" in result.stderr.splitlines()[-1]
    assert len(hub.received) == 2
    result = run("publish", f"http://127.0.0.1:{free_port()}/events", "x", "--attempts", "1")
    assert result.returncode == 1
    assert "again in" not in result.stderr


def test_a_key_of_ones_own() -> None:
    with serving() as service:
        for key in ("order-1", 'a "quoted" \\ key'):
            option = ["--idempotency-key", key]
            first = run("publish", service.events, "paid", *option)
            again = run("publish", service.events, "paid", *option)
            assert first.returncode == again.returncode == 0
            assert first.stdout == again.stdout
            other = run("publish", service.events, "refunded", *option)
            assert other.returncode == 1
            assert "belongs to event" in other.stderr
        assert run("publish", service.events, "paid").stdout.strip().endswith(".3")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--idempotency-key", "k", "one", "two"], "give one DATA"),
        (["--idempotency-key", "k"], "give one DATA"),
        (["--idempotency-key", "tab\there", "one"], "printable ASCII"),
        (["--idempotency-key", "", "one"], "1 to 255"),
        (["--attempts", "0", "one"], "0"),
    ],
)
def test_what_makes_no_sense_is_refused(args: list[str], said: str) -> None:
    result = run("publish", "http://127.0.0.1:9/events", *args)
    assert result.returncode == 2
    assert said in result.stderr
