"""A real browser: its EventSource on the hub, and the console as a person sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from browser import (
    PATIENCE,
    Browser,
    ServiceProcess,
    eventually,
    open_browser,
    run_service,
    serve_page,
)
from selenium.webdriver.common.keys import Keys

pytestmark = [pytest.mark.exhaustive, pytest.mark.chromium, pytest.mark.timeout(300)]

PAGE = """<!doctype html><title>a page</title><link rel="icon" href="data:,"><script>
const got = [];
function follow(url) {
  const source = new EventSource(url);
  for (const type of ["message", "tick", "gap"])
    source.addEventListener(type, (e) => got.push([e.type, e.data, e.lastEventId]));
  source.addEventListener("open", () => got.push(["open", "", ""]));
}
</script>"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser as a new tab finds it: on no page, with nothing logged or stored."""
    chromium.visit("about:blank")
    chromium.resize(1280, 900)
    chromium.prefer("light")
    chromium.log()
    yield chromium
    chromium.visit("about:blank")  # a page that lives on would talk to the next server


@pytest.fixture
def service() -> Iterator[ServiceProcess]:
    with run_service() as service:
        yield service


def open_console(browser: Browser, service: ServiceProcess) -> None:
    browser.visit(f"{service.url}/")
    browser.wait_text("#state", "connected")


def followed(browser: Browser, number: int) -> list[Any]:
    """What the page has got, once there are so many."""
    return eventually(lambda: got if len(got := browser.run("return got")) >= number else [])


def refused(entry: str) -> bool:
    """Whether a log entry says that there was no server: a browser tells, whatever one does."""
    return "ERR_CONNECTION_REFUSED" in entry


# EventSource.


def test_an_event_source_of_another_origin_receives(browser: Browser) -> None:
    with serve_page(PAGE) as page, run_service("--allow-origin", page) as service:
        browser.visit(page)
        browser.run("follow(arguments[0])", f"{service.url}/events?topic=a")
        followed(browser, 1)
        first = service.publish("one\ntwo", topic="a", type="tick")
        service.publish("not for it", topic="b")
        second = service.publish("\u2028 \U0001f600", topic=["b", "a"])
        assert followed(browser, 3) == [
            ["open", "", ""],
            ["tick", "one\ntwo", first],
            ["message", "\u2028 \U0001f600", second],
        ]
        assert browser.log() == []


def test_after_a_restart_it_comes_back_and_is_told_what_it_missed(browser: Browser) -> None:
    with serve_page(PAGE) as page, run_service("--allow-origin", page) as service:
        browser.visit(page)
        browser.run("follow(arguments[0])", f"{service.url}/events")
        followed(browser, 1)
        old = service.publish("before")
        followed(browser, 2)
        service.restart()
        ids = [service.publish(data) for data in ("after 1", "after 2")]
        got = followed(browser, 6)
        assert [type for type, _, _ in got] == ["open", "message", "open", "gap", *["message"] * 2]
        gap = json.loads(got[3][1])
        assert (gap["reason"], gap["last_event_id"]) == ("epoch", old)
        assert [entry[1:] for entry in got[4:]] == [["after 1", ids[0]], ["after 2", ids[1]]]
        assert [entry for entry in browser.log() if not refused(entry)] == []


# The console.


def test_a_first_look_teaches_what_to_do(browser: Browser, service: ServiceProcess) -> None:
    open_console(browser, service)
    hint = f"curl -d topic=news -d data=hello {service.url}/events"
    browser.wait_text("#hint-publish", hint)
    browser.wait_text("#hint-listen", f"curl -N {service.url}/events")
    browser.wait_text("#n-newest", "none yet")
    browser.wait_text("#session-rows", "this page")
    assert browser.find_all("#session-rows button") == []  # to end what one looks with
    assert browser.log() == []


