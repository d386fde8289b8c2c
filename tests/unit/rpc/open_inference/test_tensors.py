"""Input tensors and requested outputs of the Open Inference Protocol."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import infers

from topwork.errors import ImageError, InvalidInput
from topwork.inference import inference_service_pb2 as pb
from topwork.inputs.embeddings import SentEmbedding
from topwork.inputs.preprocess import PreprocessSpec
from topwork.inputs.spec import SentContent
from topwork.limits import ServerLimits
from topwork.rpc.open_inference import answers, tensors
from topwork.rpc.open_inference.tensors import RequestedOutputs
from topwork.serving.classify_batch import ClassifierInput

LIMITS = ServerLimits(max_images_per_request=4)
SPEC = PreprocessSpec(resize=4, crop=2)
PIXELS = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)


def pixels(image: ClassifierInput) -> Any:
    """Return the pixels of an input that is not an encoded image."""
    assert not isinstance(image, bytes | SentEmbedding | SentContent)
    return image.pixels(SPEC)


def refusal(request: pb.ModelInferRequest) -> InvalidInput:
    """Return the error of a refusal input."""
    with pytest.raises(InvalidInput) as caught:
        tensors.images(request, LIMITS)
    return caught.value


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("column", [True, False])
def test_encoded_images_keep_their_order(raw: bool, column: bool) -> None:
    """BYTES [N] and [N, 1], raw and typed, are N files, empty ones too."""
    request = infers.request([b"one", b"", b"three"], raw=raw)
    if column:
        request.inputs[0].shape.append(1)
    assert list(tensors.images(request, LIMITS)) == [b"one", b"", b"three"]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_pixels_keep_their_order(raw: bool, dtype: type[np.generic]) -> None:
    """UINT8 and FP32, raw and typed, are the same pixels."""
    found = tensors.images(infers.request(PIXELS.astype(dtype), raw=raw), LIMITS)
    assert np.array_equal([pixels(image) for image in found], PIXELS)


def test_typed_uint8_out_of_range_is_refused() -> None:
    """Typed UINT8 contents have 32 bits: 256 is refusal, not truncated to 0."""
    request = infers.request(PIXELS, raw=False)
    request.inputs[0].contents.uint_contents[12] = 256
    first, second, _ = tensors.images(request, LIMITS)
    assert np.array_equal(pixels(first), PIXELS[0])
    with pytest.raises(ImageError, match="from 13 to 256"):
        pixels(second)


def test_pixels_of_wrong_size_are_an_image_error() -> None:
    """The model's crop is not known when the request is read.

    The image fails when it is preprocessed.
    """
    (image,) = tensors.images(infers.request(PIXELS[:1, :1]), LIMITS)
    with pytest.raises(ImageError, match=r"shape \(1, 2, 3\)"):
        pixels(image)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "image"}, "inputs[0].name"),
        ({"name": ""}, "inputs[0].name"),
        ({"name": "pixels"}, "inputs[0].datatype"),
        ({"datatype": "UINT8"}, "inputs[0].datatype"),
        ({"datatype": "bytes"}, "inputs[0].datatype"),
        ({"datatype": ""}, "inputs[0].datatype"),
        ({"shape": []}, "inputs[0].shape"),
        ({"shape": [0]}, "inputs[0].shape"),
        ({"shape": [-1]}, "inputs[0].shape"),
        ({"shape": [2, 2]}, "inputs[0].shape"),
        ({"shape": [2, 1, 1]}, "inputs[0].shape"),
        ({"shape": [2] * 10_000}, "inputs[0].shape"),
        ({"shape": [1]}, "raw_input_contents[0]"),
        ({"shape": [3]}, "raw_input_contents[0]"),
        ({"shape": [5]}, "images"),
        ({"shape": [2**62]}, "images"),
    ],
)
def test_malformed_images_input_is_refused(change: dict[str, Any], field: str) -> None:
    """Name, datatype, shape and contents must match; the error names the field."""
    request = infers.request([b"one", b"two"])
    for name, value in change.items():
        request.inputs[0].ClearField(name)  # type: ignore[arg-type]  # a field's name
        request.inputs[0].MergeFrom(pb.ModelInferRequest.InferInputTensor(**{name: value}))
    assert refusal(request).field == field


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    ("shape", "field"),
    [
        ([3, 2, 2], "inputs[0].shape"),
        ([3, 2, 2, 3, 1], "inputs[0].shape"),
        ([3, 0, 2, 3], "inputs[0].shape"),
        ([3, -2, -2, 3], "inputs[0].shape"),
        ([2, 2, 2, 3], "inputs[0]"),
        ([4, 2, 2, 3], "inputs[0]"),
        ([3, 2**62, 2**62, 3], "inputs[0]"),
        ([36, 1, 1, 1], "images"),
    ],
)
def test_malformed_pixels_shape_is_refused(raw: bool, shape: list[int], field: str) -> None:
    """A shape must have four dimensions and match the number of elements, however large it is."""
    request = infers.request(PIXELS, raw=raw)
    request.inputs[0].shape[:] = shape
    assert refusal(request).field == field


def test_request_must_have_one_input() -> None:
    """No input is refusal, and so are two."""
    assert refusal(pb.ModelInferRequest()).field == "inputs"
    both = infers.request([b"one"])
    both.MergeFrom(infers.request(PIXELS))
    assert refusal(both).field == "inputs"


def test_raw_and_typed_contents_together_are_refused() -> None:
    """Typed contents beside raw ones are ambiguous."""
    request = infers.request([b"one"])
    request.inputs[0].contents.bytes_contents.append(b"two")
    assert refusal(request).field == "inputs[0].contents"


def test_number_of_raw_contents_must_match() -> None:
    """There must be one entry of raw contents, as there is one input."""
    request = infers.request([b"one"])
    request.raw_input_contents.append(b"")
    assert refusal(request).field == "raw_input_contents"


@pytest.mark.parametrize("name", ["int_contents", "fp32_contents", "bool_contents"])
def test_contents_of_wrong_type_are_refused(name: str) -> None:
    """UINT8 belongs in uint_contents; any other field is refusal, alone or beside it."""
    for keep in (True, False):
        request = infers.request(PIXELS, raw=False)
        if not keep:
            request.inputs[0].contents.Clear()
        getattr(request.inputs[0].contents, name).extend([1] * PIXELS.size)
        error = refusal(request)
        assert (error.field, name in str(error)) == ("inputs[0].contents", True)


def test_missing_contents_are_refused() -> None:
    """A tensor without elements is not N empty images."""
    request = infers.request([b"one"], raw=False)
    request.inputs[0].contents.Clear()
    assert refusal(request).field == "inputs[0]"


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (b"", 1),
        (b"\0\0\0", 1),
        (struct.pack("<I", 2**32 - 1) + b"one", 1),
        (struct.pack("<I", 4) + b"one", 1),
        (struct.pack("<I", 3) + b"one", 2),
        (struct.pack("<I", 3) + b"one" + b"x", 1),
        (struct.pack(">I", 3) + b"one", 1),
    ],
)
def test_wrong_element_lengths_are_refused(content: bytes, count: int) -> None:
    """Elements must end where the contents do; a length of 4 GiB costs nothing."""
    with pytest.raises(InvalidInput):
        tensors.split(content, count)


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_split_reverses_join(elements: list[bytes]) -> None:
    """Raw BYTES contents are split into the elements that they were joined from."""
    assert tensors.split(answers.join(elements), len(elements)) == elements


@given(st.binary(max_size=60), st.integers(0, 6))
def test_any_contents_are_split_exactly_or_refused(content: bytes, count: int) -> None:
    """For any bytes, no byte is lost and none is invented."""
    try:
        elements = tensors.split(content, count)
    except InvalidInput:
        return
    assert len(elements) == count
    assert answers.join(elements) == content


@st.composite
def valid_requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Return a valid request."""
    count, raw = draw(st.integers(1, 4)), draw(st.booleans())
    if draw(st.booleans()):
        files = st.lists(st.binary(max_size=9), min_size=count, max_size=count)
        return infers.request(draw(files), raw=raw)
    numbers = draw(st.binary(min_size=12 * count, max_size=12 * count))
    dtype = draw(st.sampled_from([np.uint8, np.float32]))
    values = np.frombuffer(numbers, dtype=np.uint8).reshape(count, 2, 2, 3).astype(dtype)
    return infers.request(values, raw=raw)


