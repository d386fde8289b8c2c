"""Output tensors of the Open Inference Protocol."""

from __future__ import annotations

import numpy as np
import pytest
from support import infers

from topwork.rpc.open_inference import answers, tensors
from topwork.serving.inferred import Inferred

PROBABILITIES = np.array([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]], dtype=np.float32)
FOUND = Inferred(
    revision=7,
    labels=("amber", "blue", "a:b"),
    probabilities=PROBABILITIES,
    logits=np.log(PROBABILITIES),
    embeddings=np.arange(8, dtype=np.float32).reshape(2, 4),
)


@pytest.mark.parametrize("raw", [True, False])
def test_response_is_raw_or_typed_like_the_request(raw: bool) -> None:
    """Raw requests get raw contents, typed ones typed: the same numbers, N first."""
    request = infers.request([b"one", b"two"], raw=raw, id="question 9")
    response = answers.to_response(request, tensors.wanted(request), FOUND)
    assert (response.model_name, response.model_version, response.id) == (
        "colours",
        "7",
        "question 9",
    )
    assert len(response.raw_output_contents) == (3 if raw else 0)
    assert [output.HasField("contents") for output in response.outputs] == [not raw] * 3
    found = infers.outputs(response)
    assert list(found) == ["probabilities", "logits", "embedding"]
    assert np.array_equal(found["probabilities"], PROBABILITIES)
    assert np.array_equal(found["logits"], np.log(PROBABILITIES))
    assert np.array_equal(found["embedding"], FOUND.embeddings)


@pytest.mark.parametrize("raw", [True, False])
def test_classifications_are_sorted_by_score(raw: bool) -> None:
    """The largest score comes first, ties by label index; a label may contain a colon."""
    request = infers.request([b"one", b"two"], raw=raw, outputs=["embedding", "probabilities"])
    request.outputs[1].parameters["classification"].int64_param = 2
    response = answers.to_response(request, tensors.wanted(request), FOUND)
    assert [(output.datatype, list(output.shape)) for output in response.outputs] == [
        ("FP32", [2, 4]),
        ("BYTES", [2, 2]),
    ]
    assert infers.outputs(response)["probabilities"] == [
        ["0.500000:1:blue", "0.250000:0:amber"],
        ["0.700000:2:a:b", "0.200000:1:blue"],
    ]


def test_more_classes_than_labels_return_all_labels() -> None:
    """Each row has as many texts as there are labels."""
    rows = answers.classifications(PROBABILITIES, FOUND.labels, 2**40)
    assert [len(row) for row in rows] == [3, 3]
