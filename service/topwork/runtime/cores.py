"""Number of cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_cores(*, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return min(affinity mask, cgroup quota rounded up), at least 1.

    ONNX Runtime and BLAS size their thread pools by the host and ignore a container's quota.
    Reads cgroup v2 (cpu.max) and v1 (cpu.cfs_quota_us).
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        allowed = os.cpu_count() or 1
    return max(1, min(allowed, math.ceil(_quota(cgroup))))


def _quota(cgroup: Path) -> float:
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        if quota != "max":
            return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass
    try:
        quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
        period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        if int(quota) > 0:
            return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass
    return 1_000_000.0
