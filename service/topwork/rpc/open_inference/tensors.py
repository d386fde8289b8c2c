"""Input tensors of the Open Inference Protocol: the images of a request, and its outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.errors import InvalidInput
from topwork.inference import inference_service_pb2 as pb
from topwork.inputs.audio import SentAudio
from topwork.inputs.embeddings import SentEmbedding
from topwork.inputs.image import Pixels
from topwork.inputs.prepared import to_pixels
from topwork.inputs.preprocess import PreprocessSpec
from topwork.inputs.text import SentText
from topwork.limits import ServerLimits
from topwork.serving.classifier import check_count
from topwork.serving.classify_batch import ClassifierInput

OUTPUTS = ("probabilities", "logits", "embedding")
"""All outputs, in the order in which they are returned if the request names none."""

_INPUTS = {
    "images": ("BYTES",),
    "pixels": ("UINT8", "FP32"),
    "embeddings": ("FP32",),
    "texts": ("BYTES",),
    "audio": ("BYTES",),
}
_SHAPES = {
    "images": "[N] or [N, 1]",
    "texts": "[N] or [N, 1]",
    "audio": "[N] or [N, 1]",
    "pixels": "[N, crop, crop, 3]",
    "embeddings": "[N, width]",
}
_TYPED = {"BYTES": "bytes_contents", "UINT8": "uint_contents", "FP32": "fp32_contents"}
_ELEMENTS: dict[str, np.dtype[Any]] = {"UINT8": np.dtype(np.uint8), "FP32": np.dtype("<f4")}
"""Types of raw contents; typed UINT8 contents have 32 bits an element."""

_NAMES = ", ".join(_INPUTS)
_SENT = {"texts": SentText, "audio": SentAudio}
_SHARED_MEMORY = "shared_memory_region"


@dataclass(frozen=True, slots=True)
class RequestedOutputs:
    """An output that a request names."""

    name: str
    classes: int
    """Number of largest scores to return as text; 0: all scores, as numbers."""


def images(request: pb.ModelInferRequest, limits: ServerLimits) -> Sequence[ClassifierInput]:
    """Return the inputs of a request. Raises InvalidInput if its input is malformed.

    Pixels and embeddings are checked later, by the spec of the model; they raise ImageError then.
    """
    if len(request.inputs) != 1:
        raise InvalidInput(
            f"the request has {len(request.inputs)} inputs; it must have one: {_NAMES}",
            field="inputs",
        )
    tensor = request.inputs[0]
    shape = _checked(tensor, limits)
    if not request.raw_input_contents:
        return _typed(tensor, shape)
    if len(request.raw_input_contents) != 1:
        raise InvalidInput(
            f"raw_input_contents has {len(request.raw_input_contents)} entries for one input",
            field="raw_input_contents",
        )
    if tensor.contents.ListFields():
        raise InvalidInput(
            "the input has typed contents beside raw_input_contents; it must have one of them",
            field="inputs[0].contents",
        )
    content = request.raw_input_contents[0]
    if tensor.datatype == "BYTES":
        return _contents(tensor.name, split(content, shape[0]))
    dtype = _ELEMENTS[tensor.datatype]
    _check_size(len(content), math.prod(shape) * dtype.itemsize, "bytes", shape)
    rows = np.frombuffer(content, dtype=dtype).reshape(shape)
    if tensor.name == "embeddings":
        return [SentEmbedding(row) for row in rows]
    return [_Raw(row) for row in rows]


def wanted(request: pb.ModelInferRequest) -> tuple[RequestedOutputs, ...]:
    """Return the outputs that a request names, in its order. Raises InvalidInput."""
    found = []
    for index, output in enumerate(request.outputs):
        field = f"outputs[{index}]"
        if output.name not in OUTPUTS:
            raise InvalidInput(
                f"there is no output {output.name[:80]!r}; there are {', '.join(OUTPUTS)}",
                field=f"{field}.name",
            )
        _refuse_shared_memory(output.parameters, field)
        found.append(RequestedOutputs(output.name, _classes(output, field)))
    if len({output.name for output in found}) < len(found):
        raise InvalidInput("an output is asked for twice", field="outputs")
    return tuple(found) or tuple(RequestedOutputs(name, 0) for name in OUTPUTS)


def split(content: bytes, count: int) -> list[bytes]:
    """Return the ``count`` elements of a raw BYTES tensor. Raises InvalidInput."""
    elements, end = [], 0
    for index in range(count):
        start = end + 4
        end = start + int.from_bytes(content[end:start], "little")
        if start > len(content) or end > len(content):
            raise InvalidInput(
                f"raw_input_contents[0] ends within element {index} of {count}: it has "
                f"{len(content)} bytes, the element ends at {end}",
                field="raw_input_contents[0]",
            )
        elements.append(content[start:end])
    if end != len(content):
        raise InvalidInput(
            f"raw_input_contents[0] has {len(content)} bytes; its {count} elements end at {end}",
            field="raw_input_contents[0]",
        )
    return elements


@dataclass(frozen=True, slots=True)
class _Raw:
    """One image of a raw tensor."""

    values: NDArray[Any]

    @property
    def size(self) -> int:
        """See PreparedImage."""
        return self.values.nbytes

    def pixels(self, spec: PreprocessSpec) -> Pixels:
        """See PreparedImage."""
        return to_pixels(self.values, spec)


@dataclass(frozen=True, slots=True)
class _Typed:
    """One image of a typed tensor; its numbers become an array only when they are needed."""

    elements: Sequence[float]
    """Numbers of all images."""
    index: int
    shape: list[int]
    dtype: type[np.generic]

    @property
    def size(self) -> int:
        """See PreparedImage."""
        return 4 * math.prod(self.shape)

    def pixels(self, spec: PreprocessSpec) -> Pixels:
        """See PreparedImage."""
        size = math.prod(self.shape)
        own = self.elements[self.index * size : (self.index + 1) * size]
        return to_pixels(np.array(own, dtype=self.dtype).reshape(self.shape), spec)


def _checked(tensor: pb.ModelInferRequest.InferInputTensor, limits: ServerLimits) -> list[int]:
    """Return an input's shape. Raises InvalidInput for a wrong name, datatype or shape."""
    datatypes = _INPUTS.get(tensor.name)
    if datatypes is None:
        raise InvalidInput(
            f"there is no input {tensor.name[:80]!r}; there are {_NAMES}",
            field="inputs[0].name",
        )
    if tensor.datatype not in datatypes:
        raise InvalidInput(
            f"{tensor.name} is {tensor.datatype[:80]!r}; it must be {' or '.join(datatypes)}",
            field="inputs[0].datatype",
        )
    _refuse_shared_memory(tensor.parameters, "inputs[0]")
    shape = list(tensor.shape[:8])
    single = len(shape) == 1 or shape[1:] == [1]
    fits = {
        "images": single,
        "texts": single,
        "audio": single,
        "pixels": len(shape) == 4,
        "embeddings": len(shape) == 2,
    }
    if not fits[tensor.name] or min(shape) < 1:
        raise InvalidInput(
            f"{tensor.name} has shape {shape}; it must be {_SHAPES[tensor.name]}",
            field="inputs[0].shape",
        )
    check_count(shape[0], limits)
    return shape


