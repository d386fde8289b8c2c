"""Reading of a user's ONNX file, which may be hostile, as one graph of known operators."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, inliner, numpy_helper

from topwork.errors import Corrupt, InvalidInput
from topwork.runtime.backend import is_external, tensors
from topwork.storage import files

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Domains of the operators that ONNX Runtime has; all others need code of their own."""

LARGEST = 2**31 - 1
"""Size in bytes of the largest protobuf message, and so of the largest ONNX file."""

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}


def unusable(file: Path, why: object) -> InvalidInput:
    """Return the error for an ONNX file that cannot be used."""
    reason = textwrap.shorten(str(why), 400, placeholder=" ...")
    return InvalidInput(f"ONNX file {file} cannot be used: {reason}", field="onnx")


def read(file: Path) -> onnx.ModelProto:
    """Return the model in an ONNX file, with inlined functions, weights and no metadata.

    Weights may be in files beside it, not in other folders. Raises InvalidInput if it is no ONNX
    file, needs other files or operators, has NaN weights, or is larger than LARGEST.
    """
    try:
        model = onnx.load_model_from_string(_content(file.resolve(), file))
    except InvalidInput:
        raise
    except Exception as error:  # protobuf's errors; the trainer does not import it
        raise unusable(file, f"it is not an ONNX model ({error})") from error
    if not model.graph.node:
        raise unusable(file, "it is not an ONNX model, or has no operators")
    if model.graph.sparse_initializer:
        raise unusable(file, "it has sparse weights, which not all software reads")
    _load_external(model, file)
    if model.functions:
        try:
            model = inliner.inline_local_functions(model)
        except Exception as error:  # errors of its C++ code
            raise unusable(file, f"its functions cannot be inlined ({error})") from error
    if foreign := sorted({node.domain for node in nodes_of(model.graph)} - DOMAINS):
        raise unusable(
            file, f"it has operators of {', '.join(foreign)}, which ONNX Runtime does not have"
        )
    for tensor in tensors(model):
        if tensor.data_type in _FLOATS and _has_nan(tensor, file):
            raise unusable(file, f"its weights {tensor.name!r} contain NaN")
    del model.metadata_props[:], model.training_info[:]
    model.ClearField("doc_string")
    return model


def digest(file: Path) -> str:
    """Return the sha256 of an ONNX file, in hexadecimal."""
    return files.sha256(_content(file.resolve(), file))


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield all nodes of a graph, also those of subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from nodes_of(subgraph)


def _content(path: Path, file: Path) -> bytes:
    """Return the bytes of a regular file that ``file`` needs."""
    try:
        with files.open_file(path) as stream:
            content = stream.read(LARGEST + 1)
    except (OSError, Corrupt) as error:
        raise unusable(file, error) from error
    if len(content) > LARGEST:
        raise unusable(file, f"{path.name} is larger than the 2 GiB that one ONNX file can hold")
    return content


def _load_external(model: onnx.ModelProto, file: Path) -> None:
    """Move weights that are in files beside ``file`` into the model."""
    contents: dict[str, bytes] = {}
    total = model.ByteSize()
    for tensor in tensors(model):
        if not is_external(tensor):
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        name = where.get("location", "")
        if not name or name in {".", ".."} or "\0" in name or Path(name).name != name:
            raise unusable(
                file, f"its weights {tensor.name!r} are in {name!r}, which is not a file beside it"
            )
        if name not in contents:
            contents[name] = _content(file.with_name(name), file)
        try:
            start = int(where.get("offset", 0))
            end = start + int(where.get("length", len(contents[name]) - start))
        except ValueError as error:
            raise unusable(file, f"the place of its weights {tensor.name!r} is invalid") from error
        if not 0 <= start <= end <= len(contents[name]):
            raise unusable(file, f"its weights {tensor.name!r} are not in {name!r}: it is cut off")
        total += end - start
        if total > LARGEST:
            raise unusable(file, "it is larger than the 2 GiB that one ONNX file can hold")
        tensor.raw_data = contents[name][start:end]
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


def _has_nan(tensor: onnx.TensorProto, file: Path) -> bool:
    try:
        return bool(np.isnan(numpy_helper.to_array(tensor)).any())
    except Exception as error:  # values of another number or type than the shape says
        raise unusable(file, f"its weights {tensor.name!r} are damaged ({error})") from error
