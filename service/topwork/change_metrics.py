"""Prometheus metrics of the changes, their database, and the repository's disk."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


class ChangeMetrics:
    """Metrics that all servers of a repository report alike: take the maximum, not the sum.

    ``topwork.changes.monitor`` sets them.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.unfinished = Gauge(
            "topwork_operations", "Unfinished operations.", ("state",), registry=registry
        )
        self.oldest = Gauge(
            "topwork_oldest_operation_seconds",
            "Time since the oldest unfinished operation was accepted, 0 without one.",
            ("state",),
            registry=registry,
        )
        self.finished = Counter(
            "topwork_finished_operations",
            "Operations that finished since the start of the server; result is OK or the reason "
            "of the error.",
            ("kind", "result"),
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "topwork_operation_stage_seconds",
            "Time of a successful operation in a stage: queued, embedding, solving, publishing.",
            ("stage",),
            registry=registry,
            buckets=_SECONDS,
        )
        self.database = Gauge(
            "topwork_database_up", "1 if the database of operations answers.", registry=registry
        )
        self.free_bytes = Gauge(
            "topwork_repository_free_bytes", "Free space of the repository.", registry=registry
        )
        self.free_inodes = Gauge(
            "topwork_repository_free_inodes",
            "Files that can be made; +Inf without such a limit.",
            registry=registry,
        )
        self.model_bytes = Gauge(
            "topwork_model_bytes", "Disk quota in use.", ("model",), registry=registry
        )
        self.quota = Gauge(
            "topwork_model_quota_bytes", "Disk quota of each model.", registry=registry
        )
