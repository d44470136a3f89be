"""A hub's statistics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, final, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .hub import Hub
from .session import EndKind

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@final
class HubCollector(Collector):
    """Reads ``hub.statistics()`` when asked; register it with a registry of your own."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        now = self._hub.statistics()
        yield GaugeMetricFamily("trio_sse_sessions", "Sessions registered now", now.sessions)
        yield GaugeMetricFamily(
            "trio_sse_accepting", "1 while new sessions are accepted", now.state == "open"
        )
        yield GaugeMetricFamily(
            "trio_sse_log_available", "1 while the log takes events", self._hub.log.problem is None
        )
        for name, text, value in (
            ("sessions_registered", "Sessions that registered", now.registered),
            ("sessions_refused", "Sessions turned down before they registered", now.refused),
            ("events_published", "Events published to this process", now.published),
            ("events_dispatched", "Events taken from the log for live sessions", now.dispatched),
            ("events_delivered", "Events handed to connections, per session", now.delivered),
            ("events_dropped", "Events lost to overflow policies, per session", now.dropped),
            ("events_replayed", "Events replayed from the log, per session", now.replayed),
            ("gaps", "Times that a session was told of a gap", now.gaps),
            (
                "delivered_bytes",
                "Bytes of event streams handed to connections",
                now.delivered_bytes,
            ),
        ):
            yield CounterMetricFamily(f"trio_sse_{name}", text, value)
        unregistered = CounterMetricFamily(
            "trio_sse_sessions_unregistered", "Sessions that ended, by reason", labels=["reason"]
        )
        for kind in get_args(EndKind):
            unregistered.add_metric([kind], now.unregistered.get(kind, 0))
        yield unregistered
        yield SummaryMetricFamily(
            "trio_sse_dispatch_seconds",
            "Time that the dispatcher spent on its passes",
            count_value=now.dispatch_passes,
            sum_value=now.dispatch_seconds,
        )


def render(hub: Hub) -> bytes:
    """The hub's metrics in the Prometheus text format."""
    registry = CollectorRegistry()
    registry.register(HubCollector(hub))
    return generate_latest(registry)
