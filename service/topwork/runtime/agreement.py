"""Check of a backbone on this machine, by the cosine of computed and expected embeddings.

The same graph gives other embeddings where a processor computes in another way: on x86 without VNNI
the sums of int8 products saturate. GPUs, OpenVINO and releases of ONNX Runtime differ, too.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.manifest import BackboneInfo, ExpectedEmbeddings
from topwork.inputs.kinds import kind_of
from topwork.inputs.spec import InputSpec

LEAST_AGREEMENT = 0.996
"""Raising it replaces backbones that differ less from the machine that stored them.

Least cosine over the probe images, EfficientNet-Lite0 and -Lite2 quantised on a processor with
AVX512-VNNI:

    difference                                        fp32        int8
    ONNX Runtime 1.20 instead of 1.32              1.000000    1.000000
    all cores, or four images a run                1.000000    1.000000
    no optimisation of the graph                   1.000000    0.999
    OpenVINO                                       1.000000    0.9986
    AVX2 without VNNI: saturation                  1.000000    0.989
    the fp32 twin instead of int8                      -       0.993 to 0.995

Below it the fp32 twin is nearer to the embeddings that the head was fitted on.
"""

UNUSABLE = -1.0
"""Agreement of embeddings that are not finite or have another width."""

Run = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Maps prepared inputs (N, ...) to embeddings (N, D)."""


def expect(run: Run, spec: InputSpec) -> ExpectedEmbeddings:
    """Return the embeddings that ``run`` gives to the probe inputs now, an input per run."""
    kind = kind_of(spec)
    rows = [run(probe[None])[0] for probe in kind.probes(kind.latest_probes, spec)]
    return ExpectedEmbeddings(
        images=kind.latest_probes, embeddings=np.stack(rows).astype("<f4").tobytes()
    )


def check_inputs(info: BackboneInfo) -> Sequence[NDArray[Any]] | None:
    """Return the probe inputs of a backbone; None if it cannot be checked by this release."""
    if info.expected is None:
        return None
    try:
        probes = kind_of(info.preprocess).probes(info.expected.images, info.preprocess)
        rows = info.expected.rows(info.width)
    except (KeyError, ValueError):
        return None
    return probes if len(probes) == len(rows) else None


def agreement(info: BackboneInfo, embeddings: Sequence[NDArray[np.float32]]) -> float:
    """Return the least cosine of embeddings (D,) of the backbone's probe inputs to those expected.

    The embeddings may be those of several rounds through the inputs.
    """
    assert info.expected is not None, "check_inputs() found some"
    found = np.stack(embeddings).astype(np.float64)
    rows = info.expected.rows(info.width).astype(np.float64)
    expected = rows[np.arange(len(found)) % len(rows)]
    if found.shape != expected.shape or not np.isfinite(found).all():
        return UNUSABLE
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (found * expected).sum(axis=1) / np.maximum(lengths, 1e-30)
    cosines[(found == expected).all(axis=1)] = 1.0  # also if both are zero
    return float(cosines.clip(-1, 1).min())


def measure(info: BackboneInfo, run: Run) -> float | None:
    """Return the agreement of ``run``, an input per run; None if the backbone cannot be checked."""
    probes = check_inputs(info)
    return None if probes is None else agreement(info, [run(probe[None])[0] for probe in probes])


def least(found: Iterable[float | None]) -> float | None:
    """Return the least agreement of those that could be measured; None if none could."""
    return min((each for each in found if each is not None), default=None)


def is_off(found: float | None) -> bool:
    """Return True if a backbone with this agreement gives wrong embeddings on this machine."""
    return found is not None and found < LEAST_AGREEMENT


def replacement(info: BackboneInfo, found: float | None) -> BackboneInfo | None:
    """Return the fp32 twin that should run instead of a backbone; None if the backbone should.

    If the twin cannot be loaded, the backbone runs nevertheless.
    """
    return info.as_twin() if is_off(found) else None


def facts(
    info: BackboneInfo,
    used: BackboneInfo,
    found: float | None,
    *,
    provider: str,
    twin_error: str = "",
) -> dict[str, object]:
    """Return the fields of a log line about a backbone that is off, if ``used`` runs instead."""
    known: dict[str, object] = {
        "name": info.name,
        "backbone": info.digest,
        "precision": info.precision,
        "agreement": found,
        "least": LEAST_AGREEMENT,
        "provider": provider,
        "processor": processor(),
        "used": used.precision,
    }
    return {**known, "twin_error": twin_error} if twin_error else known


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, or its architecture if the system does not name it."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
