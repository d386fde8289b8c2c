"""Output tensors of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from topwork.inference import inference_service_pb2 as pb
from topwork.rpc.open_inference.tensors import RequestedOutputs
from topwork.serving.inferred import Inferred


def to_response(
    request: pb.ModelInferRequest, wanted: Sequence[RequestedOutputs], found: Inferred
) -> pb.ModelInferResponse:
    """Return the response to a request: raw contents if the request had them, else typed."""
    raw = bool(request.raw_input_contents)
    response = pb.ModelInferResponse(
        model_name=request.model_name, model_version=str(found.revision), id=request.id
    )
    for requested in wanted:
        values = _values(requested.name, found)
        output = response.outputs.add(name=requested.name)
        if requested.classes:
            texts = classifications(values, found.labels, requested.classes)
            output.datatype = "BYTES"
            output.shape.extend([len(texts), len(texts[0])])
            flat = [text for row in texts for text in row]
            if raw:
                response.raw_output_contents.append(join(flat))
            else:
                output.contents.bytes_contents.extend(flat)
        else:
            output.datatype = "FP32"
            output.shape.extend(values.shape)
            if raw:
                response.raw_output_contents.append(values.astype("<f4", copy=False).tobytes())
            else:
                output.contents.fp32_contents.extend(values.ravel().tolist())
    return response


def classifications(
    scores: NDArray[np.float32], labels: Sequence[str], classes: int
) -> list[list[bytes]]:
    """Return ``score:index:label`` of the largest scores of each row; ties by label index."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :classes].tolist()
    return [
        [f"{row[index]:f}:{index}:{labels[index]}".encode() for index in best]
        for row, best in zip(scores.tolist(), order, strict=True)
    ]


def join(elements: Sequence[bytes]) -> bytes:
    """Return the contents of a raw BYTES tensor."""
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def _values(name: str, found: Inferred) -> NDArray[np.float32]:
    match name:
        case "probabilities":
            return found.probabilities
        case "logits":
            assert found.logits is not None, "the request has this output"
            return found.logits
        case _:
            return found.embeddings
