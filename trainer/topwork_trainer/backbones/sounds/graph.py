"""Input of a waveform encoder's ONNX graph, in the usual layout of exporters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from topwork.arrays import Float32Array

MASK = "attention_mask"
"""Input beside the waveform; it is all 1, since windows have one length."""

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}
_MASKS = {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskInput:
    """The input of a graph that says which samples are padding."""

    name: str
    element: int
    """Type of the elements, a value of TensorProto.DataType."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveInput:
    """The waveforms (N, L) that a graph takes."""

    name: str
    element: int
    length: int | None
    """The only number of samples that the graph takes; None: any number."""
    mask: MaskInput | None

    def feeds(self, windows: Float32Array) -> dict[str, NDArray[Any]]:
        """Return the values of all inputs for windows (N, L)."""
        values = {self.name: windows.astype(helper.tensor_dtype_to_np_dtype(self.element))}
        if self.mask is not None:
            kind = helper.tensor_dtype_to_np_dtype(self.mask.element)
            values[self.mask.name] = np.ones(windows.shape, dtype=kind)
        return values


def find_input(model: onnx.ModelProto) -> WaveInput:
    """Return the input of a graph. Raises ValueError if it does not take waveforms (N, L)."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    waves = [value for value in inputs if value.name != MASK]
    if len(waves) != 1:
        names = ", ".join(repr(value.name) for value in inputs) or "none"
        raise ValueError(
            f"it has the inputs {names}; an encoder of audio has one, the waveform, and perhaps "
            f"{MASK}"
        )
    (wave,) = waves
    kind, dims = _type(wave), _dims(wave)
    if kind not in _FLOATS:
        raise ValueError(f"its input {wave.name!r} is {_type_name(kind)}; a waveform is float")
    if len(dims) != 2:
        raise ValueError(
            f"its input {wave.name!r} has {len(dims)} dimensions; a waveform has two, the windows "
            "and their samples: spectra must be computed in the graph"
        )
    if dims[0]:
        raise ValueError(
            f"its input {wave.name!r} has a fixed batch size of {dims[0]}: export it with a dynamic"
            " one"
        )
    masks = [value for value in inputs if value.name == MASK]
    if masks and _type(masks[0]) not in _MASKS:
        raise ValueError(f"its input {MASK!r} is {_type_name(_type(masks[0]))}; it must be int64")
    return WaveInput(
        name=wave.name,
        element=kind,
        length=dims[1] or None,
        mask=MaskInput(name=MASK, element=_type(masks[0])) if masks else None,
    )


def _type(value: onnx.ValueInfoProto) -> int:
    return int(value.type.tensor_type.elem_type)


def _type_name(kind: int) -> str:
    return TensorProto.DataType.Name(kind).lower()


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