@given(valid_requests())
def test_valid_request_is_accepted(request: pb.ModelInferRequest) -> None:
    """Every image is encoded, or has pixels of the model's size."""
    images = tensors.images(request, LIMITS)
    assert len(images) == request.inputs[0].shape[0]
    for image in images:
        if isinstance(image, SentEmbedding):
            assert image.size == 4 * request.inputs[0].shape[1]
        elif not isinstance(image, bytes | SentContent):
            assert image.pixels(SPEC).shape == (2, 2, 3)


@pytest.mark.slow
@given(valid_requests(), st.data())
def test_damaged_request_is_refused(request: pb.ModelInferRequest, data: st.DataObject) -> None:
    """A shape or contents that no longer match are InvalidInput with the field."""
    tensor, raw = request.inputs[0], request.raw_input_contents
    if data.draw(st.booleans()):
        axis = data.draw(st.integers(0, len(tensor.shape) - 1))
        sizes = st.integers(-2, 9) | st.sampled_from([2**31, 2**63 - 1, -(2**63)])
        tensor.shape[axis] = data.draw(sizes.filter(lambda size: size != tensor.shape[axis]))
    elif len(raw) and data.draw(st.booleans()):
        raw[0] += data.draw(st.binary(min_size=1, max_size=9))
    elif len(raw):
        raw[0] = raw[0][: data.draw(st.integers(0, len(raw[0]) - 1))]
    else:
        (_, elements), *_ = tensor.contents.ListFields()
        del elements[data.draw(st.integers(0, len(elements) - 1)) :]
    assert refusal(request).field


