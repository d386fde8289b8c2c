"""Alerts, rules, jobs and dashboard of deploy: existing metrics and names, promtool's checks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from support.metrics import filled

from topwork.bundle.store import Repository

DEPLOY = Path(__file__).parents[3] / "deploy"
ALERTS = (DEPLOY / "prometheus" / "alerts.yml").read_text()
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "topwork.json").read_text())
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
SERIES = re.compile(r"\b(?:topwork|grpc_server)_[a-z_]+\b")


@pytest.fixture
def series(colours: Repository) -> set[str]:
    """Return the names of all series that a server can have."""
    return set(SERIES.findall(generate_latest(filled(colours)._registry).decode()))


@pytest.mark.parametrize(
    "path",
    [
        "prometheus/alerts.yml",
        "prometheus/adapter.yml",
        "kubernetes/scaling.yaml",
        "grafana/topwork.json",
    ],
)
def test_named_series_exist(path: str, series: set[str]) -> None:
    """Alerts, adapter, autoscaler and dashboard name existing series."""
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
    assert set(names) == set(re.findall(r'job="([^"]+)"', ALERTS))
    assert configurations[0]["rule_files"] == ["alerts.yml"]


@needs_promtool
def test_promtool_accepts_the_alerts() -> None:
    """`promtool check rules` finds nothing."""
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, "check", "rules", DEPLOY / "prometheus" / "alerts.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@needs_promtool
def test_alerts_fire_for_the_series_that_they_describe(tmp_path: Path) -> None:
    """`promtool test rules` passes all cases of alerts_test.yml."""
    assert PROMTOOL is not None
    for path in (DEPLOY / "prometheus" / "alerts.yml", Path(__file__).parent / "alerts_test.yml"):
        shutil.copy(path, tmp_path)
    done = subprocess.run(
        [PROMTOOL, "test", "rules", "alerts_test.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_cases_name_existing_alerts() -> None:
    """Each case of alerts_test.yml is about an alert, also where promtool cannot run them."""
    cases = yaml.safe_load((Path(__file__).parent / "alerts_test.yml").read_text())["tests"]
    named = {case["alertname"] for test in cases for case in test["alert_rule_test"]}
    assert named <= set(re.findall(r"alert: (\w+)", ALERTS))


def test_panels_are_complete_and_do_not_overlap() -> None:
    """Each panel has its own id and place, a query, and only variables that the dashboard has."""
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    places: set[tuple[int, int]] = set()
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 20
    for panel in panels:
        at = panel["gridPos"]
        own = {
            (column, row)
            for column in range(at["x"], at["x"] + at["w"])
            for row in range(at["y"], at["y"] + at["h"])
        }
        assert max(column for column, _ in own) < 24
        assert not own & places, panel["title"]
        places |= own
        assert panel["type"] == "row" or (panel["targets"] and panel["description"])
        for target in panel.get("targets", []):
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= variables
            assert target["expr"].count("{") == target["expr"].count("}")
    sources = re.findall(r'"uid": "(\$\{\w+\})"', json.dumps(panels))
    assert set(sources) == {"${datasource}"}
