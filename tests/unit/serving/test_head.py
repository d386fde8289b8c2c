"""Heads in memory say what their graphs say, and weigh little more than their weights."""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from support import tiny

from topwork.arrays import Float32Array
from topwork.bundle.features import make
from topwork.bundle.head import Fourier, Head, Kernel, Scorer, Support, Unknown
from topwork.bundle.head_graph import to_onnx
from topwork.errors import Corrupt
from topwork.runtime.backend import open_session
from topwork.serving.head import HeadLoader

EXPANSIONS = ("linear", "kernel", "fourier")
WIDTH = 64
LABELS = 5


def embeddings(rows: int, *, seed: int = 1, width: int = WIDTH) -> Float32Array:
    """Return random embeddings."""
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def half(values: NDArray[np.floating]) -> Float32Array:
    """Round to what 16 bits hold."""
    return values.astype(np.float16).astype(np.float32)


def a_head(
    expansion: str = "linear",
    *,
    unknown: bool = True,
    labels: int = LABELS,
    points: int = 30,
    seed: int = 0,
) -> Head:
    """Return a head of any kind."""
    rng = np.random.default_rng(seed)
    support = Support(
        centre=rng.normal(0, 0.05, WIDTH).astype(np.float32),
        projection=half(np.linalg.qr(rng.normal(size=(WIDTH, 16)))[0]),
        points=half(rng.normal(0, 0.2, (points, 16))),
    )
    expand: dict[str, tuple[int, Kernel | Fourier | None]] = {
        "linear": (WIDTH, None),
        "kernel": (points, Kernel(support=support, gamma=1.0)),
        "fourier": (
            40,
            Fourier(
                projection=half(rng.normal(0, 1.4, (WIDTH, 40))),
                phase=rng.uniform(0, 6, 40).astype(np.float32),
            ),
        ),
    }
    width, expanded = expand[expansion]
    return Head(
        normaliser=make("sqrt_l2", embeddings(9)),
        scorer=Scorer(
            weights=rng.normal(size=(labels, width)).astype(np.float32),
            bias=rng.normal(size=labels).astype(np.float32),
            expansion=expanded,
        ),
        temperature=0.7,
        unknown=Unknown(
            support=support,
            bias=0.3,
            logit_weight=-0.4,
            logit_limit=4.0,
            distance_weight=1.5,
            threshold=0.8,
        )
        if unknown
        else None,
    )


@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("rows", [0, 1, 16, 100])
def test_a_head_says_what_its_graph_says(expansion: str, rows: int) -> None:
    """Probabilities and unknown probabilities are those of the graph in a session of its own."""
    content = to_onnx(a_head(expansion))
    session = open_session(content, output="probabilities")
    loaded = HeadLoader().load(content, width=WIDTH, labels=LABELS, unknown=True)
    outputs = ("probabilities", "unknown")
    expected = session.run_outputs(embeddings(rows), outputs)
    for found, wanted in zip(loaded.run(embeddings(rows)), expected, strict=True):
        assert found is not None
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_probabilities_are_the_softmax_of_logits(expansion: str) -> None:
    """Logits are calibrated, as the probabilities are, and rows in input order."""
    loaded = HeadLoader().load(to_onnx(a_head(expansion)), width=WIDTH, labels=LABELS, unknown=True)
    logits = loaded.logits(embeddings(7))
    assert logits.shape == (7, LABELS)
    assert logits.dtype == np.float32
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loaded.run(embeddings(7))[0], expected, atol=1e-6)


def test_a_head_without_a_threshold_says_nothing_of_the_unknown() -> None:
    """What cannot tell the unknown returns None for it."""
    content = to_onnx(a_head(unknown=False))
    loaded = HeadLoader().load(content, width=WIDTH, labels=LABELS, unknown=False)
    probabilities, unknown = loaded.run(embeddings(2))
    assert probabilities.shape == (2, LABELS)
    assert unknown is None


def test_heads_of_one_form_share_a_graph() -> None:
    """Heads that differ in weights, labels and points share a graph, each with its own answers."""
    loader = HeadLoader()
    sizes = [(2, 30), (5, 10), (7, 64)]
    heads = [a_head("kernel", labels=n, points=m, seed=n) for n, m in sizes]
    loaded = [
        loader.load(to_onnx(head), width=WIDTH, labels=n, unknown=True)
        for head, (n, _) in zip(heads, sizes, strict=True)
    ]
    assert len({id(one._graph) for one in loaded}) == 1
    for one, head in zip(loaded, heads, strict=True):
        found, _ = one.run(embeddings(6))
        np.testing.assert_allclose(found, head.probabilities(embeddings(6)), atol=1e-5)


