"""Metrics of a serving process for Prometheus: counters and histograms.

Names and units follow the conventions of Prometheus and, for calls, of go-grpc-prometheus.
docs/serving.md explains them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
    start_http_server,
)

from topwork.change_metrics import ChangeMetrics
from topwork.model_metrics import ModelMetrics

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Stages(NamedTuple):
    """Histograms of the time in each stage, in seconds."""

    queue: Histogram
    decode: Histogram
    backbone: Histogram
    head: Histogram


class Telemetry:
    """The metrics of one process; an observation takes about a microsecond."""

    def __init__(self, *, models: int = 100, model_labels: int = 50) -> None:
        """Take the most models, and labels of a model, that have series of their own."""
        registry = CollectorRegistry()
        self._registry = registry
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        labels = ("grpc_service", "grpc_method")
        self.calls = Counter(
            "grpc_server_handled", "Calls that ended.", (*labels, "grpc_code"), registry=registry
        )
        self.call_seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from the arrival of a call to its end.",
            labels,
            registry=registry,
            buckets=_SECONDS,
        )
        self.request_images = Histogram(
            "topwork_request_images",
            "Images in a request batch.",
            registry=registry,
            buckets=_SIZES,
        )
        self.models = ModelMetrics(models=models, labels=model_labels)
        """Metrics of the answers by model."""
        registry.register(self.models)
        self._stage_seconds = Histogram(
            "topwork_stage_seconds",
            "Time of an input of a kind in a stage: queue, decode, backbone (its share of a "
            "micro-batch), head (a group of answers).",
            ("stage", "kind"),
            registry=registry,
            buckets=_SECONDS,
        )
        self._stages: dict[str, Stages] = {}
        self.micro_batch = Histogram(
            "topwork_micro_batch_images",
            "Size of the micro-batch of an image.",
            registry=registry,
            buckets=_SIZES,
        )
        self.rejected = Counter(
            "topwork_rejected_images", "Images refused.", ("reason",), registry=registry
        )
        self.review_images = Counter(
            "topwork_review_images",
            "Images offered to the review queue, by what became of them.",
            ("result",),
            registry=registry,
        )
        self.swaps = Counter(
            "topwork_swaps",
            "Revisions that began to serve, with the first ones.",
            registry=registry,
        )
        self.agreement = Gauge(
            "topwork_backbone_agreement",
            "Least cosine of a backbone's embeddings on this host to those of the host that stored "
            "it; precision is that of the graph that runs.",
            ("backbone", "digest", "precision"),
            registry=registry,
        )

        self.changes = ChangeMetrics(registry)

    def stages(self, kind: str) -> Stages:
        """Return the histograms of the stages of a kind of inputs."""
        if (found := self._stages.get(kind)) is None:
            found = self._stages[kind] = Stages(
                *(
                    self._stage_seconds.labels(stage, kind)
                    for stage in ("queue", "decode", "backbone", "head")
                )
            )
        return found

    def build(self, versions: Mapping[str, str], **others: str) -> None:
        """Add the versions of the software as labels of a series with the value 1."""
        info = {"version" if name == "topwork" else name: text for name, text in versions.items()}
        Info("topwork_build", "Versions of the software.", registry=self._registry).info(
            {**info, **others}
        )

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose ``value`` is called, in another thread, when it is read."""
        Gauge(name, text, registry=self._registry).set_function(value)

    def serve(self, host: str, port: int) -> tuple[WSGIServer, threading.Thread]:
        """Answer GET /metrics until the server is shut down. Raises OSError."""
        return start_http_server(port, addr=host, registry=self._registry)
