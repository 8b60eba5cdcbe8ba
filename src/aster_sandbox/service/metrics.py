"""The service's metrics, for Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from aster_sandbox.types import CellResult

CELL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one service, in their own registry. Labels contain clients' names, never tokens."""

    def __init__(self) -> None:
        disable_created_metrics()  # they would add a second series for each counter
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = self._counter("requests", "HTTP requests by route and status.", "route", "status")
        self.refused = self._counter("refused", "Requests refused before they reached a route, by status.", "status")
        self.opened = self._counter("sessions_opened", "Sessions opened, by how: open or fork.", "how")
        self.closed = self._counter("sessions_closed", "Sessions ended, by why: closed, idle or shutdown.", "why")
        self.cells = self._counter("cells", "Cells run, by status: ok, error, timeout or crashed.", "status")
        self.repeated = self._counter("repeated", "Requests answered with the reply of an earlier one with the same id.")
        self.sessions = self._gauge("sessions", "Sessions open now, by client.", "client")
        self.running = self._gauge("cells_running", "Cells under way now.")
        self.capacity = self._gauge("sessions_limit", "Sessions that may be open at once.")
        self.cell_seconds = Histogram(
            "aster_sandbox_cell_seconds", "Wall clock of a cell.", buckets=CELL_SECONDS, registry=self._registry
        )

    def cell(self, call: CellResult) -> None:
        """Count one cell."""
        self.cells.labels(call.status.value).inc()
        self.cell_seconds.observe(call.seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"aster_sandbox_{name}", help_text, labels, registry=self._registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"aster_sandbox_{name}", help_text, labels, registry=self._registry)
