"""The plots of the benchmark page: one bar for each server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from report import Figures

_OURS: Final = "#1f6f8b"
_OTHERS: Final = "#b9c0c7"
_LIMIT: Final = "#e3b448"
_PLOTS: Final = (
    ("blast", "deliveries_per_s", "Deliveries a second in a blast", True),
    ("single", "cpu_us_per_delivery", "CPU time of one delivery, µs (less is better)", False),
    ("paced", "p99_ms", "99 % of events are there after, ms (less is better)", False),
    ("connects", "per_s", "New sessions a second", False),
    ("many", "kib_per_session", "Memory of a session, KiB (less is better)", False),
)


def draw(figures: Figures, directory: Path) -> list[tuple[str, str]]:
    """Write an SVG for each scenario that was measured; file names, and what they show."""
    mpl.rcParams["svg.hashsalt"] = "trio-sse"  # the same figures make the same file
    mpl.rcParams["font.family"] = "DejaVu Sans"
    drawn: list[tuple[str, str]] = []
    for scenario, name, title, logarithmic in _PLOTS:
        values = {
            server: value
            for server in figures.measured(scenario)
            if (value := figures.median(scenario, server, name)) is not None
        }
        if values:
            file = f"benchmarks-{scenario}.svg"
            figure = _bars(figures, values, title, logarithmic=logarithmic)
            figure.savefig(directory / file, format="svg", metadata={"Date": None})
            drawn.append((file, title))
    return drawn


def _bars(figures: Figures, values: dict[str, float], title: str, *, logarithmic: bool) -> Figure:
    figure = Figure(figsize=(8, 0.6 + 0.34 * len(values)), layout="constrained")
    axes = figure.subplots()
    servers = list(reversed(values))
    bars = axes.barh(
        [figures.servers[server]["title"] for server in servers],
        [values[server] for server in servers],
        color=[_colour(server) for server in servers],
        height=0.7,
        log=logarithmic,
    )
    axes.bar_label(bars, labels=[_label(values[s]) for s in servers], padding=4, fontsize=9)
    axes.set_title(title + (" (logarithmic)" if logarithmic else ""), fontsize=11, loc="left")
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    axes.minorticks_off()
    axes.tick_params(axis="y", left=False, labelsize=9)
    axes.margins(x=0.12)
    return figure


def _colour(server: str) -> str:
    return _LIMIT if server == "raw" else _OURS if server.startswith("trio-sse") else _OTHERS


def _label(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
