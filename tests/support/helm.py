"""Renders deploy/helm with a real helm, and stores the manifests for tests without one.

``python tests/support/helm.py`` writes them again after a change of the chart.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "topwork"
RENDERED = ROOT / "tests" / "unit" / "deploy" / "rendered"
HELM = shutil.which("helm")

VARIANTS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "one-server": (
        "worker.separate=false",
        "databaseSecret=",
        "autoscaling.enabled=false",
        "server.replicas=1",
        "repository.existingClaim=mine",
        "networkPolicy.enabled=false",
    ),
    "everything": (
        "image.repository=registry.example/topwork",
        "image.pullSecrets[0].name=pull",
        "repository.storageClass=shared",
        "accessSecret=topwork-access",
        "server.args[0]=--queue-limit=64",
        "server.nodeSelector.disk=fast",
        "worker.replicas=3",
        "podMonitor.enabled=true",
        "podMonitor.labels.release=prometheus",
    ),
    "many-hosts": (
        "repository.url=s3://bucket/prefix",
        "repository.credentialsSecret=topwork-object-store",
        "serviceAccount.create=true",
        r"serviceAccount.annotations.eks\.amazonaws\.com/role-arn=arn:aws:iam::1:role/topwork",
        "keda.enabled=true",
    ),
}
"""Values that differ from the defaults, by the name of the stored manifests."""


def digest() -> str:
    """Return the sha256 of all files of the chart and of the variants."""
    whole = hashlib.sha256(repr(VARIANTS).encode())
    for path in sorted(CHART.rglob("*")):
        if path.is_file():
            whole.update(path.relative_to(CHART).as_posix().encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


def render(variant: str) -> str:
    """Return the manifests that helm makes of a variant."""
    assert HELM is not None, "helm is not installed"
    values = [argument for value in VARIANTS[variant] for argument in ("--set", value)]
    command = [HELM, "template", "topwork", str(CHART), *values]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def stored(variant: str) -> str:
    """Return the stored manifests of a variant."""
    return (RENDERED / f"{variant}.yaml").read_text()


if __name__ == "__main__":
    RENDERED.mkdir(exist_ok=True)
    for name in VARIANTS:
        (RENDERED / f"{name}.yaml").write_text(render(name))
    (RENDERED / "chart.sha256").write_text(f"{digest()}\n")