def test_it_publishes_and_shows_what_is_published(
    browser: Browser, service: ServiceProcess
) -> None:
    open_console(browser, service)
    browser.type("#publish-topic", "news")
    browser.type("#publish-type", "headline")
    browser.type("#publish-data", "from the form")
    browser.click("#publish-form button")
    browser.wait_text("#publish-result", "Published as ")
    event_id = browser.text("#publish-result").removeprefix("Published as ")
    entry = "#event-list li"
    browser.wait_text(entry, "from the form")
    for text in ("news", "headline", event_id):
        assert text in browser.text(entry)
    service.publish("from elsewhere", topic="other")
    browser.wait_text(entry, "from elsewhere")
    browser.wait_text("#n-published", "2")
    browser.wait_text("#n-newest", event_id.replace(".1", ".2"))
    browser.find("#publish-data").send_keys(" again", Keys.CONTROL, Keys.ENTER)
    browser.wait_text(entry, "from the form again")
    assert browser.log() == []


def test_a_problem_is_told_in_the_servers_words(browser: Browser) -> None:
    with run_service("--max-body", "100") as service:
        open_console(browser, service)
        browser.type("#publish-data", "x" * 200)
        browser.click("#publish-form button")
        browser.wait_text("#publish-result", "Not published: the body is larger than 100 bytes")
        browser.log()  # a browser logs every response of an error


def test_sessions_are_shown_and_one_is_ended(browser: Browser, service: ServiceProcess) -> None:
    with service.listener("?topic=a&topic=b") as ended, service.listener("?topic=c") as kept:
        open_console(browser, service)
        browser.wait_text("#n-sessions", "3")
        browser.wait_text("#sessions-count", "3")
        for topic in "abc":
            browser.wait_text("#session-rows .topic", topic)
        service.publish("x", topic="a")
        # The newest first: this page, then who listens to c, then who to a and b.
        rows = "#session-rows tr:nth-child"
        browser.wait_text(f"{rows}(3) td:nth-child(6)", "1")
        browser.click(f"{rows}(3) button")
        browser.wait_text("#confirm-heading", "End session ")
        browser.find("dialog").send_keys(Keys.ESCAPE)
        eventually(lambda: not browser.find("dialog").is_displayed())
        assert browser.text("#session-result") == ""
        browser.click(f"{rows}(3) button")
        browser.click("dialog .danger")
        browser.wait_text("#session-result", "was ended")
        browser.wait_text("#sessions-ended", "application 1")
        browser.wait_text("#n-sessions", "2")
        assert b"data: x\n\n" in ended.read()  # to the end of the response, which is there
        service.publish("y", topic="c")
        while kept.readline() != b"data: y\n":
            pass
    browser.wait_text("#sessions-ended", "client-left 1")
    assert browser.log() == []


MCP_SERVER = "from mcp.server import MCPServer\nserver = MCPServer('demo')\n"


def test_sessions_of_the_model_context_protocol(browser: Browser, tmp_path: Path) -> None:
    """One token, asked for once; sessions and nothing else; what clients say stays text."""
    server = tmp_path / "demo.py"
    server.write_text(MCP_SERVER)
    with run_service("--token", "hush", command=["mcp", f"{server}:server"]) as service:
        browser.resize(360, 740)
        browser.visit(f"{service.url}/")
        browser.wait_text("#token-why", "Watching this server, and ending sessions, needs its")
        browser.type("#token-input", "hush")
        browser.click("#token-form button")
        browser.wait_text("#state", "connected")
        browser.wait_text("#sessions-empty", f"to give to one:\n{service.url}/mcp")
        for name in ("#events", "#publish", ".plots", "#n-published"):
            assert not browser.find(name).is_displayed(), name
        hello = {"name": "<img src=x onerror='window.hacked = 1'>", "version": "7"}
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": hello}
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
        headers = {
            "accept": "application/json, text/event-stream",
            "authorization": "Bearer hush",
            "content-type": "application/json",
        }
        body = json.dumps(message).encode()
        with urlopen(Request(f"{service.url}/mcp", body, headers), timeout=PATIENCE) as response:
            assert response.status == 200
        said = f"{hello['name']} 7 · 2025-11-25"
        browser.wait_text("#session-rows tr td:nth-child(3)", said)
        assert browser.run("return document.documentElement.scrollWidth") <= 360
        browser.resize(1280, 900)
        heads = [head.text for head in browser.find_all("#sessions th") if head.is_displayed()]
        assert heads[:4] == ["Session", "Client", "Says it is", "Age"]
        [cells] = [
            [cell.text for cell in row.find_elements("css selector", "td")]
            for row in browser.find_all("#session-rows tr:not(.own)")
        ]
        assert (len(cells), cells[2], cells[4]) == (5, said, "End")
        browser.click("#session-rows tr:not(.own) button")
        browser.click("dialog .danger")
        browser.wait_text("#session-result", "was ended")
        browser.wait_text("#sessions-ended", "application 1")
        assert browser.run("return window.hacked") is None
        refused_once = [entry for entry in browser.log() if not refused(entry)]
        assert all("401" in entry for entry in refused_once), refused_once


