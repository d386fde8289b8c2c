"""Alerts, rules and jobs of deploy/prometheus use existing metrics and names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from support.metrics import filled

from topwork.bundle.store import Repository

DEPLOY = Path(__file__).parents[3] / "deploy"
SERIES = re.compile(r"\b(?:topwork|grpc_server)_[a-z_]+\b")


@pytest.fixture
def series(colours: Repository) -> set[str]:
    """Return the names of all series that a server can have."""
    return set(SERIES.findall(generate_latest(filled(colours)._registry).decode()))


@pytest.mark.parametrize(
    "path",
    ["prometheus/alerts.yml", "prometheus/adapter.yml", "kubernetes/scaling.yaml"],
)
def test_named_series_exist(path: str, series: set[str]) -> None:
    """Alerts, adapter and autoscaler name existing series."""
    named = {
        name
        for document in yaml.safe_load_all((DEPLOY / path).read_text())
        for name in SERIES.findall(yaml.safe_dump(document))
    }
    assert named
    assert named <= series


def test_jobs_have_the_names_in_the_alerts() -> None:
    """Both configurations scrape the job that the alerts select; compose's loads the alerts."""
    configurations: list[dict[str, Any]] = [
        yaml.safe_load((DEPLOY / "prometheus" / name).read_text())
        for name in ("prometheus.yml", "kubernetes.yml")
    ]
    names = [
        job["job_name"]
        for configuration in configurations
        for job in configuration["scrape_configs"]
    ]
    alerts = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    assert set(names) == set(re.findall(r'job="([^"]+)"', alerts))
    assert configurations[0]["rule_files"] == ["alerts.yml"]
