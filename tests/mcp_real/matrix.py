"""The clients of the matrix, what each of them is run as, and the table of what they can do."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mcp_real.harness import HERE, Node, Proxy, run

PAGE: Final = HERE.parent.parent / "docs" / "mcp-clients.md"
FEATURES: Final = {
    "connect": "connect",
    "list": "list",
    "call": "call",
    "progress": "progress",
    "sample": "sample",
    "elicit": "elicit",
    "notified": "be notified",
    "cancel": "cancel",
    "resume": "resume after a cut",
    "end": "end",
}
"""Each feature, and its column's head."""
REASONS: Final = {
    "HTTP+SSE has no event ids": "a",
    "the revision has no resuming": "b",
    "the program has no means for it": "c",
    "the program leaves its session to the server's limit on idle ones": "d",
    "the program has nobody to ask, and answers that the user cancelled": "e",
}
"""Why a client may do without a feature, or what there is to say of it; and the mark for that."""
INSPECTOR: Final = "@modelcontextprotocol/inspector"

Line = dict[str, Any]


@dataclass(frozen=True)
class Client:
    title: str
    version: Callable[[Node], str]
    transport: str
    revision: str
    lines: Callable[[Node, Path, Proxy], list[Line]]
    """Run it, with the directory of the scripts: a line for each feature."""


def _script(script: str, how: str, path: str) -> Callable[[Node, Path, Proxy], list[Line]]:
    def lines(node: Node, folder: Path, proxy: Proxy) -> list[Line]:
        url = f"{proxy.origin}{path}"
        if script.endswith(".py"):
            output = run([sys.executable, str(HERE / script), how, url])
        else:
            output = run(node.command(script, how, url), cwd=folder)
        found = [line for line in output.splitlines() if line.startswith("{")]
        assert found, output
        return [json.loads(line) for line in found]

    return lines


def _inspector(era: str, transport: str, path: str) -> Callable[[Node, Path, Proxy], list[Line]]:
    """A program that is run anew for each request."""

    def lines(node: Node, folder: Path, proxy: Proxy) -> list[Line]:
        program = str(node.modules / INSPECTOR / "clients" / "launcher" / "build" / "index.js")
        options = ["--cli", "--server-url", f"{proxy.origin}{path}", "--transport", transport]
        options += ["--protocol-era", era, "--format", "json"]
        environment = {"HOME": str(folder), "PATH": ""}

        def ask(*args: str) -> Any:
            output = run(node.command(program, *options, *args), env=environment, cwd=folder)
            try:
                return json.loads(output)["result"]
            except (ValueError, KeyError):
                raise AssertionError(output) from None

        def call(tool: str, *args: str) -> str:
            result = ask("--method", "tools/call", "--tool-name", tool, *args)
            text: str = result["content"][0]["text"]
            return text

        def listed() -> bool:
            tools = ask("--method", "tools/list")["tools"]
            resources = ask("--method", "resources/list")["resources"]
            prompts = ask("--method", "prompts/list")["prompts"]
            return bool(tools and resources and prompts)

        def cancels() -> bool:
            text = call("test_elicitation", "--tool-arg", "message=?")
            return text == "User response: action=cancel, content=null"

        no_resume = {"sse": "HTTP+SSE has no event ids"}.get(
            transport, "the revision has no resuming"
        )
        tests: dict[str, Callable[[], bool] | str] = {
            "connect": lambda: "tools" in ask("--method", "tools/list"),
            "list": listed,
            "call": lambda: "simple text" in call("test_simple_text"),
            "progress": "the program has no means for it",
            "sample": "the program has no means for it",
            "elicit": "the program has no means for it" if era == "modern" else cancels,
            "notified": "the program has no means for it",
            "cancel": "the program has no means for it",
            "resume": (lambda: call("test_cut") == "answered after the cut")
            if (era, transport) == ("legacy", "http")
            else no_resume,
            "end": "" if transport == "sse" or era == "modern" else
            "the program leaves its session to the server's limit on idle ones",
        }  # fmt: skip
        outcomes = [_outcome(name, test) for name, test in tests.items()]
        for outcome in outcomes:
            if outcome["feature"] == "elicit" and "ok" in outcome:
                outcome["note"] = (
                    "the program has nobody to ask, and answers that the user cancelled"
                )
        return outcomes

    return lines


