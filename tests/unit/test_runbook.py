"""The runbook leaves nobody alone: what the server says and counts is in it."""

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


def test_what_is_looked_for_is_found() -> None:
    """The patterns above find what is known to be in the source."""
    assert {"OVERLOADED", "GATE_FAILED", "NOT_FOUND", "TOO_MANY_UPLOADS"} <= REASONS
    assert {"ready", "worker died", "certificates stay as they were"} <= EVENTS
    assert {"topwork_queue_images", "grpc_server_handled"} <= METRICS
    assert len(ALERTS) > 3


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_reasons(reason: str) -> None:
    """The runbook's table says what to do about each reason."""
    table = RUNBOOK[RUNBOOK.index("| reason |") :].split("\n\n")[0]
    assert f"`{reason}`" in table


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_events(event: str) -> None:
    """Each line of the log is in the runbook."""
    assert f"`{event}" in RUNBOOK[RUNBOOK.index("## Log lines") :]


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_metrics(metric: str) -> None:
    """Each metric is in the table that the runbook refers to."""
    assert re.search(rf"`{metric}(_total)?`", SERVING)


@pytest.mark.parametrize("alert", ALERTS)
def test_alerts(alert: str) -> None:
    """The runbook says where to look when an alert comes."""
    assert f"`{alert}`" in RUNBOOK


@pytest.mark.parametrize(
    ("page", "anchor"), re.findall(r"\]\(([\w./-]*\.md)?#([\w-]+)\)", RUNBOOK), ids=str
)
def test_links_lead_somewhere(page: str, anchor: str) -> None:
    """Whoever follows a link of the runbook finds the section."""
    path = ROOT / "docs" / (page or "runbook.md")
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
