"""Generated files (stubs, docs/api.md, the blocking client) are fresh; proto stays compatible."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
CLIENT = Path("service", "topwork", "client")


def check(proto: Path) -> subprocess.CompletedProcess[str]:
    """Run ``generate.py --check`` of a directory."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools 1.71 has no build for this Python")
    return subprocess.run(
        [sys.executable, proto / "generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )


def test_generated_files_are_fresh() -> None:
    """Generating again changes no byte."""
    done = check(PROTO)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("int64 parent_revision = 3;", "int64 parent_revision = 33;", "was deleted"),
        ("int64 parent_revision = 3;", "int64 ancestor = 3;", "changed name"),
        ("int64 parent_revision = 3;", "int32 parent_revision = 3;", "changed type"),
    ],
    ids=["number", "name", "type"],
)
def test_breaking_change_is_refused(before: str, after: str, why: str, tmp_path: Path) -> None:
    """A field of the last release keeps its number, its name and its type."""
    proto = shutil.copytree(PROTO, tmp_path / "proto")
    file = proto / "topwork" / "v1" / "revision.proto"
    file.write_text(file.read_text().replace(before, after))
    done = check(proto)
    assert (done.returncode, "buf breaking failed" in done.stderr) == (1, True)
    assert why in done.stdout + done.stderr


def test_new_field_is_allowed(tmp_path: Path) -> None:
    """A new field breaks no client: the only fault is that generated files are stale."""
    proto = shutil.copytree(PROTO, tmp_path / "proto")
    shutil.copytree(ROOT / CLIENT, tmp_path / CLIENT)
    file = proto / "topwork" / "v1" / "revision.proto"
    old = "  int64 parent_revision = 3;\n"
    file.write_text(file.read_text().replace(old, f"{old}  // New.\n  int64 new = 99;\n"))
    assert "stale" in check(proto).stderr
