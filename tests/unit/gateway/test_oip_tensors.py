"""Tensors of the Open Inference Protocol as JSON and as binary data."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from topwork.errors import InvalidInput
from topwork.gateway import oip_tensors
from topwork.inference import inference_service_pb2 as pb

IMAGES = {"name": "images", "datatype": "BYTES", "shape": [1]}
TEXT = base64.b64encode(b"image").decode()
RAW = b"\x05\0\0\0image"


def parse(tree: Any, tail: bytes = b"") -> oip_tensors.Parsed:
    """Return a parsed request to model m, whose body has ``tail`` after the JSON."""
    head = json.dumps(tree).encode()
    return oip_tensors.parse(head + tail, len(head), "m", "")


def test_json_and_binary_data_are_the_same_tensor() -> None:
    """Base64 in JSON gives the bytes of a binary tensor."""
    by_json = parse({"inputs": [{**IMAGES, "data": [TEXT]}]})
    by_binary = parse({"inputs": [{**IMAGES, "parameters": {"binary_data_size": 9}}]}, RAW)
    assert by_json.message == by_binary.message
    assert list(by_json.message.raw_input_contents) == [RAW]


@pytest.mark.parametrize(
    ("datatype", "data", "raw"),
    [
        ("UINT8", [[1, 2], [255]], b"\x01\x02\xff"),
        ("FP32", [1.0, 2], b"\0\0\x80?\0\0\0@"),
    ],
)
def test_nested_data_is_flattened(datatype: str, data: list[Any], raw: bytes) -> None:
    """Pixels may be nested lists."""
    tensor = {"name": "pixels", "datatype": datatype, "shape": [3], "data": data}
    assert list(parse({"inputs": [tensor]}).message.raw_input_contents) == [raw]


@pytest.mark.parametrize(
    ("tree", "tail"),
    [
        ({"inputs": 1}, b""),
        ({"inputs": [1]}, b""),
        ({"inputs": [IMAGES]}, b""),
        ({"inputs": [{**IMAGES, "data": ["%"]}]}, b""),
        ({"inputs": [{**IMAGES, "data": [1]}]}, b""),
        ({"inputs": [{**IMAGES, "data": [TEXT], "shape": ["x"]}]}, b""),
        ({"inputs": [{**IMAGES, "data": [TEXT], "shape": [2**70]}]}, b""),
        ({"inputs": [{**IMAGES, "data": [TEXT]}]}, b"more"),
        ({"inputs": [{**IMAGES, "parameters": {"binary_data_size": 10}}]}, RAW),
        ({"inputs": [{**IMAGES, "parameters": {"binary_data_size": -1}}]}, RAW),
        ({"inputs": [{**IMAGES, "parameters": {"binary_data_size": "9"}}]}, RAW),
        ({"inputs": [{**IMAGES, "datatype": "INT7", "data": [1]}]}, b""),
        ({"inputs": [{**IMAGES, "datatype": "UINT8", "data": [256]}]}, b""),
        ({"inputs": [{**IMAGES, "datatype": "FP32", "data": [10**400]}]}, b""),
        ({"inputs": [{**IMAGES, "data": [[[[[[[[[[TEXT]]]]]]]]]]}]}, b""),
        ({"parameters": {"x": []}}, b""),
        ({"parameters": {"x": 2**70}}, b""),
        ({"id": 3}, b""),
        ({"outputs": [{}]}, b""),
    ],
)
def test_wrong_tensors_are_refused(tree: dict[str, Any], tail: bytes) -> None:
    """Each error is the caller's."""
    with pytest.raises(InvalidInput):
        parse(tree, tail)


@pytest.mark.parametrize("header", ["-1", "x", "11", "9" * 30, "²"])
def test_length_of_the_json_must_fit_the_body(header: str) -> None:
    """The header is a number of at most the body's length."""
    with pytest.raises(InvalidInput, match="inference-header-content-length"):
        oip_tensors.header_length(header, 10)


def test_outputs_are_binary_where_the_client_wants_it() -> None:
    """One output may be binary and another JSON; the parameter of the request is the default."""
    parsed = parse(
        {
            "parameters": {"binary_data_output": True, "timeout": 5},
            "outputs": [
                {"name": "logits"},
                {"name": "probabilities", "parameters": {"binary_data": False}},
            ],
        }
    )
    assert parsed.message.parameters.keys() == {"timeout"}
    response = pb.ModelInferResponse(model_name="m", raw_output_contents=[b"\0\0\x80?"] * 2)
    for name in ("logits", "probabilities"):
        response.outputs.add(name=name, datatype="FP32", shape=[1, 1])
    head, tail = oip_tensors.answer(response, parsed)
    logits, probabilities = json.loads(head)["outputs"]
    assert logits["parameters"] == {"binary_data_size": 4}
    assert probabilities["data"] == [1.0]
    assert tail == b"\0\0\x80?"
