"""Directives that make tables from the code, so that these cannot say something else.

``settings-table`` is what ``trio-sse serve`` can be told, ``mcp-settings-table`` what ``trio-sse
mcp`` can, ``metrics-table`` what they tell Prometheus. They are for pages in Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import click
from sphinx.util.docutils import SphinxDirective

from trio_sse import Hub
from trio_sse.cli import main
from trio_sse.metrics import HubCollector

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

Row = tuple[str, str, str]


def settings(command: click.Command) -> Iterator[Row]:
    """Each option of a command."""
    yield "Flag", "Default", "Meaning"
    context = click.Context(command, show_default=True)
    for option in command.params:
        if not isinstance(option, click.Option) or option.name == "help":
            continue
        names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
        metavar = option.make_metavar(context).replace("INTEGER RANGE", "NUMBER")
        value = "" if option.is_flag else f" *{metavar}*"
        default = option.show_default  # in words, where it depends on something else
        if not isinstance(default, str):
            default = option.get_default(context)
        yield names + value, _default(default, is_flag=option.is_flag), option.help or ""


def _default(value: Any, *, is_flag: bool) -> str:
    if is_flag:
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return " ".join(f"`{each}`" for each in value)
    # Where there is none, click has an object of its own to say so.
    return f"`{value}`" if isinstance(value, (str, int, float)) else ""


def metrics() -> Iterator[Row]:
    """Each metric of a hub."""
    yield "Name", "Kind", "Meaning"
    for family in HubCollector(Hub()).collect():
        suffix = "_total" if family.type == "counter" else ""
        labels = sorted({label for sample in family.samples for label in sample.labels})
        by = "".join(f", by `{label}`" for label in labels)
        yield f"`{family.name}{suffix}`", family.type + by, family.documentation


class Table(SphinxDirective):
    """A table of what the code says."""

    makers: ClassVar[dict[str, Callable[[], Iterator[Row]]]] = {
        "settings-table": partial(settings, main.commands["serve"]),
        "mcp-settings-table": partial(settings, main.commands["mcp"]),
        "metrics-table": metrics,
    }

    def run(self) -> list[nodes.Node]:
        head, *rows = self.makers[self.name]()
        lines = [_line(row) for row in (head, ("---", "---", "---"), *rows)]
        return self.parse_text_to_nodes("\n".join(lines))


def _line(cells: Row) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def setup(app: Sphinx) -> None:
    for name in Table.makers:
        app.add_directive(name, Table)
