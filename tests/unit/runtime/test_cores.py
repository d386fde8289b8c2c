"""Number of cores that a process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from topwork.runtime.cores import available_cores


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the host allow 8 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)


def v2(root: Path, content: str | bytes) -> Path:
    """Write cgroup v2's file."""
    raw = content.encode() if isinstance(content, str) else content
    (root / "cpu.max").write_bytes(raw)
    return root


def v1(root: Path, quota: str, period: str = "100000\n") -> Path:
    """Write cgroup v1's files."""
    (root / "cpu").mkdir()
    (root / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (root / "cpu" / "cpu.cfs_period_us").write_text(period)
    return root


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("50000 100000\n", 1),
        ("1000 100000\n", 1),
        ("0 100000\n", 1),
        ("100000 25000\n", 4),
        ("9900000 100000\n", 8),
        ("max 100000\n", 8),
    ],
)
def test_quota_of_version_2_is_rounded_up(quota: str, cores: int, tmp_path: Path) -> None:
    """cpu.max is quota and period; the share counts, rounded up, if it is below the affinity."""
    assert available_cores(cgroup=v2(tmp_path, quota)) == cores


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000\n", 2), ("250000\n", 3), ("10000\n", 1), ("-1\n", 8), ("0\n", 8)]
)
def test_quota_of_version_1_is_rounded_up(quota: str, cores: int, tmp_path: Path) -> None:
    """cpu.cfs_quota_us over cpu.cfs_period_us counts in the same way; -1 is no quota."""
    assert available_cores(cgroup=v1(tmp_path, quota)) == cores


def test_affinity_counts_without_cgroups(tmp_path: Path) -> None:
    """Without cgroup files all allowed cores are used."""
    assert available_cores(cgroup=tmp_path / "none") == 8


@pytest.mark.parametrize(
    "content", ["", "max", "many 100000", "1 2 3", b"\xff\xfe 100000", "1e5 100000"]
)
def test_malformed_cpu_max_is_ignored(content: str | bytes, tmp_path: Path) -> None:
    """A cpu.max that cannot be understood is as if there were none."""
    assert available_cores(cgroup=v2(tmp_path, content)) == 8


def test_malformed_quota_of_version_1_is_ignored(tmp_path: Path) -> None:
    """A quota of cgroup v1 that cannot be understood is as if there were none."""
    assert available_cores(cgroup=v1(tmp_path, "none", "100000")) == 8


@pytest.mark.parametrize("version", [1, 2])
def test_period_of_zero_is_ignored(version: int, tmp_path: Path) -> None:
    """A period of 0, which means nothing, is as if there were no quota."""
    cgroup = v2(tmp_path, "1000 0") if version == 2 else v1(tmp_path, "1000", "0")
    assert available_cores(cgroup=cgroup) == 8


def test_cores_of_the_host_count_without_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On systems without affinity the host's cores count, and at least 1."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores(cgroup=tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(cgroup=tmp_path) == 1