def _outcome(name: str, test: Callable[[], bool] | str) -> Line:
    if test == "":
        return {"feature": name, "ok": True}
    if isinstance(test, str):
        return {"feature": name, "none": test}
    try:
        return {"feature": name, "ok": test()}
    except AssertionError as error:
        return {"feature": name, "ok": False, "detail": str(error)}


def _of_node(package: str) -> Callable[[Node], str]:
    return lambda node: node.version(package)


_TS_1: Final = "TypeScript SDK, first line"
_TS_2: Final = "TypeScript SDK, second line"
_V1: Final = _of_node("@modelcontextprotocol/sdk")
_V2: Final = _of_node("@modelcontextprotocol/client")
_HTTP: Final = "Streamable HTTP"
_SSE: Final = "HTTP+SSE"


def _python(node: Node) -> str:
    return importlib.metadata.version("mcp")


_of_inspector = _of_node(INSPECTOR)
CLIENTS: Final = {
    "typescript-1": Client(
        _TS_1, _V1, _HTTP, "2025-11-25", _script("typescript_1.mjs", "http", "/mcp")
    ),
    "typescript-1-sse": Client(
        _TS_1, _V1, _SSE, "2025-11-25", _script("typescript_1.mjs", "sse", "/sse")
    ),
    "typescript-2": Client(
        _TS_2, _V2, _HTTP, "2025-11-25", _script("typescript_2.mjs", "legacy", "/mcp")
    ),
    "typescript-2-modern": Client(
        _TS_2, _V2, _HTTP, "2026-07-28", _script("typescript_2.mjs", "modern", "/mcp")
    ),
    "typescript-2-sse": Client(
        _TS_2, _V2, _SSE, "2025-11-25", _script("typescript_2.mjs", "sse", "/sse")
    ),
    "python": Client(
        "Python SDK, on Trio", _python, _HTTP, "2025-11-25",
        _script("python_client.py", "legacy", "/mcp"),
    ),
    "python-modern": Client(
        "Python SDK, on Trio", _python, _HTTP, "2026-07-28",
        _script("python_client.py", "modern", "/mcp"),
    ),
    "python-sse": Client(
        "Python SDK, on Trio", _python, _SSE, "2025-11-25",
        _script("python_client.py", "sse", "/sse"),
    ),
    "inspector": Client(
        "Inspector, `--cli`", _of_inspector, _HTTP, "2025-11-25",
        _inspector("legacy", "http", "/mcp"),
    ),
    "inspector-modern": Client(
        "Inspector, `--cli`", _of_inspector, _HTTP, "2026-07-28",
        _inspector("modern", "http", "/mcp"),
    ),
    "inspector-sse": Client(
        "Inspector, `--cli`", _of_inspector, _SSE, "2025-11-25",
        _inspector("legacy", "sse", "/sse"),
    ),
}  # fmt: skip


# The page.

HEAD: Final = (
    f"| client | version | transport | revision | {' | '.join(FEATURES.values())} |\n"
    f"| --- | --- | --- | --- |{' --- |' * len(FEATURES)}"
)


def row(client: Client, node: Node, lines: list[Line]) -> str:
    """The client's row, from what it said."""
    said = {line["feature"]: line for line in lines}
    cells = [_cell(said.get(name)) for name in FEATURES]
    about = [client.title, client.version(node), client.transport, client.revision]
    return f"| {' | '.join([*about, *cells])} |"


def _cell(line: Line | None) -> str:
    if line is None:
        return "not tried"
    if "none" in line:
        return f"- ({REASONS[line['none']]})"
    note = f" ({REASONS[line['note']]})" if "note" in line else ""
    return f"yes{note}" if line["ok"] else "**no**"


def notes() -> str:
    return "\n".join(f"- ({mark}) {reason}" for reason, mark in REASONS.items())


def put_row(page: str, client: Client, new: str) -> str:
    """The page with this client's row in its place."""
    same = [client.title, client.transport, client.revision]
    pattern = r"^\| {} \| [^|]* \| {} \| {} \|.*\|$".format(*map(re.escape, same))
    if re.search(pattern, page, re.MULTILINE):
        return re.sub(pattern, lambda _: new, page, flags=re.MULTILINE)
    before, table, after = page.partition(HEAD)
    rows = re.match(r"(?:\n\|.*)*", after)
    assert table
    assert rows
    return f"{before}{table}{rows[0]}\n{new}{after[rows.end() :]}"
