"""The exported graph and NumPy agree on what a head says."""

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
    """Round to what 16 bits hold."""
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
    """Return a head of any kind whose logits are about as large as those of fitted ones."""
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
            bias=0.3,
            logit_weight=-0.4,
            logit_limit=4.0,
            distance_weight=1.5,
            threshold=0.8,
        ),
    )


def embeddings(rows: int = 100, *, seed: int = 1, scale: float = 1.0) -> Float32Array:
    """Return embeddings of both signs, some entries exactly 0."""
    found = np.random.default_rng(seed).normal(0, scale, (rows, WIDTH))
    found[:, ::7] = 0
    return found.astype(np.float32)


def served(one: Head, rows: Float32Array) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Return the exported graph's three outputs."""
    logits, probabilities, unknown = open_session(to_onnx(one), output="unknown").run_outputs(
        rows, OUTPUTS
    )
    return logits, probabilities, unknown


@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-6, 0.0, 1.0, 1e4])
def test_the_graph_gives_what_numpy_gives(
    expansion: str, kind: Normalisation, scale: float
) -> None:
    """Logits, probabilities and unknowns are NumPy's: all heads, at any scale, zeros too."""
    if expansion == "fourier":
        scale = min(scale, 3.0)  # the cosine of an angle of a million is noise in float32
    one, rows = head(expansion, kind), embeddings(scale=scale)
    logits, probabilities, unknown = served(one, rows)
    want = one.logits(rows)
    size = np.abs(want).max(initial=1)  # far out, without a length of 1, logits are large
    np.testing.assert_allclose(logits, want, atol=1e-5 * size)
    np.testing.assert_allclose(probabilities, softmax(logits), atol=1e-6)
    np.testing.assert_allclose(unknown, one.unknown_probabilities(rows), atol=1e-5)
    assert (probabilities.argmax(axis=1) == one.probabilities(rows).argmax(axis=1)).all()


@pytest.mark.parametrize("classes", [1, 2, 100])
@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_any_number_of_classes_is_exported(classes: int, expansion: str) -> None:
    """One class is as well exported as a hundred."""
    one, rows = head(expansion, classes=classes), embeddings()
    logits, probabilities, _ = served(one, rows)
    np.testing.assert_allclose(logits, one.logits(rows), atol=1e-5)
    np.testing.assert_allclose(probabilities, one.probabilities(rows), atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(axis=1, dtype=np.float64), 1, atol=1e-6)


def test_what_lies_far_is_unknown_in_both() -> None:
    """Boundless logits do not outweigh distance, in the graph either."""
    one, rows = head(kind="none"), embeddings(scale=1e4)
    assert one.unknown_probabilities(rows).min() > 0.99
    assert served(one, rows)[2].min() > 0.99


@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_an_image_is_judged_alone(expansion: str) -> None:
    """A row's answer does not depend on its neighbours, in number or kind; none have none."""
    session = open_session(to_onnx(head(expansion)), output="unknown")
    rows = embeddings(9)
    alone = [session.run_outputs(rows[index : index + 1], OUTPUTS) for index in range(9)]
    together = session.run_outputs(rows, OUTPUTS)
    for found, ones in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(found, np.concatenate(ones), atol=1e-5)
    nothing = session.run_outputs(rows[:0], OUTPUTS)
    assert [found.shape for found in nothing] == [(0, 5), (0, 5), (0,)]


@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_heads_give_equal_bytes(expansion: str, kind: Normalisation) -> None:
    """The file depends on the head only, so that its digest names it."""
    assert to_onnx(head(expansion, kind)) == to_onnx(head(expansion, kind))
    assert to_onnx(head(expansion, kind)) != to_onnx(head(expansion, kind, seed=4))
    assert to_onnx(head(expansion, kind)) != to_onnx(head(expansion, kind, temperature=0.8))


@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_the_file_is_for_runtimes_that_people_have(expansion: str) -> None:
    """The graph has the operator set and IR version that old runtimes read, and is one file."""
    model = onnx.load_model_from_string(to_onnx(head(expansion)))
    assert (model.ir_version, OPSET) == (IR_VERSION, 18)
    assert IR_VERSION == 8
    assert [(one.domain, one.version) for one in model.opset_import] == [("", OPSET)]
    assert all(not one.external_data for one in model.graph.initializer)


def test_a_head_that_cannot_tell_the_unknown_has_no_such_output() -> None:
    """What was not learnt is not served."""
    model = onnx.load_model_from_string(to_onnx(replace(head(), unknown=None)))
    assert [one.name for one in model.graph.output] == ["logits", "probabilities"]


@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_what_is_stored_in_16_bits_is_what_numpy_uses(expansion: str) -> None:
    """Each constant of 16 bits widens to the very values of the head."""
    one = head(expansion)
    assert one.unknown is not None
    known = one.unknown.support
    want = {"support0_projection_half": known.projection, "support0_points_half": known.points}
    if isinstance(one.scorer.expansion, Fourier):
        want["directions_half"] = one.scorer.expansion.projection
    found = {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float32)
        for tensor in onnx.load_model_from_string(to_onnx(one)).graph.initializer
        if tensor.data_type == TensorProto.FLOAT16
    }
    assert sorted(found) == sorted(want)
    for name, values in want.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_support_that_two_parts_use_is_stored_once() -> None:
    """A kernel and its unknowns share their points and the distances to them."""
    one = head("kernel", points=500)
    assert one.unknown is not None
    apart = replace(one.unknown, support=replace(one.unknown.support))
    points = 2 * 500 * 16
    assert len(to_onnx(replace(one, unknown=apart))) - len(to_onnx(one)) > points