HOSTILE = [
    "<img src=x onerror='window.hacked = 1'>",
    "</script><script>window.hacked = 1</script>",
    "<svg onload=window.hacked=1>",
    "javascript:window.hacked=1",
    "{{constructor.constructor('window.hacked=1')()}}",
    "\u202eevil.txt\u2066\u202d",
    "שלום עולם",
    "👩\u200d👩\u200d👧\u200d👦 \U0001f1ec\U0001f1e7 Z͑ͫ̓ͪ̂ͫ̽͏̴̙A̴̵̜̰͔ͫ͗͢L",
    "\u2028\u2029\x85",
    "x" * 100_000,
    "\n" * 300,
]


def test_what_publishers_send_stays_text(browser: Browser, service: ServiceProcess) -> None:
    open_console(browser, service)
    browser.resize(360, 740)
    for text in HOSTILE:
        name = text[:1_000].replace("\n", " ").strip() or "x"
        service.publish(text, topic=[name, "end"], type=name)
    service.publish("the last", topic="end")
    browser.wait_text("#event-list li", "the last")
    shown = browser.run("return [...document.querySelectorAll('pre.data')].map(e => e.textContent)")
    assert shown == ["the last", *(text[:2_000] for text in reversed(HOSTILE))]
    assert browser.find_all("#events img, #events svg, #events script, #events a") == []
    assert browser.run("return window.hacked") is None
    browser.wait_text("#event-list .cut", "Cut here: 2,000 characters of an event of 101 kB.")
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.log() == []


def test_after_a_restart_the_console_comes_back(browser: Browser, service: ServiceProcess) -> None:
    service.publish("before")
    open_console(browser, service)
    browser.wait_text("#event-list li", "before")
    assert service.stop() == 0
    # It was told of the drain, or it would say that the connection was lost.
    browser.wait_text("#state", "reconnecting: the server has shut down")
    service.start()
    service.publish("after")
    browser.wait_text("#state", "connected")
    browser.wait_text("#event-list li", "after")
    assert [entry.text.splitlines()[-1] for entry in browser.find_all("#event-list li")] == [
        "after",
        "The log began anew here.",
        "before",
    ]
    assert [entry for entry in browser.log() if not refused(entry)] == []


def test_a_server_that_refuses_is_tried_again(browser: Browser) -> None:
    with run_service("--max-sessions", "1") as service:
        with service.listener():
            browser.visit(f"{service.url}/")
            browser.wait_text("#state", "reconnecting")
            browser.log()  # a browser logs every response of an error
        browser.wait_text("#state", "connected")


def test_tokens_are_asked_for_and_kept_in_the_tab(browser: Browser) -> None:
    with run_service("--subscribe-token", "sub", "--publish-token", "pub") as service:
        browser.visit(f"{service.url}/")
        browser.wait_text("#token-why", "subscribe token")
        assert browser.log() == []  # nothing was tried without one
        browser.type("#token-input", "wrong" + Keys.ENTER)
        browser.wait_text("#token-why", "That token was not accepted.")
        browser.log()  # a browser logs every response of an error
        browser.type("#token-input", "sub" + Keys.ENTER)
        browser.wait_text("#state", "connected")
        assert not browser.find("#token").is_displayed()
        browser.type("#publish-data", "with a token")
        browser.click("#publish-form button")
        browser.wait_text("#token-why", "publish token")
        browser.type("#token-input", "pub" + Keys.ENTER)
        browser.wait_text("#event-list li", "with a token")
        browser.driver.refresh()
        browser.wait_text("#event-list li", "with a token")
        assert browser.run("return [document.cookie, localStorage.length]") == ["", 0]
        assert browser.log() == []


