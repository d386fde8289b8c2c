"""Head as ONNX graph: parity with NumPy, and the exported file."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from topwork.arrays import Float32Array
from topwork.bundle.features import make
from topwork.bundle.head import Fourier, Head, Kernel, Scorer, Support, Unknown, softmax
from topwork.bundle.head_graph import IR_VERSION, OPSET, to_onnx
from topwork.bundle.recipe import Normalisation
from topwork.runtime.backend import open_session

KINDS: tuple[Normalisation, ...] = get_args(Normalisation)
OUTPUTS = ("logits", "probabilities", "unknown")
WIDTH = 64
EXPANSIONS = ("linear", "kernel", "fourier")


def half(values: NDArray[np.floating]) -> Float32Array:
    """Round to float16."""
    return values.astype(np.float16).astype(np.float32)


def head(
    expansion: str = "linear",
    kind: Normalisation = "sqrt_l2",
    *,
    classes: int = 5,
    seed: int = 0,
    temperature: float = 0.7,
    points: int = 30,
) -> Head:
    """Return a random head of any kind with logits of a realistic size."""
    rng = np.random.default_rng(seed)
    projection = np.linalg.qr(rng.normal(size=(WIDTH, 16)))[0]
    support = Support(
        centre=rng.normal(0, 0.05, WIDTH).astype(np.float32),
        projection=half(projection),
        points=half(rng.normal(0, 0.2, (points, 16))),
    )
    expand: dict[str, Kernel | Fourier | None] = {
        "linear": None,
        "kernel": Kernel(support=support, gamma=1.0),
        "fourier": Fourier(
            projection=half(rng.normal(0, 1.4, (WIDTH, 40))),
            phase=rng.uniform(0, 6, 40).astype(np.float32),
        ),
    }
    width = {"linear": WIDTH, "kernel": points, "fourier": 40}[expansion]
    return Head(
        normaliser=make(kind, embeddings(seed=5)),
        scorer=Scorer(
            weights=rng.normal(0, 1, (classes, width)).astype(np.float32),
            bias=rng.normal(0, 1, classes).astype(np.float32),
            expansion=expand[expansion],
        ),
        temperature=temperature,
        unknown=Unknown(
            support=support,
            logit_weight=-0.4,
            logit_bias=rng.normal(0.3, 0.2, classes).astype(np.float32),
            distance_weight=1.5,
            distance_bias=-0.3,
            threshold=0.8,
        ),
    )


def embeddings(rows: int = 100, *, seed: int = 1, scale: float = 1.0) -> Float32Array:
    """Return random embeddings of both signs, with some columns of zeros."""
    found = np.random.default_rng(seed).normal(0, scale, (rows, WIDTH))
    found[:, ::7] = 0
    return found.astype(np.float32)


def served(made: Head, rows: Float32Array) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Return the three outputs of the exported graph."""
    logits, probabilities, unknown = open_session(to_onnx(made), output="unknown").run_outputs(
        rows, OUTPUTS
    )
    return logits, probabilities, unknown


@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-6, 0.0, 1.0, 1e4])
def test_graph_equals_numpy(expansion: str, kind: Normalisation, scale: float) -> None:
    """All outputs equal those of NumPy, for all heads, at any scale and for zeros."""
    if expansion == "fourier":
        scale = min(scale, 3.0)  # the cosine of an angle of a million is noise in float32
    made, rows = head(expansion, kind), embeddings(scale=scale)
    logits, probabilities, unknown = served(made, rows)
    want = made.logits(rows)
    size = np.abs(want).max(initial=1)  # features that are not of length 1 have large logits
    np.testing.assert_allclose(logits, want, atol=1e-5 * size)
    np.testing.assert_allclose(probabilities, softmax(logits), atol=1e-6)
    np.testing.assert_allclose(unknown, made.unknown_probabilities(rows), atol=1e-5)
    assert (probabilities.argmax(axis=1) == made.probabilities(rows).argmax(axis=1)).all()


