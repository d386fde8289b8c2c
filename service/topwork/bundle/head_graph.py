"""Export of a head as an ONNX graph for serving."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from topwork.bundle.features import TINY, Normaliser
from topwork.bundle.head import Fourier, Head, Kernel, Support, Unknown

OPSET = 18
IR_VERSION = 8
"""Same as in exported backbones, so that both can be merged; ONNX Runtime 1.14 reads it."""


def to_onnx(head: Head) -> bytes:
    """Return the head as a serialised ONNX model; equal heads give equal bytes.

    Input ``embedding`` float32 (N, D), not normalised; outputs ``logits`` and ``probabilities``
    float32 (N, C), both calibrated, and ``unknown`` float32 (N,) if the head detects unknowns.
    """
    graph = _Graph()
    classes = len(head.scorer.bias)
    outputs: dict[str, list[str | int]] = {
        "logits": ["N", classes],
        "probabilities": ["N", classes],
    }
    features = _add_normalisation(graph, head.normaliser)
    expanded = _add_expansion(graph, head.scorer.expansion, features)
    scale = np.float32(1 / head.temperature)
    weights = graph.constant("weights", head.scorer.weights * scale)
    bias = graph.constant("bias", head.scorer.bias * scale)
    graph.add("Gemm", expanded, weights, bias, name="logits", transB=1)
    graph.add("Softmax", "logits", name="probabilities", axis=1)
    if head.unknown is not None:
        _add_unknown(graph, head.unknown, features)
        outputs["unknown"] = ["N"]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "head",
            [
                helper.make_tensor_value_info(
                    "embedding", TensorProto.FLOAT, ["N", len(head.normaliser.centre)]
                )
            ],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in outputs.items()
            ],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


class _Graph:
    """ONNX nodes and constants, in the order of their addition."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._distances: dict[int, str] = {}

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        output = name or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        """Add a constant and return its name."""
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def half(self, name: str, value: NDArray[np.float32]) -> str:
        """Add a constant stored in float16, with a cast to float32; return the output's name."""
        stored = self.constant(f"{name}_half", value.astype(np.float16))
        return self.add("Cast", stored, name=name, to=TensorProto.FLOAT)

    def distances(self, support: Support, features: str) -> str:
        """Add squared distances (N, M) to the points of a support, once for each support."""
        if id(support) not in self._distances:
            part = f"support{len(self._distances)}"
            centre = self.constant(f"{part}_centre", support.centre)
            projection = self.half(f"{part}_projection", support.projection)
            points = self.half(f"{part}_points", support.points)
            lengths = self.constant(f"{part}_lengths", np.square(support.points).sum(axis=1))
            twice = self.constant(f"{part}_twice", np.float32(-2))
            axis = self.constant(f"{part}_axis", np.array([1]))
            centred = self.add("Sub", features, centre)
            projected = self.add("Mul", self.add("MatMul", centred, projection), twice)
            products = self.add("Gemm", projected, points, lengths, transB=1)
            own = self.add("ReduceSumSquare", centred, axis, keepdims=1)
            self._distances[id(support)] = self.add("Relu", self.add("Add", products, own))
        return self._distances[id(support)]


def _add_normalisation(graph: _Graph, normaliser: Normaliser) -> str:
    features = "embedding"
    if normaliser.kind == "sqrt_l2":
        root = graph.add("Sqrt", graph.add("Abs", features))
        features = graph.add("Mul", graph.add("Sign", features), root)
    if normaliser.kind in {"l2", "sqrt_l2"}:
        axis = graph.constant("axis", np.array([1]))
        length = graph.add("ReduceL2", features, axis, keepdims=1)
        tiny = graph.constant("tiny", np.float32(TINY))
        return graph.add("Div", features, graph.add("Max", length, tiny))
    centred = graph.add("Sub", features, graph.constant("centre", normaliser.centre))
    return graph.add("Mul", centred, graph.constant("scale", normaliser.scale))


def _add_expansion(graph: _Graph, expansion: Kernel | Fourier | None, features: str) -> str:
    if isinstance(expansion, Kernel):
        gamma = graph.constant("gamma", np.float32(-expansion.gamma))
        distances = graph.distances(expansion.support, features)
        return graph.add("Exp", graph.add("Mul", distances, gamma))
    if isinstance(expansion, Fourier):
        projection = graph.half("directions", expansion.projection)
        phase = graph.constant("phase", expansion.phase)
        height = graph.constant("height", np.float32(np.sqrt(2 / len(expansion.phase))))
        waves = graph.add("Cos", graph.add("Gemm", features, projection, phase))
        return graph.add("Mul", waves, height)
    return features


def _add_unknown(graph: _Graph, unknown: Unknown, features: str) -> None:
    axis = graph.constant("unknown_axis", np.array([1]))
    nearest = graph.add("ReduceMin", graph.distances(unknown.support, features), axis, keepdims=0)
    highest = graph.add("ReduceMax", "logits", axis, keepdims=0)
    predicted = graph.add("ArgMax", "logits", axis=1, keepdims=0)
    logit_bias = graph.add("Gather", graph.constant("logit_bias", unknown.logit_bias), predicted)
    distance_bias = graph.constant("distance_bias", np.float32(unknown.distance_bias))
    low, far = (
        graph.add("Add", graph.add("Mul", value, graph.constant(name, np.float32(weight))), bias)
        for value, name, weight, bias in (
            (highest, "logit_weight", unknown.logit_weight, logit_bias),
            (nearest, "distance_weight", unknown.distance_weight, distance_bias),
        )
    )
    graph.add("Sigmoid", graph.add("Max", low, far), name="unknown")
