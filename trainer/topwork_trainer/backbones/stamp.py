"""Preprocess spec in the metadata of an ONNX graph."""

from __future__ import annotations

import json
from dataclasses import asdict

import onnx

from topwork.inputs.preprocess import PreprocessSpec

SPEC_KEY = "topwork.preprocess"


def stamped(model: bytes, spec: PreprocessSpec) -> bytes:
    """Return a graph with ``spec`` in its metadata.

    A backbone is stored under the digest of its graph, so graphs that differ only in the
    preprocessing of their images need different bytes.
    """
    graph = onnx.load_from_string(model)
    onnx.helper.set_model_props(graph, {SPEC_KEY: json.dumps(asdict(spec), sort_keys=True)})
    return graph.SerializeToString(deterministic=True)