@pytest.mark.parametrize("classes", [1, 2, 100])
@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_graph_equals_numpy_for_any_number_of_classes(classes: int, expansion: str) -> None:
    """Heads with 1, 2 and 100 classes are exported correctly."""
    made, rows = head(expansion, classes=classes), embeddings()
    logits, probabilities, _ = served(made, rows)
    np.testing.assert_allclose(logits, made.logits(rows), atol=1e-5)
    np.testing.assert_allclose(probabilities, made.probabilities(rows), atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(axis=1, dtype=np.float64), 1, atol=1e-6)


def test_distant_embeddings_are_unknown_in_graph_and_numpy() -> None:
    """Very high logits do not outweigh the distance."""
    made, rows = head(kind="none"), embeddings(scale=1e4)
    assert made.unknown_probabilities(rows).min() > 0.99
    assert served(made, rows)[2].min() > 0.99


@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_graph_output_of_a_row_does_not_depend_on_its_batch(expansion: str) -> None:
    """A row has the same outputs alone and in a batch; an empty batch is valid."""
    session = open_session(to_onnx(head(expansion)), output="unknown")
    rows = embeddings(9)
    alone = [session.run_outputs(rows[index : index + 1], OUTPUTS) for index in range(9)]
    together = session.run_outputs(rows, OUTPUTS)
    for found, rowwise in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(found, np.concatenate(rowwise), atol=1e-5)
    empty = session.run_outputs(rows[:0], OUTPUTS)
    assert [found.shape for found in empty] == [(0, 5), (0, 5), (0,)]


@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_heads_give_equal_bytes(expansion: str, kind: Normalisation) -> None:
    """The file depends only on the head, so its sha256 identifies the head."""
    assert to_onnx(head(expansion, kind)) == to_onnx(head(expansion, kind))
    assert to_onnx(head(expansion, kind)) != to_onnx(head(expansion, kind, seed=4))
    assert to_onnx(head(expansion, kind)) != to_onnx(head(expansion, kind, temperature=0.8))


@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_graph_has_versions_that_old_runtimes_read(expansion: str) -> None:
    """The graph has opset 18 and IR version 8, and no external data."""
    model = onnx.load_model_from_string(to_onnx(head(expansion)))
    assert (model.ir_version, OPSET) == (IR_VERSION, 18)
    assert IR_VERSION == 8
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
    assert all(not tensor.external_data for tensor in model.graph.initializer)


def test_graph_without_detector_has_no_unknown_output() -> None:
    """A head without an out-of-distribution detector exports two outputs."""
    model = onnx.load_model_from_string(to_onnx(replace(head(), unknown=None)))
    assert [output.name for output in model.graph.output] == ["logits", "probabilities"]


@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_float16_constants_are_exact(expansion: str) -> None:
    """Each float16 constant, cast to float32, equals the head's value."""
    made = head(expansion)
    assert made.unknown is not None
    known = made.unknown.support
    want = {"support0_projection_half": known.projection, "support0_points_half": known.points}
    if isinstance(made.scorer.expansion, Fourier):
        want["directions_half"] = made.scorer.expansion.projection
    found = {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float32)
        for tensor in onnx.load_model_from_string(to_onnx(made)).graph.initializer
        if tensor.data_type == TensorProto.FLOAT16
    }
    assert sorted(found) == sorted(want)
    for name, values in want.items():
        np.testing.assert_array_equal(found[name], values)


def test_shared_support_is_stored_once() -> None:
    """A kernel and a detector with the same support share points and distances."""
    made = head("kernel", points=500)
    assert made.unknown is not None
    copied = replace(made.unknown, support=replace(made.unknown.support))
    points = 2 * 500 * 16
    assert len(to_onnx(replace(made, unknown=copied))) - len(to_onnx(made)) > points
