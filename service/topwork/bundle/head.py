"""The head: from an embedding to calibrated probabilities, in NumPy and as ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 8
"""As in the exported backbones, so that the two can be merged; ONNX Runtime 1.14 reads them."""

_TINY = 1e-12

F = TypeVar("F", np.float32, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Multinomial logistic regression on normalised embeddings."""

    weights: NDArray[np.float32]
    """(C, D)"""
    bias: NDArray[np.float32]
    """(C,)"""
    temperature: float
    """What the logits are divided by."""
    strength: float
    """The inverse regularisation (C) that it was solved with."""

    def logits(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return calibrated logits (N, C) for embeddings (N, D), rows in input order."""
        scale = np.float32(1 / self.temperature)
        return (normalise(embeddings) @ self.weights.T + self.bias) * scale

    def probabilities(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return probabilities (N, C) for embeddings (N, D): what the exported graph gives."""
        return softmax(self.logits(embeddings))


def normalise(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features (N, D) of unit length: the signed square root, then L2.

    The square root tames the few large entries of a pooled embedding (Perronnin et al., ECCV 2010).
    """
    features = np.sign(embeddings) * np.sqrt(np.abs(embeddings))
    length = np.sqrt(np.square(features).sum(axis=1, keepdims=True))
    return np.asarray(features / np.maximum(length, np.float32(_TINY)), dtype=np.float32)


def softmax(logits: NDArray[F]) -> NDArray[F]:
    """Return the softmax over the last axis, in the type of ``logits``."""
    shifted: NDArray[F] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shifted /= shifted.sum(axis=-1, keepdims=True)
    return shifted


def to_onnx(head: Head) -> bytes:
    """Return the head as an ONNX graph; equal heads give equal bytes.

    Input ``embedding`` float32 (N, D); outputs ``logits`` and ``probabilities`` float32 (N, C),
    both calibrated. The normalisation is inside.
    """
    classes, width = head.weights.shape
    scale = np.float32(1 / head.temperature)
    constants = {
        "weights": head.weights * scale,
        "bias": head.bias * scale,
        "tiny": np.array(_TINY, dtype=np.float32),
        "axis": np.array([1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Sign", ["embedding"], ["sign"]),
        helper.make_node("Abs", ["embedding"], ["magnitude"]),
        helper.make_node("Sqrt", ["magnitude"], ["root"]),
        helper.make_node("Mul", ["sign", "root"], ["rooted"]),
        helper.make_node("ReduceL2", ["rooted", "axis"], ["raw_length"], keepdims=1),
        helper.make_node("Max", ["raw_length", "tiny"], ["length"]),
        helper.make_node("Div", ["rooted", "length"], ["features"]),
        helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", width])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", classes])
            for name in ("logits", "probabilities")
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)
