"""The generated code and docs/api.md are what the contract gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_what_is_generated_is_fresh() -> None:
    """Generating again would change no byte."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools 1.71 has no build for this Python")
    generate = Path(__file__).parents[2] / "proto" / "generate.py"
    done = subprocess.run(
        [sys.executable, generate, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
