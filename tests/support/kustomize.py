"""Renders an overlay of deploy/kubernetes, and stores it for tests without kubectl.

``python tests/support/kustomize.py`` writes it again after a change of the base or a component.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASE = ROOT / "deploy" / "kubernetes"
RENDERED = ROOT / "tests" / "unit" / "deploy" / "rendered" / "kustomize"
MANIFESTS = RENDERED / "many-hosts.yaml"
DIGEST = RENDERED / "kubernetes.sha256"
KUBECTL = shutil.which("kubectl")

OVERLAY = """\
resources: [{base}]
components: [{base}/object-store, {base}/keda]
configMapGenerator:
  - name: topwork-repository
    literals: ["url=s3://bucket/prefix"]
generatorOptions:
  disableNameSuffixHash: true
"""


def digest() -> str:
    """Return the sha256 of the overlay, the base and the components."""
    whole = hashlib.sha256(OVERLAY.encode())
    for path in sorted(BASE.rglob("*.yaml")):
        whole.update(path.relative_to(BASE).as_posix().encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


def render() -> str:
    """Return the manifests that kubectl makes of the overlay."""
    assert KUBECTL is not None, "kubectl is not installed"
    with tempfile.TemporaryDirectory() as name:
        overlay = Path(name).resolve()
        base = os.path.relpath(BASE, overlay)  # kustomize takes no absolute paths
        (overlay / "kustomization.yaml").write_text(OVERLAY.format(base=base))
        command = [KUBECTL, "kustomize", str(overlay)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    RENDERED.mkdir(exist_ok=True)
    MANIFESTS.write_text(render())
    DIGEST.write_text(f"{digest()}\n")
