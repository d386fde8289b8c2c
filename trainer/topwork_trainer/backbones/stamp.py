"""Preprocess spec in the metadata of an ONNX graph."""

from __future__ import annotations

import json
from dataclasses import asdict

import onnx

from topwork.inputs.spec import InputSpec
from topwork.storage.files import sha256

SPEC_KEY = "topwork.preprocess"


def stamped(model: bytes, spec: InputSpec) -> bytes:
    """Return a graph with ``spec`` in its metadata.

    A backbone is stored under the digest of its graph, so graphs that differ only in the
    preparation of their inputs need different bytes.
    """
    graph = onnx.load_from_string(model)
    onnx.helper.set_model_props(graph, {SPEC_KEY: json.dumps(spec_facts(spec), sort_keys=True)})
    return graph.SerializeToString(deterministic=True)


def spec_facts(spec: InputSpec) -> dict[str, object]:
    """Return the fields of a spec as JSON data; bytes, such as a tokenizer, by their sha256."""
    fields: dict[str, object] = asdict(spec)  # type: ignore[call-overload]  # subclasses are dataclasses
    return {
        key: sha256(value) if isinstance(value, bytes) else value for key, value in fields.items()
    }
