"""What is measured: each scenario loads one server once, and says what it found."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, final

from processes import HERE, cores, json_output
from servers import Kind, Running, started
from sseload import BUSY, load

_JSON: Final = "Content-Type: application/json"
_BODY: Final = '{"data": "{stamp}{pad}"}'


@final
@dataclass(slots=True)
class Found:
    """Figures by name, and what was not as it should be: then they do not count."""

    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def check_delivery(self, result: dict[str, Any]) -> None:
        """Every event once, in order, on every stream; and the load could keep up."""
        seen = result["delivery"]
        expected = result["events_expected"]
        if result["connect"]["opened"] < result["n"]:
            self.problems.append(f"{result['n'] - result['connect']['opened']} did not connect")
        if expected and (seen["least"], seen["most"]) != (expected, expected):
            self.problems.append(
                f"lost events: {seen['least']} to {seen['most']} of {expected} on each stream"
            )
        for what in ("duplicates", "gaps", "backwards", "late_starts"):
            if seen[what]:
                self.problems.append(f"{what.replace('_', ' ')}: {seen[what]}")
        if seen["timed_out"]:
            self.problems.append("timed out")
        if result.get("errors"):
            self.problems.append(f"errors: {result['errors']}")
        self.check_load(result["busy"])

    def check_load(self, busy: float) -> None:
        self.figures["load_busy"] = busy
        if busy > BUSY:
            self.remarks.append(f"the load generator used {busy:.0%} of its cores")


@final
@dataclass(frozen=True, slots=True)
class Scenario:
    """Something to measure.

    Attributes:
        run: measures a server, with these sizes.
        sizes: how much, for real and ``quick``.
        only: the servers it is for; all if empty.
        without: servers it is not for.
    """

    name: str
    title: str
    run: Callable[[Kind, dict[str, int]], Found]
    sizes: dict[str, int]
    quick: dict[str, int]
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def is_for(self, kind: Kind) -> bool:
        return kind.name not in self.without and (not self.only or kind.name in self.only)


def _publishing(server: Running, *, events: int, size: int, rate: float = 0) -> dict[str, Any]:
    """The load generator's options to have so many events published by the server itself.

    Where it cannot, they are posted one after the other.
    """
    if server.kind.has_blast:
        url = server.blast_url(events=events, size=size, rate=rate)
        return {"events": events, "post": url, "post_n": 1}
    return {**_posting(server, events=events, size=size), "post_rate": rate}


def _posting(server: Running, *, events: int, size: int) -> dict[str, Any]:
    return {
        "events": events,
        "post": server.events,
        "post_n": events,
        "post_size": size,
        "post_body": _BODY,
        "post_H": _JSON,
    }


def _post(found: Found, kind: Kind, sessions: int, events: int, **pace: float) -> dict[str, Any]:
    """What the load generator saw of events that were posted, at a ``pace``; checked."""
    with started(kind, blast=False) as server:
        result = load(
            server.events,
            n=sessions,
            hold="500ms",
            seconds=120,
            pid=server.pid,
            **_posting(server, events=events, size=128),
            **pace,
        )
    found.check_delivery(result)
    return result


def _cpu_per_delivery(result: dict[str, Any]) -> float:
    cpu: float = result["server"]["cpu_run_s"]
    deliveries: int = result["delivery"]["events"]
    return cpu * 1e6 / max(deliveries, 1)


def blast(kind: Kind, sizes: dict[str, int]) -> Found:
    """All at once: how many deliveries a second, from the POST to the last of them."""
    found = Found()
    with started(kind, blast=True) as server:
        result = load(
            server.events,
            n=sizes["sessions"],
            hold="500ms",
            seconds=120,
            pid=server.pid,
            **_publishing(server, events=sizes["events"], size=128),
        )
    found.check_delivery(result)
    found.figures |= {
        "deliveries_per_s": result["delivery"].get("per_s", 0.0),
        "cpu_us_per_delivery": _cpu_per_delivery(result),
    }
    return found


def single(kind: Kind, sizes: dict[str, int]) -> Found:
    """One event, and the next when all have it: what a delivery costs the server."""
    found = Found()
    alone = _post(found, kind, 1, sizes["events_to_one"], post_wait=True)
    result = _post(found, kind, sizes["sessions"], sizes["events"], post_wait=True)
    fan_out = result["post"]["fan_out"] or {}
    found.figures |= {
        "cpu_us_per_post": _cpu_per_delivery(alone),
        "cpu_us_per_delivery": _cpu_per_delivery(result),
        "fan_out_p50_ms": fan_out.get("p50_ms"),
    }
    return found


def paced(kind: Kind, sizes: dict[str, int]) -> Found:
    """Ten events a second: how long after its POST an event is there."""
    found = Found()
    result = _post(found, kind, sizes["sessions"], sizes["events"], post_rate=10)
    latency = result["latency"] or {}
    found.figures |= {"p50_ms": latency.get("p50_ms"), "p99_ms": latency.get("p99_ms")}
    return found


def connects(kind: Kind, sizes: dict[str, int]) -> Found:
    """New sessions a second, from connecting to the response's head."""
    found = Found()
    with started(kind, blast=False) as server:
        result = load(server.events, n=sizes["sessions"], seconds=60, pid=server.pid)
    found.check_delivery({**result, "busy": result["busy_connecting"]})
    found.figures |= {
        "per_s": result["connect"].get("per_s", 0.0),
        "cpu_us": result["server"]["cpu_connect_s"] * 1e6 / sizes["sessions"],
    }
    return found