def test_the_list_can_be_paused_and_filtered(browser: Browser, service: ServiceProcess) -> None:
    open_console(browser, service)
    for number in range(3):
        service.publish(f"apple {number}", topic="apples")
        service.publish(f"pear {number}", topic="pears")
    browser.wait_text("#event-list li", "pear 2")
    browser.type("#filter", "PEAR")
    browser.wait_text("#events-count", "3 of the last 6")
    visible = [entry.text for entry in browser.find_all("#event-list li") if entry.is_displayed()]
    assert [text.splitlines()[-1] for text in visible] == ["pear 2", "pear 1", "pear 0"]
    browser.type("#filter", "plums")
    browser.wait_text("#events-none", "None of the last 6 events")
    browser.find("#filter").send_keys(*[Keys.BACKSPACE] * 5)
    browser.click("#pause")
    service.publish("meanwhile", topic="pears")
    browser.wait_text("#pause", "Resume, 1 new")
    assert "meanwhile" not in browser.text("#event-list")
    browser.click("#pause")
    browser.wait_text("#event-list li", "meanwhile")
    browser.wait_text("#pause", "Pause")
    assert browser.log() == []


def test_a_hundred_events_are_kept(browser: Browser, service: ServiceProcess) -> None:
    open_console(browser, service)
    for number in range(120):
        service.publish(f"number {number};")
    browser.wait_text("#event-list li", "number 119;")
    entries = browser.find_all("#event-list li")
    assert len(entries) == 100
    assert browser.log() == []


def test_rates_are_drawn(browser: Browser, service: ServiceProcess) -> None:
    with service.listener():
        open_console(browser, service)
        eventually(lambda: browser.find_all("#plot-delivered path.line"))
        service.publish("x")
        for plot in ("#plot-published", "#plot-delivered"):
            label = f"return document.querySelector('{plot} svg').getAttribute('aria-label')"
            eventually(lambda label=label: "0 at most" not in browser.run(label))  # type: ignore[misc]  # mypy infers no type for a lambda's default
            assert [tick.text for tick in browser.find_all(f"{plot} text")] == [
                *("0", "1", "2"),
                *("2 min ago", "1 min ago", "now"),
            ]
    assert browser.log() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1280])
def test_every_control_has_a_name_and_every_text_stands_out(
    browser: Browser, service: ServiceProcess, scheme: str, width: int
) -> None:
    browser.resize(width, 740)
    browser.prefer(scheme)
    with service.listener("?" + "&".join(f"topic={'long-' * 8}{n}" for n in range(12))):
        open_console(browser, service)
        service.publish("x" * 1_000, topic="t", type="y")
        browser.wait_text("#event-list li", "Show more")
        browser.wait_text("#session-rows button", "End")
        assert browser.run("return document.documentElement.scrollWidth") <= width
        for node in browser.devtools("Accessibility.getFullAXTree")["nodes"]:
            if node["role"]["value"] in ("button", "textbox", "searchbox", "image", "dialog"):
                assert node["ignored"] or node["name"]["value"], node
        assert browser.run(CONTRASTS) == []
        assert browser.log() == []


# Texts whose colour has less than 4.5 : 1 to what is behind (WCAG 2.2, 1.4.3).
CONTRASTS = r"""
const rgb = (text) => text.match(/[\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b]
  .map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
function behind(node) {
  for (; node; node = node.parentElement) {
    const colour = rgb(getComputedStyle(node).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
}
const low = [];
for (const node of document.querySelectorAll("body *")) {
  const style = getComputedStyle(node);
  const says = [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!says || !node.checkVisibility({visibilityProperty: true})) continue;
  const front = light(rgb(node instanceof SVGElement ? style.fill : style.color));
  const back = light(behind(node));
  const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
  if (ratio < 4.5) low.push([node.outerHTML.slice(0, 80), ratio]);
}
return low;
"""
