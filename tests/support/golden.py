"""Documents that released versions stored: ``tests/golden/<version>/<type>.json``."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import topwork
from topwork.bundle import documents

ROOT = Path(__file__).parents[1] / "golden"


def kinds() -> frozenset[type]:
    """Return all types that the service stores as documents; tests may have imported others."""
    for module in pkgutil.walk_packages(topwork.__path__, "topwork."):
        if not module.name.endswith(("__main__", "rpc.client")):  # these run or warn when imported
            importlib.import_module(module.name)
    return frozenset(
        kind for kind in documents.registered() if kind.__module__.startswith("topwork.")
    )


def newest(kind: type) -> Path:
    """Return the golden file of a type, of this version, with every field filled in."""
    return next((ROOT / topwork.__version__).glob(f"{kind.__name__}.*"))


def name(path: Path) -> str:
    """Return a test id for a golden file: its version and its name."""
    return f"{path.parent.name}/{path.name}"
