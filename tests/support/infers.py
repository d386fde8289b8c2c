"""ModelInfer requests and responses, encoded by the protocol's text, not by the code under test."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.inference import inference_service_pb2 as pb

DATATYPES = {np.dtype(np.uint8): "UINT8", np.dtype(np.float32): "FP32"}


def request(
    images: Sequence[bytes] | NDArray[Any],
    *,
    raw: bool = True,
    model: str = "colours",
    outputs: Sequence[str] = (),
    **fields: Any,
) -> pb.ModelInferRequest:
    """Return a request for encoded images, or for pixels uint8 or float32 (N, H, W, 3)."""
    infer = pb.ModelInferRequest(model_name=model, **fields)
    for name in outputs:
        infer.outputs.add(name=name)
    if isinstance(images, np.ndarray):
        tensor = infer.inputs.add(
            name="pixels", datatype=DATATYPES[images.dtype], shape=images.shape
        )
        if raw:
            infer.raw_input_contents.append(images.tobytes())
        elif images.dtype == np.uint8:
            tensor.contents.uint_contents.extend(images.ravel().tolist())
        else:
            tensor.contents.fp32_contents.extend(images.ravel().tolist())
        return infer
    tensor = infer.inputs.add(name="images", datatype="BYTES", shape=[len(images)])
    if raw:
        content = b"".join(struct.pack("<I", len(image)) + image for image in images)
        infer.raw_input_contents.append(content)
    else:
        tensor.contents.bytes_contents.extend(images)
    return infer


def outputs(response: pb.ModelInferResponse) -> dict[str, Any]:
    """Return the outputs by name: arrays, or lists of lists of strings."""
    raw = iter(response.raw_output_contents)
    arrays: dict[str, Any] = {}
    for output in response.outputs:
        if output.datatype == "FP32":
            values = (
                np.frombuffer(next(raw), dtype="<f4")
                if response.raw_output_contents
                else np.array(output.contents.fp32_contents, dtype=np.float32)
            )
            arrays[output.name] = values.reshape(list(output.shape))
        else:
            flat = [text.decode() for text in _texts(output, raw)]
            width = output.shape[1]
            arrays[output.name] = [flat[at : at + width] for at in range(0, len(flat), width)]
    return arrays


def _texts(output: pb.ModelInferResponse.InferOutputTensor, raw: Any) -> list[bytes]:
    if output.contents.bytes_contents:
        return list(output.contents.bytes_contents)
    content, texts = next(raw), []
    while content:
        (length,) = struct.unpack_from("<I", content)
        texts.append(content[4 : 4 + length])
        content = content[4 + length :]
    return texts
