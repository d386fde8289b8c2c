"""Completion of a waveform encoder's ONNX graph: all windows in, one embedding out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from topwork.arrays import Float32Array
from topwork_trainer.backbones.onnx_graph import shape_text
from topwork_trainer.backbones.sounds.graph import WaveInput

EPSILON = 1e-7
"""Added to the variance of a window, as feature extractors of wav2vec2 do."""

_PREFIX = "model/"
"""Prefix of all names of the user's graph, so that they differ from ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What surrounds an encoder: before it the scale of a window, behind it the pooling."""

    normalise: bool
    """Whether each window is scaled to mean 0 and variance 1."""
    pools_time: bool
    """Whether the output is (windows, T, D), whose mean over T is used; else it is (windows, D)."""
    width: int

    @classmethod
    def of(cls, shape: tuple[int, ...], *, normalise: bool) -> Completion:
        """Return the completion for an output's shape. Raises ValueError if there is none."""
        if len(shape) not in {2, 3} or not shape[-1]:
            raise ValueError(
                f"its output has the shape {shape_text(shape)}; an encoder gives (windows, values) "
                "or (windows, times, values)"
            )
        return cls(normalise=normalise, pools_time=len(shape) == 3, width=shape[-1])

    def apply(self, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the embedding (D,) of the outputs of all windows; the reference of the graph."""
        rows = outputs.mean(axis=1) if self.pools_time else outputs
        return np.asarray(rows.mean(axis=0), dtype=np.float32)


def scaled(windows: Float32Array) -> Float32Array:
    """Return windows (W, L), each with mean 0 and variance 1; the reference of the graph."""
    wide = windows.astype(np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    variance = np.square(centred).mean(axis=1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + EPSILON), dtype=np.float32)


def wrap(
    model: onnx.ModelProto, given: WaveInput, completion: Completion, *, window: int
) -> onnx.ModelProto:
    """Return ``model`` from ``windows`` float32 (N, W, ``window``) to ``embedding`` (N, D).

    Its nodes are the same in all opsets, so the user's opset is kept.
    """
    inner = compose.add_prefix(model, _PREFIX)
    make = helper.make_node
    constants = {
        "wave_shape": np.array([-1, window]),
        "first_two": np.array([0, 1]),
        "values": np.array([completion.width]),
    }
    before, waves = [], "windows"
    if completion.normalise:
        constants |= {
            "channel_shape": np.array([-1, 1, window]),
            "epsilon": np.array(EPSILON, dtype=np.float32),
        }
        waves = "scaled"
        before += [
            make("Reshape", ["windows", "channel_shape"], ["channels"]),
            make("GlobalAveragePool", ["channels"], ["mean"]),
            make("Sub", ["channels", "mean"], ["centred"]),
            make("Mul", ["centred", "centred"], ["squares"]),
            make("GlobalAveragePool", ["squares"], ["variance"]),
            make("Add", ["variance", "epsilon"], ["positive"]),
            make("Sqrt", ["positive"], ["deviation"]),
            make("Div", ["centred", "deviation"], ["scaled"]),
        ]
    before += [
        make("Reshape", [waves, "wave_shape"], ["waves"]),
        make("Cast", ["waves"], [_PREFIX + given.name], to=given.element),
    ]
    if given.mask is not None:
        filling = helper.make_tensor("value", given.mask.element, [1], [1])
        before += [
            make("Shape", ["waves"], ["waves_shape"]),
            make("ConstantOfShape", ["waves_shape"], [_PREFIX + given.mask.name], value=filling),
        ]
    after = [make("Cast", [inner.graph.output[0].name], ["output"], to=TensorProto.FLOAT)]
    rows = "output"
    if completion.pools_time:
        after += [
            make("Transpose", ["output"], ["times_last"], perm=[0, 2, 1]),
            make("GlobalAveragePool", ["times_last"], ["time_means"]),
            make("Flatten", ["time_means"], ["rows"], axis=1),
        ]
        rows = "rows"
    after += [
        make("Shape", ["windows"], ["windows_shape"]),
        make("Gather", ["windows_shape", "first_two"], ["counts"], axis=0),
        make("Concat", ["counts", "values"], ["rows_shape"], axis=0),
        make("Reshape", [rows, "rows_shape"], ["of_windows"]),  # (N, W, D)
        make("Transpose", ["of_windows"], ["windows_last"], perm=[0, 2, 1]),
        make("GlobalAveragePool", ["windows_last"], ["window_means"]),
        make("Flatten", ["window_means"], ["embedding"], axis=1),
    ]
    graph = helper.make_graph(
        [*before, *inner.graph.node, *after],
        "backbone",
        [helper.make_tensor_value_info("windows", TensorProto.FLOAT, ["N", "W", window])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", completion.width])],
        [
            *inner.graph.initializer,
            *(numpy_helper.from_array(array, name) for name, array in constants.items()),
        ],
    )
    inner.graph.CopyFrom(graph)
    return inner
