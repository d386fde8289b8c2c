"""Inputs and output of a text encoder's ONNX graph, in the usual layout of exporters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from topwork.inputs.text import Tokens
from topwork_trainer.backbones.onnx_graph import constants_of

FILLED = {"attention_mask": 1, "token_type_ids": 0}
"""Inputs beside the tokens, and their only value: a text is alone, whole, and the first segment."""

_INTEGERS = {TensorProto.INT64, TensorProto.INT32}
_TYPES = {*_INTEGERS, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BOOL}

_PREFERRED = ("sentence_embedding", "last_hidden_state", "token_embeddings", "pooler_output")
"""Names of outputs that are embeddings, the better one first."""
_PREFERRED_TOKENS = ("last_hidden_state", "token_embeddings")
_LOGITS = ("logits", "prediction_logits")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTensor:
    """An input (N, T) of a graph."""

    name: str
    element: int
    """Type of the elements, a value of TensorProto.DataType."""

    @property
    def type_name(self) -> str:
        """Name of the type, such as ``int64``."""
        return TensorProto.DataType.Name(self.element).lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderInputs:
    """All inputs of an encoder."""

    tokens: GraphTensor
    filled: Mapping[GraphTensor, int]
    """The others, each with its only value."""

    def feeds(self, tokens: Tokens) -> dict[str, NDArray[Any]]:
        """Return the values of all inputs for one text (T,)."""
        values = {self.tokens: tokens[None]}
        values |= {each: np.full((1, len(tokens)), value) for each, value in self.filled.items()}
        return {
            each.name: value.astype(helper.tensor_dtype_to_np_dtype(each.element))
            for each, value in values.items()
        }


def find_inputs(model: onnx.ModelProto) -> EncoderInputs:
    """Return the inputs of a graph. Raises ValueError if it does not take texts of any length."""
    weights = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in weights]
    tensors = {value.name: _tensor(value) for value in given}
    others = [name for name in tensors if name not in FILLED]
    ids = [name for name in others if name == "input_ids"] or others
    if unknown := [name for name in others if name not in ids[:1]]:
        raise ValueError(
            f"it has the inputs {', '.join(map(repr, tensors))}; besides the tokens only "
            f"{' and '.join(FILLED)} are known, not {unknown[0]!r}"
        )
    if not ids:
        raise ValueError(f"it has no input of tokens, such as input_ids, but {list(tensors)}")
    tokens = tensors[ids[0]]
    if tokens.element not in _INTEGERS:
        raise ValueError(
            f"its input {tokens.name!r} is {tokens.type_name}; tokens are int64 or int32"
        )
    filled = {tensors[name]: value for name, value in FILLED.items() if name in tensors}
    return EncoderInputs(tokens=tokens, filled=filled)


def find_output(model: onnx.ModelProto, wanted: str | None, *, pools: bool) -> str:
    """Return the tensor to use: ``wanted``, or the output whose name says that it is an embedding.

    With ``pools`` it is one with a row per token, if there is one. Raises ValueError.
    """
    names = [value.name for value in model.graph.output]
    if wanted is not None:
        if wanted not in {name for node in model.graph.node for name in node.output}:
            raise ValueError(f"it has no tensor {wanted!r}; its outputs are {_list(names)}")
        return wanted
    preferred = (*_PREFERRED_TOKENS, *_PREFERRED) if pools else _PREFERRED
    found = next((name for name in preferred if name in names), None)
    if found is not None:
        return found
    if len(names) != 1:
        raise ValueError(
            f"it has the outputs {_list(names)}, of which none is named "
            f"{' or '.join(_PREFERRED)}: choose one with --output"
        )
    if names[0] in _LOGITS:
        raise ValueError(
            f"its only output {names[0]!r} is that of a classifier or a language model: export the "
            "encoder alone (Optimum: --task feature-extraction), or choose with --output"
        )
    return names[0]


def vocabulary_rows(model: onnx.ModelProto, tokens: str) -> int | None:
    """Return the rows of the table in which the input ``tokens`` is looked up; None: not found."""
    constants = constants_of(model.graph)
    same = {tokens}
    for node in model.graph.node:
        if node.op_type in {"Cast", "Identity"} and node.input[0] in same:
            same.update(node.output)
        elif node.op_type == "Gather" and node.input[1] in same:
            table = constants.get(node.input[0])
            if table is not None and table.ndim == 2:
                return len(table)
    return None


def _tensor(value: onnx.ValueInfoProto) -> GraphTensor:
    kind = value.type.tensor_type
    tensor = GraphTensor(name=value.name, element=kind.elem_type)
    if kind.elem_type not in _TYPES:
        raise ValueError(f"its input {value.name!r} is {tensor.type_name}; it must be int64")
    dims = [dim.dim_value for dim in kind.shape.dim]
    if len(dims) != 2:
        raise ValueError(
            f"its input {value.name!r} has {len(dims)} dimensions; texts have two, their number "
            "and their tokens"
        )
    for size, name in zip(dims, ("batch size", "sequence length"), strict=True):
        if size:
            raise ValueError(
                f"its input {value.name!r} has a fixed {name} of {size}: export it with dynamic "
                "axes for both"
            )
    return tensor


def _list(names: list[str]) -> str:
    return ", ".join(map(repr, names))
