"""The generated code is what the contract gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_generated_code_is_fresh() -> None:
    """Generating again would change no byte."""
    generate = Path(__file__).parents[2] / "proto" / "generate.py"
    done = subprocess.run(
        [sys.executable, generate, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
