"""A head in memory: its own weights, fed to a graph that all heads of its form share.

An ONNX Runtime session of its own would cost each head 0.1 to 0.3 MB and copies of its weights.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from topwork.arrays import Float32Array
from topwork.errors import Corrupt
from topwork.runtime.backend import Session, open_session


class LoadedHead:
    """One head, loaded. ``run`` may be called from several threads at once."""

    def __init__(
        self, graph: Session, embedding: str, weights: Mapping[str, NDArray[Any]], *, unknown: bool
    ) -> None:
        self._graph = graph
        self._embedding = embedding
        self._weights = weights
        self._outputs = ["probabilities", "unknown"] if unknown else ["probabilities"]
        self.size = sum(weight.nbytes for weight in weights.values())
        """Bytes of its weights."""

    def run(self, embeddings: Float32Array) -> tuple[Float32Array, Float32Array | None]:
        """Return, for embeddings (N, D), what they show: rows in input order.

        Probabilities (N, C) of the labels, and the unknown probabilities (N,); None where the head
        cannot tell.
        """
        feeds = {self._embedding: embeddings, **self._weights}
        found = self._graph.run_fed(feeds, self._outputs)
        return found[0], found[1] if len(found) > 1 else None

    def logits(self, embeddings: Float32Array) -> Float32Array:
        """Return the calibrated logits (N, C), whose softmax the probabilities are."""
        (found,) = self._graph.run_fed({self._embedding: embeddings, **self._weights}, ["logits"])
        return found


class HeadLoader:
    """Loads heads; keeps one graph in memory for each form of those that are in use."""

    def __init__(self) -> None:
        self._graphs: weakref.WeakValueDictionary[bytes, Session] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def load(self, content: bytes, *, width: int, labels: int, unknown: bool) -> LoadedHead:
        """Return the head of a head.onnx, tried once. May be called from several threads at once.

        Raises Corrupt if it cannot be loaded, or does not turn embeddings of ``width`` into
        probabilities of as many ``labels`` and, if ``unknown``, an unknown probability.
        """
        try:
            form, embedding, weights = _taken_apart(content)
        except Exception as error:  # protobuf's and NumPy's, whatever the damage leads them to
            raise Corrupt(f"the head's graph cannot be read: {error}") from error
        with self._lock:
            graph = self._graphs.get(form)
            if graph is None:
                graph = open_session(form, output="probabilities")
                self._graphs[form] = graph
        if unknown and "unknown" not in graph.outputs():
            raise Corrupt("the head cannot tell the unknown, but has a threshold for it")
        head = LoadedHead(graph, embedding, weights, unknown=unknown)
        try:
            probabilities, unknowns = head.run(np.zeros((1, width), dtype=np.float32))
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise Corrupt(f"the head does not take embeddings of width {width}: {error}") from error
        if probabilities.shape != (1, labels):
            raise Corrupt(
                f"the head gives probabilities {probabilities.shape}, not {(1, labels)}: "
                f"the revision has {labels} labels"
            )
        if unknowns is not None and unknowns.shape != (1,):
            raise Corrupt(f"the head gives unknown probabilities {unknowns.shape}, not (1,)")
        return head


def _taken_apart(content: bytes) -> tuple[bytes, str, dict[str, NDArray[Any]]]:
    """Return a head's graph without weights, the name of its input, and the weights by name.

    Weights become inputs of any size, so that heads which differ in weights, labels or embeddings
    have the same graph. They stay as they are stored: 16 bits are widened in each run.
    """
    model = onnx.load_model_from_string(content)
    graph = model.graph
    embedding = graph.input[0].name
    weights: dict[str, NDArray[Any]] = {}
    kept = []
    for tensor in graph.initializer:
        is_float = tensor.data_type in {TensorProto.FLOAT, TensorProto.FLOAT16}
        if not is_float or uses_external_data(tensor):  # which open_session refuses
            kept.append(tensor)
            continue
        weights[tensor.name] = numpy_helper.to_array(tensor)
        graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, [None] * len(tensor.dims))
        )
    del graph.initializer[:], graph.value_info[:]
    for named in (model, graph):  # what says nothing of the form
        named.ClearField("doc_string")
    graph.initializer.extend(kept)
    for value in (graph.input[0], *graph.output):
        value.type.tensor_type.ClearField("shape")
    return model.SerializeToString(deterministic=True), embedding, weights
