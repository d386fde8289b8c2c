"""Heads in memory: weights of each head, fed to a graph that heads of the same structure share.

A separate ONNX Runtime session per head would cost 0.1 to 0.3 MB and copies of the weights.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from topwork.arrays import Float32Array
from topwork.bundle.head import Head
from topwork.bundle.head_reading import read_head
from topwork.errors import Corrupt
from topwork.runtime.backend import Session, open_session


class LoadedHead:
    """Head in memory. ``run`` may be called from several threads at once."""

    def __init__(
        self,
        graph: Session,
        embedding: str,
        weights: Mapping[str, NDArray[Any]],
        operators: frozenset[str],
        *,
        unknown: bool,
    ) -> None:
        self._graph = graph
        self._operators = operators
        self._read: Head | None = None
        self._embedding = embedding
        self._weights = weights
        self._outputs = ["probabilities", "unknown"] if unknown else ["probabilities"]
        self.size = sum(weight.nbytes for weight in weights.values())
        """Bytes of the weights."""

    def run(self, embeddings: Float32Array) -> tuple[Float32Array, Float32Array | None]:
        """Return probabilities (N, C) and unknown probabilities (N,) for embeddings (N, D).

        Rows are in input order, and none depends on the others, to the last bit. Unknown
        probabilities are None if the head has no detection.
        """
        outputs = self._run(embeddings, self._outputs)
        return outputs[0], outputs[1] if len(outputs) > 1 else None

    def logits(self, embeddings: Float32Array) -> Float32Array:
        """Return the calibrated logits (N, C); their softmax gives the probabilities."""
        (logits,) = self._run(embeddings, ["logits"])
        return logits

    def read(self, width: int) -> Head:
        """Return the head in NumPy, for embeddings of ``width``. Raises KeyError if it cannot.

        It stays in memory: the first call widens 16-bit weights.
        """
        if self._read is None:
            self._read = read_head(self._weights, self._operators, width)
        return self._read

    def _run(self, embeddings: Float32Array, outputs: Sequence[str]) -> list[Float32Array]:
        """Return the outputs of the graph. A lone row is run twice, for 0.06 to 0.11 ms of a core.

        ONNX Runtime multiplies a vector by a matrix in another order than two vectors or more, and
        rounds differently: a photo's answer would depend on the photos that others send meanwhile.
        """
        rows = len(embeddings)
        batch = np.repeat(embeddings, 2, axis=0) if rows == 1 else embeddings
        found = self._graph.run_fed({self._embedding: batch, **self._weights}, outputs)
        return [output[:rows] for output in found]


class HeadLoader:
    """Loader of heads, with a graph in memory for each structure in use."""

    def __init__(self) -> None:
        self._graphs: weakref.WeakValueDictionary[bytes, Session] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def load(self, content: bytes, *, width: int, labels: int, unknown: bool) -> LoadedHead:
        """Return the head of a head.onnx after a test run. May be called from several threads.

        Raises Corrupt if the head cannot be loaded, or does not map embeddings of ``width`` to
        probabilities of ``labels`` labels and, if ``unknown``, to an unknown probability.
        """
        try:
            structure, embedding, weights, operators = _split_weights(content)
        except Exception as error:  # protobuf and NumPy raise many types for damaged input
            raise Corrupt(f"the head's graph cannot be read: {error}") from error
        with self._lock:
            graph = self._graphs.get(structure)
            if graph is None:
                graph = open_session(structure, output="probabilities")
                self._graphs[structure] = graph
        if unknown and "unknown" not in graph.outputs():
            raise Corrupt("the head has an unknown threshold, but no output 'unknown'")
        head = LoadedHead(graph, embedding, weights, operators, unknown=unknown)
        try:
            probabilities, unknowns = head.run(np.zeros((1, width), dtype=np.float32))
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise Corrupt(f"the head does not take embeddings of width {width}: {error}") from error
        if probabilities.shape != (1, labels):
            raise Corrupt(
                f"the head gives probabilities {probabilities.shape}, not {(1, labels)}: "
                f"the revision has {labels} labels"
            )
        if unknowns is not None and unknowns.shape != (1,):
            raise Corrupt(f"the head gives unknown probabilities {unknowns.shape}, not (1,)")
        return head


def _split_weights(
    content: bytes,
) -> tuple[bytes, str, dict[str, NDArray[Any]], frozenset[str]]:
    """Return a head's graph without weights, its input, the weights by name, and its operators.

    Weights become inputs of any size, so that heads that differ in weights, labels or embeddings
    have the same graph. Their stored type does not change: 16-bit weights are widened in each run.
    """
    model = onnx.load_model_from_string(content)
    graph = model.graph
    embedding = graph.input[0].name
    weights: dict[str, NDArray[Any]] = {}
    constants = []
    for tensor in graph.initializer:
        is_float = tensor.data_type in {TensorProto.FLOAT, TensorProto.FLOAT16}
        if not is_float or uses_external_data(tensor):  # open_session refuses external data
            constants.append(tensor)
            continue
        weights[tensor.name] = numpy_helper.to_array(tensor)
        graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, [None] * len(tensor.dims))
        )
    del graph.initializer[:], graph.value_info[:]
    for part in (model, graph):
        part.ClearField("doc_string")
    graph.initializer.extend(constants)
    for value in (graph.input[0], *graph.output):
        value.type.tensor_type.ClearField("shape")
    operators = frozenset(node.op_type for node in graph.node)
    return model.SerializeToString(deterministic=True), embedding, weights, operators
