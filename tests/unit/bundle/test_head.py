"""The exported graph and NumPy agree on what a head says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from topwork.bundle.head import IR_VERSION, OPSET, Head, normalise, softmax, to_onnx
from topwork.engine.backend import Session, open_session

SEEDED = settings(derandomize=True, database=None, deadline=None)
WIDTH = 64


def head(classes: int = 5, *, seed: int = 0, temperature: float = 0.7) -> Head:
    """Return a head whose logits are about as large as those of fitted ones."""
    rng = np.random.default_rng(seed)
    return Head(
        weights=rng.normal(0, 1, (classes, WIDTH)).astype(np.float32),
        bias=rng.normal(0, 1, classes).astype(np.float32),
        temperature=temperature,
        strength=10.0,
    )


def embeddings(rows: int = 200, *, seed: int = 1, scale: float = 1.0) -> NDArray[np.float32]:
    """Return embeddings of both signs, some entries exactly 0."""
    found = np.random.default_rng(seed).normal(0, scale, (rows, WIDTH))
    found[:, ::7] = 0
    return found.astype(np.float32)


def sessions(one: Head) -> tuple[Session, Session]:
    """Return the exported graph by its two outputs."""
    graph = to_onnx(one)
    return open_session(graph, output="logits"), open_session(graph, output="probabilities")


@pytest.mark.parametrize("classes", [1, 2, 5, 100])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_the_graph_gives_what_numpy_gives(classes: int, scale: float) -> None:
    """ONNX Runtime's logits and probabilities are NumPy's, at any scale of the embeddings."""
    one, rows = head(classes), embeddings(scale=scale)
    logits, probabilities = sessions(one)
    np.testing.assert_allclose(logits.run(rows), one.logits(rows), atol=1e-5)
    np.testing.assert_allclose(probabilities.run(rows), one.probabilities(rows), atol=1e-6)
    assert one.probabilities(rows).argmax(axis=1).tolist() == (
        probabilities.run(rows).argmax(axis=1).tolist()
    )


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_rows_sum_to_one(temperature: float) -> None:
    """Probabilities are not negative and sum to 1 an image, at all temperatures, in both."""
    one = head(temperature=temperature)
    rows = embeddings()
    for found in (one.probabilities(rows), sessions(one)[1].run(rows)):
        assert found.dtype == np.float32
        assert (found >= 0).all()
        np.testing.assert_allclose(found.sum(axis=1, dtype=np.float64), 1, atol=1e-6)


def test_an_embedding_of_zeros_is_answered() -> None:
    """Zeros, which have no direction, give the answer of the bias alone, in both."""
    one = head()
    zeros = np.zeros((2, WIDTH), dtype=np.float32)
    want = softmax((one.bias / np.float32(one.temperature))[None].repeat(2, axis=0))
    np.testing.assert_allclose(one.probabilities(zeros), want, atol=1e-6)
    np.testing.assert_allclose(sessions(one)[1].run(zeros), want, atol=1e-6)


def test_the_temperature_divides_the_logits() -> None:
    """Twice the temperature halves the logits, and changes no answer."""
    rows = embeddings()
    cool, warm = head(temperature=0.5), head(temperature=1.0)
    np.testing.assert_allclose(cool.logits(rows), 2 * warm.logits(rows), rtol=1e-6)
    np.testing.assert_allclose(
        warm.logits(rows), normalise(rows) @ warm.weights.T + warm.bias, rtol=1e-6
    )


def test_logits_are_those_behind_the_probabilities() -> None:
    """The softmax of the logits is the probabilities, in the graph too."""
    rows = embeddings()
    logits, probabilities = sessions(head())
    np.testing.assert_allclose(softmax(logits.run(rows)), probabilities.run(rows), atol=1e-6)


def test_an_image_is_judged_alone() -> None:
    """A row's answer does not depend on its neighbours, in number or kind."""
    _, probabilities = sessions(head())
    rows = embeddings(9)
    alone = np.concatenate([probabilities.run(rows[index : index + 1]) for index in range(9)])
    np.testing.assert_allclose(probabilities.run(rows), alone, atol=1e-6)
    assert probabilities.run(rows[:0]).shape == (0, 5)


def test_equal_heads_give_equal_bytes() -> None:
    """The file depends on the head only, so that its digest names it."""
    assert to_onnx(head(seed=3)) == to_onnx(head(seed=3))
    assert to_onnx(head(seed=3)) != to_onnx(head(seed=4))
    assert to_onnx(head(temperature=0.7)) != to_onnx(head(temperature=0.8))


def test_the_file_is_for_runtimes_that_people_have() -> None:
    """The graph has the operator set and IR version that old runtimes read, and is one file."""
    model = onnx.load_model_from_string(to_onnx(head()))
    assert model.ir_version == IR_VERSION <= 8
    assert [(one.domain, one.version) for one in model.opset_import] == [("", OPSET)]
    assert all(not one.external_data for one in model.graph.initializer)


@settings(SEEDED, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.floats(1e-10, 1e10), st.integers(1, 20))
def test_features_are_of_unit_length(seed: int, scale: float, rows: int) -> None:
    """Rows have length 1 at any scale, keep their signs, and do not depend on the scale."""
    plain = embeddings(rows, seed=seed)
    features = normalise(plain * np.float32(scale))
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert (np.sign(features) == np.sign(plain)).all()
    np.testing.assert_allclose(features, normalise(plain), atol=1e-5)


def test_features_are_signed_square_roots() -> None:
    """Entries become their roots with their signs before the length is made 1."""
    found = normalise(np.array([[16.0, -9.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(found, [[4 / 5, -3 / 5, 0.0]], rtol=1e-6)


def test_softmax_of_large_logits_is_finite() -> None:
    """Logits of any size give finite probabilities."""
    found = softmax(np.array([[1e4, 0.0], [-1e4, -1e4]], dtype=np.float32))
    assert found.tolist() == [[1.0, 0.0], [0.5, 0.5]]