def many(kind: Kind, sizes: dict[str, int]) -> Found:
    """Ten thousand sessions: memory, the cost of a delivery beside that to a hundred, the end."""
    found = Found()
    few = sizes["few"]
    with started(kind, blast=True) as server:
        cost_of_few = load(
            server.events,
            n=few,
            hold="500ms",
            seconds=120,
            pid=server.pid,
            **_publishing(server, events=sizes["events_to_few"], size=128, rate=500),
        )
    found.check_delivery(cost_of_few)
    with started(kind, blast=True) as server:
        result = load(
            server.events,
            n=sizes["sessions"],
            src=8,
            hold="2s",
            seconds=120,
            pid=server.pid,
            sigterm=server.process.pid,
            **_publishing(server, events=sizes["events"], size=128, rate=4),
        )
    found.check_delivery(result)
    memory, ending = result["server"], result["ending"]
    one, few_cost = _cpu_per_delivery(result), _cpu_per_delivery(cost_of_few)
    found.figures |= {
        "kib_per_session": (memory["rss_held_kb"] - memory["rss_before_kb"]) / sizes["sessions"],
        "cpu_us_per_delivery": one,
        "cpu_us_per_delivery_to_few": few_cost,
        "ratio_to_few": one / few_cost if few_cost else None,
        "told_goodbye": ending["farewell"] / sizes["sessions"],
        "ended_properly": ending["body_complete"] / sizes["sessions"],
        "last_stream_s": ending["last_stream_s"],
        "exit_s": ending["exit_s"],
    }
    return found


def stalled(kind: Kind, sizes: dict[str, int]) -> Found:
    """One in ten reads nothing: what that does to the others, and to memory."""
    found = Found()
    for stalling in (0, sizes["stalled"]):
        with started(kind, blast=True) as server:
            result = load(
                server.events,
                n=sizes["sessions"],
                stall=stalling,
                hold="500ms",
                seconds=120,
                pid=server.pid,
                **_publishing(server, events=sizes["events"], size=1024, rate=sizes["rate"]),
            )
            if kind.name.startswith("trio-sse") and stalling:
                too_slow = 'trio_sse_sessions_unregistered_total{reason="too-slow"}'
                found.figures["too_slow"] = server.metric(too_slow)
        found.check_delivery(result)
        latency = result["latency"] or {}
        kind_of = "stalled" if stalling else "free"
        found.figures[f"p99_ms_{kind_of}"] = latency.get("p99_ms")
        memory = result["server"]
        found.figures[f"mb_above_idle_{kind_of}"] = (
            memory["rss_peak_kb"] - memory["rss_held_kb"]
        ) / 1024
        if stalling:
            found.figures["closed"] = result["stalled"]["closed_by_server"]
    return found


def dispatch(kind: Kind, sizes: dict[str, int]) -> Found:
    """A publish that nobody hears, in the hub's own process."""
    del kind
    argv = [sys.executable, str(HERE / "dispatch.py"), str(sizes["events"])]
    return Found(json_output(argv, core=cores()[0], seconds=60))


SCENARIOS: Final = (
    Scenario(
        name="blast",
        title="A blast",
        run=blast,
        sizes={"sessions": 1000, "events": 500},
        quick={"sessions": 100, "events": 100},
    ),
    Scenario(
        name="single",
        title="One event at a time",
        run=single,
        sizes={"sessions": 1000, "events": 100, "events_to_one": 500},
        quick={"sessions": 200, "events": 25, "events_to_one": 100},
    ),
    Scenario(
        name="paced",
        title="Ten events a second",
        run=paced,
        sizes={"sessions": 1000, "events": 100},
        quick={"sessions": 200, "events": 20},
    ),
    Scenario(
        name="connects",
        title="New sessions",
        run=connects,
        sizes={"sessions": 2000},
        quick={"sessions": 400},
    ),
    Scenario(
        name="many",
        title="Many sessions",
        run=many,
        sizes={"sessions": 10_000, "events": 20, "few": 100, "events_to_few": 2000},
        quick={"sessions": 500, "events": 8, "few": 50, "events_to_few": 400},
    ),
    Scenario(
        name="stalled",
        title="Stalled readers",
        run=stalled,
        sizes={"sessions": 100, "stalled": 10, "events": 20_000, "rate": 1000},
        quick={"sessions": 20, "stalled": 2, "events": 4000, "rate": 2000},
        without=("raw",),  # it waits for each reader
    ),
    Scenario(
        name="dispatch",
        title="A publish to nobody",
        run=dispatch,
        sizes={"events": 20_000},
        quick={"events": 5000},
        only=("trio-sse",),
    ),
)