def _typed(
    tensor: pb.ModelInferRequest.InferInputTensor, shape: list[int]
) -> Sequence[ClassifierInput]:
    name = _TYPED[tensor.datatype]
    others = [field.name for field, _ in tensor.contents.ListFields() if field.name != name]
    if others:
        raise InvalidInput(
            f"the input has {', '.join(others)}; {tensor.datatype} has {name}",
            field="inputs[0].contents",
        )
    elements = getattr(tensor.contents, name)
    _check_size(len(elements), math.prod(shape), "elements", shape)
    if tensor.datatype == "BYTES":
        return _contents(tensor.name, elements)
    if tensor.name == "embeddings":
        rows = np.fromiter(elements, dtype=np.float32, count=len(elements)).reshape(shape)
        return [SentEmbedding(row) for row in rows]
    dtype = np.uint32 if tensor.datatype == "UINT8" else np.float32
    return [_Typed(elements, index, shape[1:], dtype) for index in range(shape[0])]


def _contents(name: str, contents: Sequence[bytes]) -> Sequence[ClassifierInput]:
    return [_SENT[name](content) for content in contents] if name in _SENT else list(contents)


def _check_size(found: int, expected: int, unit: str, shape: list[int]) -> None:
    if found != expected:
        raise InvalidInput(
            f"the input has {found} {unit}; shape {shape} has {expected}", field="inputs[0]"
        )


def _classes(output: pb.ModelInferRequest.InferRequestedOutputTensor, field: str) -> int:
    if "classification" not in output.parameters:
        return 0
    classes = output.parameters["classification"].int64_param
    if classes < 1 or output.name == "embedding":
        raise InvalidInput(
            f"classification is {classes} of {output.name}; it must be an int64, at least 1, and "
            "not of the embedding",
            field=f"{field}.parameters",
        )
    return classes


def _refuse_shared_memory(parameters: Mapping[str, pb.InferParameter], field: str) -> None:
    if _SHARED_MEMORY in parameters:
        raise InvalidInput(
            "the server shares no memory with its clients; send the contents",
            field=f"{field}.parameters",
        )
