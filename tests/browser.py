"""A real Chromium for the tests that are marked ``chromium``, and a server for it to visit."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any, Final, TypeVar

from _parts import PARTS, require
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

PATIENCE: Final = 60.0
"""Seconds after which something that should happen is taken not to happen."""

_FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
)

T = TypeVar("T")


def eventually(look: Callable[[], T]) -> T:
    """What ``look`` returns once that is true. It is asked again and again, with a limit."""
    give_up_at = time.monotonic() + PATIENCE
    while True:
        try:
            found = look()
        except StaleElementReferenceException:
            found = None  # the page has replaced it meanwhile
        if found:
            return found
        assert time.monotonic() < give_up_at, f"it did not happen within {PATIENCE:g} s"
        time.sleep(0.05)


class Browser:
    """A browser with one tab."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def visit(self, url: str) -> None:
        self.driver.get(url)

    def resize(self, width: int, height: int) -> None:
        """Give the page a viewport of this size in CSS pixels, however narrow."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def prefer(self, colour_scheme: str) -> None:
        """Have the page think that the system is set to ``"light"`` or ``"dark"``."""
        feature = {"name": "prefers-color-scheme", "value": colour_scheme}
        self.devtools("Emulation.setEmulatedMedia", features=[feature])

    def devtools(self, command: str, **arguments: object) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def run(self, script: str, *arguments: object) -> Any:
        """Run ``script`` in the page; what it returns."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """The visible text of the first element that matches."""
        return self.find(selector).text

    def wait_text(self, selector: str, text: str) -> None:
        """Wait until the element's visible text contains ``text``."""
        eventually(lambda: any(text in each.text for each in self.find_all(selector)))

    def type(self, selector: str, text: str) -> None:
        field = self.find(selector)
        field.clear()
        field.send_keys(text)

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def log(self) -> list[str]:
        """What the browser has logged since this was last called: errors and warnings too."""
        entries = self.driver.get_log("browser")
        return [f"{entry['level']}: {entry['message']}" for entry in entries]


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A fresh Chromium, without a window; gone with all it wrote when this ends."""
    options = ChromeOptions()
    options.binary_location = _program(0)
    with ExitStack() as stack:
        profile = tempfile.mkdtemp(prefix="chromium-")
        stack.callback(shutil.rmtree, profile, ignore_errors=True)
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = Chrome(options=options, service=Service(executable_path=_program(1)))
        stack.callback(driver.quit)
        driver.set_script_timeout(PATIENCE)
        yield Browser(driver)


def _program(index: int) -> str:
    names, how_to_get = list(PARTS["chromium"].items())[index]
    return require(names, how_to_get)


@contextmanager
def serve_page(page: str) -> Iterator[str]:
    """One HTML page on an origin of its own, which is handed out."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *args: object) -> None:
            pass  # not between the tests' dots

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class ServiceProcess:
    """``trio-sse serve``, or what else serves, as a process of its own."""

    def __init__(self, port: int, *options: str, command: Sequence[str] = ("serve",)) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._command = [
            *(sys.executable, "-m", "trio_sse", *command),
            *("--bind", f"127.0.0.1:{port}", *options),
        ]
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self.lines: list[str] = []  # of its standard error, so far

    def start(self) -> None:
        """Start it, and wait until it serves."""
        process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._process = process
        assert process.stderr is not None
        for line in process.stderr:
            self.lines.append(line)
            if line.startswith("trio-sse serves"):
                break
        else:
            raise AssertionError("the service did not start:\n" + "".join(self.lines))
        self._reader = threading.Thread(target=self.lines.extend, args=[process.stderr])
        self._reader.start()

    def publish(self, data: str, *, token: str | None = None, **fields: object) -> str:
        """Publish an event; its id."""
        body = json.dumps({"data": data, **fields}).encode()
        headers = {"content-type": "application/json"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        request = urllib.request.Request(f"{self.url}/events", body, headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            event_id: str = json.load(response)["id"]
            return event_id

    @contextmanager
    def listener(self, query: str = "") -> Iterator[IO[bytes]]:
        """A client that subscribes; its stream, which is silent until it is read."""
        url = f"{self.url}/events{query}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            yield response

    def stop(self) -> int:
        """Send SIGINT, as Ctrl-C does, and wait; the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        return self._wait()

    def kill(self) -> None:
        """End it as a crash would; nothing if it has ended already."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._wait()

    def _wait(self) -> int:
        assert self._process is not None
        assert self._reader is not None
        try:
            return self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._reader.join()
            assert self._process.stderr is not None
            self._process.stderr.close()

    def restart(self) -> None:
        """Stop it, and start another in its place."""
        assert self.stop() == 0
        self.start()


@contextmanager
def run_service(*options: str, command: Sequence[str] = ("serve",)) -> Iterator[ServiceProcess]:
    """The service on a free port, until this ends."""
    service = ServiceProcess(free_port(), *options, command=command)
    try:
        service.start()
        yield service
    finally:
        service.kill()
