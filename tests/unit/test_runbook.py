"""Completeness of the runbook: error reasons, log events, metrics and alerts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
SERVING = (ROOT / "docs" / "serving.md").read_text()
SOURCE = "\n".join(
    path.read_text()
    for path in sorted((ROOT / "service" / "topwork").rglob("*.py"))
    if not path.stem.endswith(("_pb2", "_pb2_grpc")) and path.parent.name != "cli"
)
REASONS = set(re.findall(r'\breason(?:: str)? ?= ?"([A-Z_]+)"', SOURCE))
EVENTS = set(re.findall(r'\blog\.(?:info|warning|error|exception)\(\s*"([^";%]+)', SOURCE))
METRICS = set(re.findall(r'"((?:topwork|grpc_server)_[a-z_]+)"', SOURCE))
ALERTS = re.findall(r"alert: (\w+)", (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())


def test_patterns_find_known_names() -> None:
    """The patterns above find names that are known to be in the source."""
    assert {"OVERLOADED", "GATE_FAILED", "NOT_FOUND", "TOO_MANY_UPLOADS"} <= REASONS
    assert {"ready", "worker died", "certificates stay as they were"} <= EVENTS
    assert {"topwork_queue_images", "grpc_server_handled"} <= METRICS
    assert len(ALERTS) > 3


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_runbook_has_reason(reason: str) -> None:
    """Each error reason has a row in the runbook's table."""
    table = RUNBOOK[RUNBOOK.index("| reason |") :].split("\n\n")[0]
    assert f"`{reason}`" in table


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_runbook_has_log_event(event: str) -> None:
    """Each log event is in the runbook."""
    assert f"`{event}" in RUNBOOK[RUNBOOK.index("## Log lines") :]


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_serving_page_has_metric(metric: str) -> None:
    """Each metric is in the table of docs/serving.md."""
    assert re.search(rf"`{metric}(_total|_info)?`", SERVING)


@pytest.mark.parametrize("alert", ALERTS)
def test_runbook_has_alert(alert: str) -> None:
    """Each alert is in the runbook."""
    assert f"`{alert}`" in RUNBOOK


@pytest.mark.parametrize(
    ("page", "anchor"), re.findall(r"\]\(([\w./-]*\.md)?#([\w-]+)\)", RUNBOOK), ids=str
)
def test_links_lead_to_headings(page: str, anchor: str) -> None:
    """Each link of the runbook to a section leads to a heading."""
    path = ROOT / "docs" / (page or "runbook.md")
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    assert anchor in {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings
    }
