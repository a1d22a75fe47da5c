"""Counters of the service in Prometheus' text format. Labels are routes and statuses, nothing that a caller wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_SECONDS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """One service's counters, in its own registry, so that two services in one process do not share them.

    Attributes:
        registry: holds all the counters.
        requests: by route and status.
        seconds: of requests, by route.
        batch: number of films in each forward pass.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("chestxray_requests", "Requests answered.", ("route", "status"), registry=self.registry)
        self.seconds = Histogram(
            "chestxray_request_seconds",
            "From the headers of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "chestxray_batch_films", "Films of one forward pass.", buckets=(1, 2, 3, 4), registry=self.registry
        )

    def watch(self, name: str, what: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value is read on demand."""
        Gauge(f"chestxray_{name}", what, registry=self.registry).set_function(read)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count a request and its seconds."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all counters as text."""
        return generate_latest(self.registry)
