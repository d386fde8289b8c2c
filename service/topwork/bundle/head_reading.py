"""Reading of a head back from the parts of its ONNX graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.arrays import Float32Array
from topwork.bundle.features import Normaliser
from topwork.bundle.head import Fourier, Head, Kernel, Scorer, Support


def read_head(weights: Mapping[str, NDArray[Any]], operators: Collection[str], width: int) -> Head:
    """Return the head of a graph made by ``to_onnx``, for embeddings of ``width``.

    ``weights`` are its constants, ``operators`` the types of its nodes. The temperature is part of
    the weights, and the detector of unknown images is left out. Raises KeyError for another graph.
    """

    def constant(name: str) -> Float32Array:
        stored = weights[name] if name in weights else weights[f"{name}_half"]
        return np.asarray(stored, dtype=np.float32)

    expansion: Kernel | Fourier | None = None
    if "gamma" in weights:
        # The first support is the kernel's: nodes of the detector follow.
        support = Support(
            centre=constant("support0_centre"),
            projection=constant("support0_projection"),
            points=constant("support0_points"),
        )
        expansion = Kernel(support=support, gamma=-float(weights["gamma"]))
    elif "phase" in weights:
        expansion = Fourier(projection=constant("directions"), phase=constant("phase"))
    return Head(
        normaliser=_normaliser(weights, operators, width),
        scorer=Scorer(weights=constant("weights"), bias=constant("bias"), expansion=expansion),
        temperature=1.0,
    )


def _normaliser(
    weights: Mapping[str, NDArray[Any]], operators: Collection[str], width: int
) -> Normaliser:
    if "ReduceL2" in operators:
        kind = "sqrt_l2" if "Sqrt" in operators else "l2"
        centre, scale = np.zeros(width, dtype=np.float32), np.ones(width, dtype=np.float32)
        return Normaliser(kind=kind, centre=centre, scale=scale)  # type: ignore[arg-type]  # one of two literals
    return Normaliser(kind="standardise", centre=weights["centre"], scale=weights["scale"])
