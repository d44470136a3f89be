"""What the service is to reach, and whether a run shows that it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from report import Figures

_OURS: Final = "trio-sse"
_NOT_PYTHON: Final = ("better-sse", "nchan")


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """What was measured, and whether it is enough; ``None`` if it was not measured."""

    measured: str
    reached: bool | None


_UNKNOWN: Final = Verdict("-", None)


@final
@dataclass(frozen=True, slots=True)
class Target:
    """A claim about a scenario."""

    scenario: str
    what: str
    text: str
    judge: Callable[[Figures], Verdict]


def _at_most(scenario: str, name: str, most: float, form: str) -> Callable[[Figures], Verdict]:
    def judge(figures: Figures) -> Verdict:
        value = figures.median(scenario, _OURS, name)
        return _UNKNOWN if value is None else Verdict(form.format(value), value <= most)

    return judge


def _at_least(scenario: str, name: str, least: float, form: str) -> Callable[[Figures], Verdict]:
    def judge(figures: Figures) -> Verdict:
        value = figures.median(scenario, _OURS, name)
        return _UNKNOWN if value is None else Verdict(form.format(value), value >= least)

    return judge


def _times(
    scenario: str, name: str, others: tuple[str, ...], least: float, *, less: bool = False
) -> Callable[[Figures], Verdict]:
    """How many times the best of the others' figure ours is; with ``less``, theirs is of ours."""

    def judge(figures: Figures) -> Verdict:
        ours = figures.median(scenario, _OURS, name)
        found = [figures.median(scenario, other, name) for other in others]
        theirs = [value for value in found if value is not None]
        if ours is None or not theirs:
            return _UNKNOWN
        ratio = figures.ratio(min(theirs), ours) if less else figures.ratio(ours, max(theirs))
        return _UNKNOWN if ratio is None else Verdict(f"{ratio:.2f} times", ratio >= least)

    return judge


def _drained(figures: Figures) -> Verdict:
    told = figures.median("many", _OURS, "told_goodbye")
    whole = figures.median("many", _OURS, "ended_properly")
    took = figures.median("many", _OURS, "last_stream_s")
    if told is None or whole is None or took is None:
        return _UNKNOWN
    return Verdict(
        f"{took:.1f} s, {told:.1%} told, {whole:.1%} ended properly",
        told == 1 and whole == 1 and took <= 5,
    )


def _stalled_ended(figures: Figures) -> Verdict:
    wanted = figures.sizes["stalled"]["stalled"]
    too_slow = figures.median("stalled", _OURS, "too_slow")
    if too_slow is None:
        return _UNKNOWN
    return Verdict(f"{too_slow:.0f} of {wanted}", too_slow == wanted)


def _others_unhurt(figures: Figures) -> Verdict:
    free = figures.median("stalled", _OURS, "p99_ms_free")
    stalled = figures.median("stalled", _OURS, "p99_ms_stalled")
    ratio = figures.ratio(stalled, free)
    return _UNKNOWN if ratio is None else Verdict(f"{ratio:.2f} times", ratio <= 2)


def _others_complete(figures: Figures) -> Verdict:
    """A round in which one of them missed anything has a problem and no figures."""
    problems = figures.problems("stalled", _OURS)
    known = figures.median("stalled", _OURS, "too_slow")
    if known is None and not problems:
        return _UNKNOWN
    return Verdict("everything" if not problems else problems[0], not problems)


TARGETS: Final = (
    Target(
        "blast",
        "blast",
        "≥ 1,000,000 deliveries/s",
        _at_least("blast", "deliveries_per_s", 1e6, "{:,.0f}"),
    ),
    Target(
        "blast",
        "beside sse-starlette on uvloop",
        "≥ 20 times",
        _times("blast", "deliveries_per_s", ("sse-starlette",), 20),
    ),
    Target(
        "blast",
        "beside the best peer that is not in Python",
        "≥ 3 times",
        _times("blast", "deliveries_per_s", _NOT_PYTHON, 3),
    ),
    Target(
        "single",
        "one event at a time",
        "≤ 8 µs CPU for a delivery",
        _at_most("single", "cpu_us_per_delivery", 8, "{:.1f} µs"),
    ),
    Target(
        "single",
        "plain ASGI on hypercorn-trio beside it",
        "≥ 5 times the cost",
        _times("single", "cpu_us_per_delivery", ("hypercorn-trio",), 5, less=True),
    ),
    Target(
        "single",
        "a loop of socket.send beside it",
        "≥ 0.7 times the cost",
        _times("single", "cpu_us_per_delivery", ("raw",), 0.7, less=True),
    ),
    Target(
        "paced", "ten events a second", "median ≤ 6 ms", _at_most("paced", "p50_ms", 6, "{:.1f} ms")
    ),
    Target("paced", "the same", "99 % ≤ 15 ms", _at_most("paced", "p99_ms", 15, "{:.1f} ms")),
    Target(
        "many",
        "a session among many",
        "≤ 20 KiB",
        _at_most("many", "kib_per_session", 20, "{:.1f} KiB"),
    ),
    Target(
        "many",
        "a delivery to many, beside one to few",
        "≤ 1.3 times",
        _at_most("many", "ratio_to_few", 1.3, "{:.2f} times"),
    ),
    Target("many", "drained, all told goodbye", "≤ 5 s", _drained),
    Target(
        "connects",
        "new sessions",
        "≥ 2,500/s",
        _at_least("connects", "per_s", 2500, "{:,.0f}/s"),
    ),
    Target("stalled", "what readers get while others stall", "everything", _others_complete),
    Target("stalled", "those that stall", "ended as too slow", _stalled_ended),
    Target(
        "stalled",
        "memory meanwhile",
        "≤ 64 MB above idle",
        _at_most("stalled", "mb_above_idle_stalled", 64, "{:.0f} MB"),
    ),
    Target("stalled", "99 % of the others, beside no stall", "≤ 2 times", _others_unhurt),
    Target(
        "dispatch", "a publish to nobody", "≤ 10 µs", _at_most("dispatch", "us", 10, "{:.1f} µs")
    ),
)
