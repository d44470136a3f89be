"""`docs/nginx.conf` as it stands, run by Debian's nginx: streams pass, drain, and come back."""

from __future__ import annotations

import re
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import trustme
from _parts import PARTS, require
from test_cli import COMMAND, PATIENCE, free_port

from trio_sse import Decoder, Event

pytestmark = pytest.mark.nginx

CONFIG = Path(__file__).parent.parent / "docs" / "nginx.conf"
NAME = "events.example.org"
ROOM_FOR_ALL = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr notice;
events {{ }}
http {{
    client_body_temp_path {folder}/client;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


class Site:
    """The hub behind nginx, and a client of it that speaks HTTP/2."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hub_port = free_port()
        self.port = free_port()
        self.origin = f"https://{NAME}:{self.port}"
        self.hub: subprocess.Popen[str] | None = None
        authority = trustme.CA()
        self._context = ssl.create_default_context()
        authority.configure_trust(self._context)
        certificate = authority.issue_cert(NAME, "127.0.0.1")
        certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
        certificate.cert_chain_pems[0].write_to_path(str(folder / "chain.pem"))
        self._write_config()

    def _write_config(self) -> None:
        text = CONFIG.read_text("utf-8")
        for here, there in {
            "server 127.0.0.1:8000;": f"server 127.0.0.1:{self.hub_port};",
            "listen 443 ssl http2;": f"listen 127.0.0.1:{self.port} ssl http2;",
            f"/etc/ssl/{NAME}/fullchain.pem": f"{self.folder}/chain.pem",
            f"/etc/ssl/{NAME}/key.pem": f"{self.folder}/key.pem",
            "/var/log/nginx/trio-sse.log": f"{self.folder}/access.log",
        }.items():
            assert text.count(here) == 1, here
            text = text.replace(here, there)
        (self.folder / "site.conf").write_text(text)
        (self.folder / "nginx.conf").write_text(ROOM_FOR_ALL.format(folder=self.folder))

    @contextmanager
    def nginx(self) -> Iterator[None]:
        [(program, how_to_get)] = PARTS["nginx"].items()
        command = [require(program, how_to_get), "-e", "stderr", "-p", str(self.folder)]
        command += ["-c", "nginx.conf"]
        subprocess.run([*command, "-t"], check=True, capture_output=True, timeout=PATIENCE)
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        try:
            # It says so after it has opened its sockets.
            while "event method" not in (line := process.stderr.readline()):
                assert line, "it did not start"
            yield
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE)

    @contextmanager
    def serve(self, *args: str) -> Iterator[None]:
        """Run the hub, as the comment in the configuration says, and ``args``."""
        [allow] = re.findall(r"#   trio-sse serve (.*)", CONFIG.read_text("utf-8"))
        bind = f"127.0.0.1:{self.hub_port}"
        self.hub = subprocess.Popen(
            [*COMMAND, "serve", "--bind", bind, *(args or allow.split())],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.hub.stderr is not None
        try:
            while "trio-sse serves" not in (line := self.hub.stderr.readline()):
                assert line, "it did not start"
            yield
        finally:
            self.hub.kill()
            self.hub.communicate()

    def stop_hub(self) -> None:
        assert self.hub is not None
        self.hub.terminate()
        assert self.hub.wait(PATIENCE) == 0

    def client(self, *, http2: bool = True) -> httpx.Client:
        # Connects to this machine, whatever the name.
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}",
            headers={"host": f"{NAME}:{self.port}"},
            verify=self._context,
            http2=http2,
            timeout=PATIENCE,
            trust_env=False,
        )


class Stream:
    """An event stream as it comes."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._decoder = Decoder(every_block=True)
        self._chunks = response.iter_raw()

    def next_blocks(self) -> list[Event]:
        while True:
            blocks = self._decoder.feed(next(self._chunks))
            if blocks:
                return blocks

    def rest(self) -> list[Event]:
        """Until the proper end: anything else raises."""
        return [block for chunk in self._chunks for block in self._decoder.feed(chunk)]


@contextmanager
def listening(client: httpx.Client, path: str = "/events") -> Iterator[Stream]:
    headers = {"accept": "text/event-stream"}
    with client.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        yield Stream(response)


def publish(client: httpx.Client, data: str, **headers: str) -> httpx.Response:
    fields = {"data": data}
    return client.post("/events", data=fields, headers=headers)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_each_event_passes_when_it_is_published(site: Site, version: str) -> None:
    http2 = version == "HTTP/2"
    with (
        site.serve(),
        site.nginx(),
        site.client(http2=http2) as client,
        listening(client) as stream,
    ):
        assert stream.response.http_version == version
        [greeting] = stream.next_blocks()
        assert (greeting.data, greeting.retry) == (None, 2000)
        for number in range(3):  # the next is published when the last has come
            event_id = publish(client, str(number)).json()["id"]
            assert stream.next_blocks() == [Event(str(number), id=event_id)]


def test_one_browser_may_have_more_than_six_streams(site: Site) -> None:
    with site.serve(), site.nginx(), site.client() as client, ExitStack() as stack:
        streams = [stack.enter_context(listening(client)) for _ in range(20)]
        for stream in streams:
            stream.next_blocks()
        publish(client, "to all")
        assert {stream.next_blocks()[0].data for stream in streams} == {"to all"}


def test_a_restart_is_told_and_survived(site: Site) -> None:
    with site.nginx(), site.client() as client:
        with site.serve():
            with listening(client) as stream:
                stream.next_blocks()
                site.stop_hub()
                [farewell] = stream.rest()
                assert farewell.comment == "draining"
                assert farewell.retry is not None
            # An EventSource that came now and met a 502 would never come again.
            with listening(client) as stream:
                [block] = stream.rest()
                assert (block.data, block.retry) == (None, None)
            answer = publish(client, "to nobody")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        with site.serve(), listening(client) as stream:
            stream.next_blocks()
            publish(client, "back")
            assert stream.next_blocks()[0].data == "back"


def test_the_hub_must_be_told_the_public_name(site: Site) -> None:
    with site.serve("--keep-alive", "15"), site.nginx(), site.client() as client:
        answer = publish(client, "x")
        assert answer.status_code == 403
        assert "allowed_hosts" in answer.json()["detail"]


def test_the_console_works_and_pages_of_other_origins_do_not(site: Site) -> None:
    with site.serve(), site.nginx(), site.client() as client:
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert publish(client, "from its form", origin=site.origin).status_code == 201
        assert publish(client, "x", origin="https://elsewhere.example").status_code == 403
        # The port is part of an origin, and gets there.
        assert publish(client, "x", origin=f"https://{NAME}").status_code == 403


def test_tokens_in_queries_are_not_logged(site: Site) -> None:
    path = "/events?access_token=secret"
    with site.serve(), site.nginx(), site.client() as client, listening(client, path) as stream:
        stream.next_blocks()
        site.stop_hub()
        stream.rest()
    log = (site.folder / "access.log").read_text()
    assert '"GET /events" 200' in log
    assert "secret" not in log
