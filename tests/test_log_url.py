"""Which log, by URL, and the settings of the command that are about it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from _redis import RedisServer, running
from test_cli import PATIENCE, free_port, run, serving
from test_workers import parse_serve

from trio_sse import MemoryLog, open_log
from trio_sse.cli._log import check_log, make_log, without_secret
from trio_sse.cli.serve import worker_environment
from trio_sse.log.redis import RedisLog
from trio_sse.log.sqlite import SqliteLog
from trio_sse.log.url import OPTIONS, engine_of, without_password

SECRET = "hush-hush"


class TestOpenLog:
    @pytest.mark.parametrize(
        ("url", "kind"),
        [
            ("memory", MemoryLog),
            ("sqlite:events.db", SqliteLog),
            ("sqlite:/var/lib/events.db", SqliteLog),
            ("redis://localhost", RedisLog),
            ("rediss://u:p@host:1/2", RedisLog),
            ("unix:///run/redis.sock?db=1", RedisLog),
            ("redis+sentinel://a:1,b:2/primary/3", RedisLog),
            ("redis+cluster://a:1,b:2", RedisLog),
        ],
    )
    def test_by_url(self, url: str, kind: type) -> None:
        assert type(open_log(url)) is kind

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("memroy", "did you mean memory?"),
            ("memory:", "is called memory, and nothing more"),
            ("sqlit:x", "did you mean sqlite:?"),
            ("reddis://h", "did you mean redis:?"),
            ("mysql://h", "there are memory, sqlite:events.db, redis://localhost:6379/0"),
            ("", "there are memory"),
            ("sqlite", "did you mean sqlite:?"),
            ("sqlite:", "write sqlite:events.db"),
            ("sqlite::memory:", "write memory"),
            ("sqlite:///x", "write sqlite:/x for a path from the root, or sqlite:x"),
            ("redis://h/x", "number of a database"),
        ],
    )
    def test_a_url_that_is_none_is_refused_with_one_that_is(self, url: str, said: str) -> None:
        with pytest.raises(ValueError, match=r"(?s).+") as info:
            open_log(url)
        assert said in str(info.value)

    @pytest.mark.parametrize("url", ["memory", "sqlite:x", "redis://h"])
    def test_an_option_of_another_log_is_refused(self, url: str) -> None:
        values: dict[str, Any] = {
            "max_events": 7,
            "max_bytes": 8,
            "max_age": 9.0,
            "sync": "off",
            "name": "n",
            "shards": 2,
        }
        has = OPTIONS[engine_of(url)]
        for option, value in values.items():
            given: dict[str, Any] = {option: value}
            if option in has:
                open_log(url, **given)
            else:
                with pytest.raises(ValueError, match=f"{option}=.*has no such option"):
                    open_log(url, **given)

    async def test_a_path_from_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        async with open_log("sqlite:~/events.db"):
            assert (tmp_path / "events.db").exists()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory", "memory"),
        ("sqlite:a@b.db", "sqlite:a@b.db"),
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        (f"redis://u:{SECRET}@h:1/0", "redis://***@h:1/0"),
        (f"redis://:{SECRET}/@x@h/0", "redis://***@h/0"),
        (f"redis:/u:{SECRET}@h", "redis:/***@h"),
        (f"redis+sentinel://h/p?sentinel_password={SECRET}", "redis+sentinel://h/p?sentinel_password=***"),
        (f"unix://:{SECRET}@/s?db=1&pasword={SECRET}", "unix://***@/s?db=1&pasword=***"),
    ],
)  # fmt: skip
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_nor_where_others_write_it() -> None:
    settings = {"log": "redis://:hush%21hush@h"}
    text = "no luck with redis://:hush%21hush@h, hush!hush or hush%21hush"
    assert "hush" not in without_secret(text, settings)


class TestSettings:
    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (["--log-sync", "full"], "--log-sync is not for --log memory, which has --log-events"),
            (["--log-age", "60"], "--log-age is not"),
            (["--log", "sqlite:x", "--log-shards", "2"], "--log-shards is not for --log sqlite:x"),
            (["--log", "sqlite:x", "--log-name", "n"], "--log-sync"),
            (["--log", f"redis://:{SECRET}@h", "--log-bytes", "9"], "--log redis://***@h, which"),
            (["--workers", "2"], "use --log sqlite:events.db, or --log redis://"),
            (["--log", f"mysql://:{SECRET}@h"], "redis://localhost:6379/0"),
        ],
    )
    def test_what_a_log_does_not_have_is_refused(self, args: list[str], said: str) -> None:
        with pytest.raises(click.UsageError) as info:
            check_log(parse_serve(args, {}))
        assert said in info.value.message
        assert SECRET not in info.value.message

    def test_from_flags_to_the_log(self, tmp_path: Path) -> None:
        args = ["--log", f"sqlite:{tmp_path}/x", "--log-events", "7", "--log-age", "none"]
        settings = parse_serve([*args, "--log-sync", "normal", "--workers", "3"], {})
        check_log(settings)
        assert isinstance(make_log(settings), SqliteLog)
        # And to the workers.
        assert parse_serve([], worker_environment(settings)) == settings

    def test_from_a_file_and_the_environment(self, tmp_path: Path) -> None:
        file = tmp_path / "hub.toml"
        file.write_text('log = "redis://localhost/0"\nlog-shards = 4\nlog-age = 3600\n')
        settings = parse_serve(["--config", str(file)], {"TRIO_SSE_LOG_NAME": "mine"})
        assert (settings["log_shards"], settings["log_age"], settings["log_name"]) == (
            4,
            3600.0,
            "mine",
        )
        assert isinstance(make_log(settings), RedisLog)


@pytest.mark.exhaustive
class TestWhatCannotBeOpened:
    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_a_file_that_is_no_log(self, tmp_path: Path, workers: str) -> None:
        file = tmp_path / "notes.txt"
        file.write_text("something else, and dear to somebody")
        self.fails(f"sqlite:{file}", "is not an event log", "--workers", workers)
        assert file.read_text() == "something else, and dear to somebody"
        assert [*tmp_path.iterdir()] == [file]

    def test_a_database_of_another_program(self, tmp_path: Path) -> None:
        with sqlite3.connect(tmp_path / "other.db") as connection:
            connection.execute("CREATE TABLE dear (to_somebody)")
        connection.close()
        self.fails(f"sqlite:{tmp_path / 'other.db'}", "another program's database")

    def test_a_directory_that_is_not_there(self, tmp_path: Path) -> None:
        self.fails(f"sqlite:{tmp_path}/none/events.db", "see that its directory is there")

    def test_no_redis(self) -> None:
        url = f"redis://:{SECRET}@127.0.0.1:{free_port()}/0"
        self.fails(url, "Is it running there?")
        self.fails(url, "Is it running there?", "--workers", "2")

    @pytest.mark.redis
    def test_a_wrong_password(self) -> None:
        with running() as server:
            server.ask("CONFIG", "SET", "requirepass", "right")
            self.fails(f"redis://:{SECRET}@127.0.0.1:{server.port}/0", "127.0.0.1")

    def test_a_package_that_is_missing(self) -> None:
        program = """
            import sys
            sys.modules["coredis"] = None
            import trio_sse.cli
            trio_sse.cli.main(["serve", "--log", "redis://localhost"])
        """
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert result.returncode == 1
        assert "needs coredis: pip install 'trio-sse[redis]'" in result.stderr
        assert "Traceback" not in result.stderr

    @staticmethod
    def fails(url: str, said: str, *args: str) -> None:
        result = run("serve", "--bind", "127.0.0.1:0", *args, TRIO_SSE_LOG=url)
        assert result.returncode == 1
        assert said in result.stderr
        assert "cannot open the log" in result.stderr
        assert "Traceback" not in result.stderr
        assert SECRET not in result.stderr


@pytest.fixture
def guarded() -> Iterator[RedisServer]:
    with running() as server:
        server.ask("CONFIG", "SET", "requirepass", SECRET)
        yield server


@pytest.mark.redis
def test_the_password_of_a_log_is_told_to_nobody(guarded: RedisServer) -> None:
    """Not in the console, in metrics or on /healthz, with Redis there or away, nor in the log."""
    url = f"redis://:{SECRET}@127.0.0.1:{guarded.port}/0"
    with serving("--log-level", "debug", TRIO_SSE_LOG=url) as service:
        assert run("publish", service.events, "x", "--attempts", "1").returncode == 0
        seen = [service.get(path)[1] for path in ("/", "/metrics", "/healthz")]
        guarded.kill()
        refused = run("publish", service.events, "x", "--attempts", "1")
        assert refused.returncode == 1
        assert "503" in refused.stderr
        seen += [refused.stderr, *(service.get(path)[1] for path in ("/metrics", "/healthz"))]
        assert '"degraded"' in seen[-1]
        assert "trio_sse_log_available 0.0" in seen[-2]
        _, err = service.stop()
        seen.append(err)
    assert SECRET not in "".join(seen)
