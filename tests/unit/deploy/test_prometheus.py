"""deploy/prometheus asks for series that a server has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from topwork.bundle.store import Repository
from topwork.limits import DEFAULT_LIMITS
from topwork.serving.classifier import Classifier
from topwork.serving.registry import Registry
from topwork.telemetry import Telemetry

DEPLOY = Path(__file__).parents[3] / "deploy"
SERIES = re.compile(r"\b(?:topwork|grpc_server)_[a-z_]+\b")


@pytest.fixture
def series(colours: Repository) -> set[str]:
    """Return the names of all series of a server that has answered and refused calls."""
    telemetry = Telemetry()
    registry = Registry(colours, provider="cpu", cores=1, telemetry=telemetry)
    Classifier(registry, limits=DEFAULT_LIMITS, cores=1, queue_limit=16, telemetry=telemetry)
    telemetry.calls.labels("service", "Method", "OK").inc()
    telemetry.call_seconds.labels("service", "Method").observe(1)
    telemetry.images.labels("colours", "ok").inc()
    telemetry.rejected.labels("OVERLOADED").inc()
    return set(SERIES.findall(generate_latest(telemetry._registry).decode()))


@pytest.mark.parametrize(
    "path",
    ["prometheus/alerts.yml", "prometheus/adapter.yml", "kubernetes/scaling.yaml"],
)
def test_series_are_there(path: str, series: set[str]) -> None:
    """Alerts, adapter and autoscaler name series that there are."""
    asked = {
        name
        for one in yaml.safe_load_all((DEPLOY / path).read_text())
        for name in SERIES.findall(yaml.safe_dump(one))
    }
    assert asked
    assert asked <= series


def test_jobs_are_called_as_alerts_say() -> None:
    """Both configurations scrape the job that the alerts select, and compose's has the alerts."""
    configurations: list[dict[str, Any]] = [
        yaml.safe_load((DEPLOY / "prometheus" / name).read_text())
        for name in ("prometheus.yml", "kubernetes.yml")
    ]
    names = [job["job_name"] for one in configurations for job in one["scrape_configs"]]
    alerts = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    assert set(names) == set(re.findall(r'job="([^"]+)"', alerts))
    assert configurations[0]["rule_files"] == ["alerts.yml"]