def test_request_without_outputs_gets_all() -> None:
    """All outputs are returned in the order of the metadata."""
    names = [output.name for output in tensors.wanted(pb.ModelInferRequest())]
    assert names == ["probabilities", "logits", "embedding"]


def test_outputs_keep_the_order_of_the_request() -> None:
    """The client's order is kept, with the number of classes of each."""
    request = infers.request([b""], outputs=["embedding", "probabilities"])
    request.outputs[1].parameters["classification"].int64_param = 3
    assert tensors.wanted(request) == (
        RequestedOutputs("embedding", 0),
        RequestedOutputs("probabilities", 3),
    )


@pytest.mark.parametrize(
    ("names", "field"),
    [
        (["logit"], "outputs[0].name"),
        (["logits", ""], "outputs[1].name"),
        (["logits", "logits"], "outputs"),
    ],
)
def test_unknown_or_duplicate_output_is_refused(names: list[str], field: str) -> None:
    """An unknown output is refusal, and one that is named twice."""
    with pytest.raises(InvalidInput) as caught:
        tensors.wanted(infers.request([b""], outputs=names))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("probabilities", pb.InferParameter(int64_param=0)),
        ("probabilities", pb.InferParameter(int64_param=-1)),
        ("probabilities", pb.InferParameter(string_param="3")),
        ("embedding", pb.InferParameter(int64_param=3)),
    ],
)
def test_invalid_classification_is_refused(name: str, value: pb.InferParameter) -> None:
    """It is an int64 of at least 1, and not of the embedding, which has no labels."""
    request = infers.request([b""], outputs=[name])
    request.outputs[0].parameters["classification"].CopyFrom(value)
    with pytest.raises(InvalidInput) as caught:
        tensors.wanted(request)
    assert caught.value.field == "outputs[0].parameters"


def test_shared_memory_is_refused() -> None:
    """Contents in shared memory are not treated as missing ones."""
    request = infers.request([b"one"], outputs=["logits"])
    for tensor in (request.inputs[0], request.outputs[0]):
        tensor.parameters["shared_memory_region"].string_param = "region"
    assert refusal(request).field == "inputs[0].parameters"
    with pytest.raises(InvalidInput, match="shares no memory"):
        tensors.wanted(request)