def test_what_a_file_says_of_itself_is_no_form() -> None:
    """Heads whose files differ in nothing but their documentation share a graph."""
    loader = HeadLoader()
    model = onnx.load_model_from_string(to_onnx(a_head("kernel", labels=2, points=30, seed=2)))
    loaded = []
    for text in ("one", "another"):
        model.doc_string = model.graph.doc_string = text
        content = model.SerializeToString()
        loaded.append(loader.load(content, width=WIDTH, labels=2, unknown=True))
    assert loaded[0]._graph is loaded[1]._graph


def test_a_graph_leaves_with_its_last_head() -> None:
    """What no head in memory needs is not kept."""
    loader = HeadLoader()
    loaded = loader.load(to_onnx(a_head()), width=WIDTH, labels=LABELS, unknown=True)
    assert len(loader._graphs) == 1
    del loaded
    gc.collect()
    assert len(loader._graphs) == 0


def test_weights_stay_as_they_are_stored() -> None:
    """What is stored in 16 bits takes 16 bits in memory."""
    head = a_head("kernel", points=2000)
    content = to_onnx(head)
    loaded = HeadLoader().load(content, width=WIDTH, labels=LABELS, unknown=True)
    assert 2 * 2000 * 16 < loaded.size < len(content)


def memory() -> int:
    """Return the bytes of this process's memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_loaded_head_weighs_little_more_than_its_weights() -> None:
    """Beyond their weights, 300 heads of the usual width cost less than 50 KB each."""
    loader = HeadLoader()
    rng = np.random.default_rng(0)

    def load() -> object:
        weights = rng.normal(size=(LABELS, 1280)).astype(np.float32)
        content = tiny.linear_head(weights, weights[:, 0].copy())
        return loader.load(content, width=1280, labels=LABELS, unknown=False)

    heads = [load() for _ in range(20)]
    before = memory()
    heads += [load() for _ in range(300)]
    assert memory() - before < 300 * (LABELS * 1280 * 4 + 50_000)


def test_callers_in_threads_get_their_own_answers() -> None:
    """Runs of several heads of one form from many threads at once do not mix."""
    loader = HeadLoader()
    heads = [a_head("kernel", seed=seed) for seed in range(8)]
    loaded = [loader.load(to_onnx(one), width=WIDTH, labels=LABELS, unknown=True) for one in heads]

    def right(number: int) -> bool:
        rows = embeddings(1 + number % 5, seed=number)
        found, _ = loaded[number % 8].run(rows)
        return np.allclose(found, heads[number % 8].probabilities(rows), atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(400)))


def with_external_weights(content: bytes) -> bytes:
    """Let the graph say that its weights are in another file."""
    model = onnx.load_model_from_string(content)
    (weights,) = [one for one in model.graph.initializer if one.name == "weights"]
    onnx.external_data_helper.set_external_data(weights, "/etc/hostname")
    weights.ClearField("raw_data")
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\0garbage", "cannot be read"),
        (b"", "cannot be read"),
        (to_onnx(a_head(unknown=False)), "cannot tell the unknown"),
        (to_onnx(a_head(labels=4)), r"\(1, 4\)"),
        (tiny.backbone_model(), "no output 'probabilities'"),
        (with_external_weights(to_onnx(a_head())), "external data"),
    ],
)
def test_what_does_not_fit_is_corrupt(content: bytes, says: str) -> None:
    """A graph that is no such head is refused when it is loaded, not when it is asked."""
    with pytest.raises(Corrupt, match=says):
        HeadLoader().load(content, width=WIDTH, labels=LABELS, unknown=True)


def test_a_head_for_another_width_is_corrupt() -> None:
    """A head is tried with embeddings of its backbone's width."""
    with pytest.raises(Corrupt, match="width 48"):
        HeadLoader().load(to_onnx(a_head()), width=48, labels=LABELS, unknown=True)


def test_a_form_that_cannot_be_used_is_no_obstacle_to_others() -> None:
    """After a head that was refused, one of the same form is loaded."""
    loader = HeadLoader()
    good = a_head()
    bad = replace(good, scorer=replace(good.scorer, weights=good.scorer.weights[:, :7]))
    content = to_onnx(good)
    model = onnx.load_model_from_string(content)
    for one in model.graph.initializer:
        if one.name == "weights":
            one.CopyFrom(onnx.numpy_helper.from_array(bad.scorer.weights, "weights"))
    with pytest.raises(Corrupt):
        loader.load(model.SerializeToString(), width=WIDTH, labels=LABELS, unknown=True)
    loader.load(content, width=WIDTH, labels=LABELS, unknown=True)
