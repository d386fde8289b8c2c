"""ModelInfer requests, made and read by the protocol's own words, not by the code under test."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.inference import inference_service_pb2 as pb

DATATYPES = {np.dtype(np.uint8): "UINT8", np.dtype(np.float32): "FP32"}


def request(
    given: Sequence[bytes] | NDArray[Any],
    *,
    raw: bool = True,
    model: str = "colours",
    outputs: Sequence[str] = (),
    **fields: Any,
) -> pb.ModelInferRequest:
    """Return a request for encoded images, or for pixels uint8 or float32 (N, H, W, 3)."""
    made = pb.ModelInferRequest(model_name=model, **fields)
    for name in outputs:
        made.outputs.add(name=name)
    if isinstance(given, np.ndarray):
        tensor = made.inputs.add(name="pixels", datatype=DATATYPES[given.dtype], shape=given.shape)
        if raw:
            made.raw_input_contents.append(given.tobytes())
        elif given.dtype == np.uint8:
            tensor.contents.uint_contents.extend(given.ravel().tolist())
        else:
            tensor.contents.fp32_contents.extend(given.ravel().tolist())
        return made
    tensor = made.inputs.add(name="images", datatype="BYTES", shape=[len(given)])
    if raw:
        content = b"".join(struct.pack("<I", len(one)) + one for one in given)
        made.raw_input_contents.append(content)
    else:
        tensor.contents.bytes_contents.extend(given)
    return made


def outputs(response: pb.ModelInferResponse) -> dict[str, Any]:
    """Return the outputs by name: arrays, or lists of lists of texts."""
    raw = iter(response.raw_output_contents)
    found: dict[str, Any] = {}
    for one in response.outputs:
        if one.datatype == "FP32":
            values = (
                np.frombuffer(next(raw), dtype="<f4")
                if response.raw_output_contents
                else np.array(one.contents.fp32_contents, dtype=np.float32)
            )
            found[one.name] = values.reshape(list(one.shape))
        else:
            flat = [text.decode() for text in _texts(one, raw)]
            width = one.shape[1]
            found[one.name] = [flat[at : at + width] for at in range(0, len(flat), width)]
    return found


def _texts(output: pb.ModelInferResponse.InferOutputTensor, raw: Any) -> list[bytes]:
    if output.contents.bytes_contents:
        return list(output.contents.bytes_contents)
    content, texts = next(raw), []
    while content:
        (length,) = struct.unpack_from("<I", content)
        texts.append(content[4 : 4 + length])
        content = content[4 + length :]
    return texts
