"""Heads in memory: results of a shared graph, memory, and rejection of damaged heads."""

from __future__ import annotations

import gc
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from support import golden, tiny

from topwork.arrays import Float32Array
from topwork.bundle.features import make
from topwork.bundle.head import Fourier, Head, Kernel, Scorer, Support, Unknown
from topwork.bundle.head_graph import to_onnx
from topwork.errors import Corrupt
from topwork.runtime.backend import open_session
from topwork.serving.head import HeadLoader

HEADS = sorted(path.parent for path in golden.ROOT.glob("heads/*/head.onnx"))
EXPANSIONS = ("linear", "kernel", "fourier")
WIDTH = 64
LABELS = 5


def embeddings(rows: int, *, seed: int = 1, width: int = WIDTH) -> Float32Array:
    """Return random embeddings."""
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def half(values: NDArray[np.floating]) -> Float32Array:
    """Round to float16 precision."""
    return values.astype(np.float16).astype(np.float32)


def a_head(
    expansion: str = "linear",
    *,
    unknown: bool = True,
    labels: int = LABELS,
    points: int = 30,
    seed: int = 0,
) -> Head:
    """Return a head with the given expansion."""
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
            logit_weight=-0.4,
            logit_bias=rng.normal(0.3, 0.2, labels).astype(np.float32),
            distance_weight=1.5,
            distance_bias=-0.3,
            threshold=0.8,
        )
        if unknown
        else None,
    )


@pytest.mark.parametrize("path", HEADS, ids=lambda path: path.name)
def test_heads_of_all_detectors_answer_as_when_they_were_learnt(path: Path) -> None:
    """A stored head contains its own rule for unknown images; each rule has a golden file."""
    stored = json.loads((path / "answers.json").read_bytes())
    rows = np.array(stored["embeddings"], dtype=np.float32)
    labels = len(stored["probabilities"][0])
    content = (path / "head.onnx").read_bytes()
    loaded = HeadLoader().load(content, width=rows.shape[1], labels=labels, unknown=True)
    probabilities, unknown = loaded.run(rows)
    assert unknown is not None
    np.testing.assert_allclose(probabilities, stored["probabilities"], atol=1e-4)
    np.testing.assert_allclose(unknown, stored["unknown"], atol=1e-4)


@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("rows", [0, 1, 16, 100])
def test_loaded_head_matches_its_graph(expansion: str, rows: int) -> None:
    """Outputs equal those of the complete graph in a separate session."""
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
    """Logits are calibrated and in input order: their softmax gives the probabilities."""
    loaded = HeadLoader().load(to_onnx(a_head(expansion)), width=WIDTH, labels=LABELS, unknown=True)
    logits = loaded.logits(embeddings(7))
    assert logits.shape == (7, LABELS)
    assert logits.dtype == np.float32
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loaded.run(embeddings(7))[0], expected, atol=1e-6)


@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_no_row_depends_on_the_others(expansion: str) -> None:
    """A lone row and a row of any batch are equal to the last bit, also the logits."""
    head = a_head(expansion, points=203)
    loaded = HeadLoader().load(to_onnx(head), width=WIDTH, labels=LABELS, unknown=True)
    rows = embeddings(64)
    alone = [loaded.run(row[None]) for row in rows]
    for size in (2, 3, 7, 16, 64):
        probabilities, unknown = loaded.run(rows[:size])
        assert unknown is not None
        for found, single in zip(zip(probabilities, unknown, strict=True), alone, strict=False):
            assert single[1] is not None
            assert np.array_equal(found[0], single[0][0])
            assert found[1] == single[1][0]
        assert np.array_equal(loaded.logits(rows[:size])[0], loaded.logits(rows[:1])[0])


def test_head_without_threshold_returns_no_unknown_probability() -> None:
    """The unknown probabilities of a head without detection are None."""
    content = to_onnx(a_head(unknown=False))
    loaded = HeadLoader().load(content, width=WIDTH, labels=LABELS, unknown=False)
    probabilities, unknown = loaded.run(embeddings(2))
    assert probabilities.shape == (2, LABELS)
    assert unknown is None


def test_heads_of_the_same_structure_share_a_graph() -> None:
    """Heads that differ in weights, labels and points share a graph, with separate results."""
    loader = HeadLoader()
    sizes = [(2, 30), (5, 10), (7, 64)]
    heads = [a_head("kernel", labels=n, points=m, seed=n) for n, m in sizes]
    loaded = [
        loader.load(to_onnx(head), width=WIDTH, labels=n, unknown=True)
        for head, (n, _) in zip(heads, sizes, strict=True)
    ]
    assert len({id(head._graph) for head in loaded}) == 1
    for loaded_head, head in zip(loaded, heads, strict=True):
        found, _ = loaded_head.run(embeddings(6))
        np.testing.assert_allclose(found, head.probabilities(embeddings(6)), atol=1e-5)


def test_documentation_is_not_part_of_the_structure() -> None:
    """Heads whose files differ only in doc strings share a graph."""
    loader = HeadLoader()
    model = onnx.load_model_from_string(to_onnx(a_head("kernel", labels=2, points=30, seed=2)))
    loaded = []
    for text in ("one", "another"):
        model.doc_string = model.graph.doc_string = text
        content = model.SerializeToString()
        loaded.append(loader.load(content, width=WIDTH, labels=2, unknown=True))
    assert loaded[0]._graph is loaded[1]._graph


def test_graph_is_freed_with_its_last_head() -> None:
    """A graph without a head in memory is freed."""
    loader = HeadLoader()
    loaded = loader.load(to_onnx(a_head()), width=WIDTH, labels=LABELS, unknown=True)
    assert len(loader._graphs) == 1
    del loaded
    gc.collect()
    assert len(loader._graphs) == 0


def test_weights_are_not_widened_in_memory() -> None:
    """Weights stored in 16 bits take 16 bits in memory."""
    head = a_head("kernel", points=2000)
    content = to_onnx(head)
    loaded = HeadLoader().load(content, width=WIDTH, labels=LABELS, unknown=True)
    assert 2 * 2000 * 16 < loaded.size < len(content)


def memory() -> int:
    """Return the resident memory of this process in bytes."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_loaded_head_has_little_overhead() -> None:
    """The overhead of 300 heads of the usual width is less than 50 KB per head."""
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


def test_concurrent_runs_do_not_mix() -> None:
    """Concurrent runs of heads that share a graph return their own results."""
    loader = HeadLoader()
    heads = [a_head("kernel", seed=seed) for seed in range(8)]
    loaded = [
        loader.load(to_onnx(head), width=WIDTH, labels=LABELS, unknown=True) for head in heads
    ]

    def right(number: int) -> bool:
        rows = embeddings(1 + number % 5, seed=number)
        found, _ = loaded[number % 8].run(rows)
        return np.allclose(found, heads[number % 8].probabilities(rows), atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(400)))


def with_external_weights(content: bytes) -> bytes:
    """Return a graph that refers to weights in another file."""
    model = onnx.load_model_from_string(content)
    (weights,) = [tensor for tensor in model.graph.initializer if tensor.name == "weights"]
    onnx.external_data_helper.set_external_data(weights, "/etc/hostname")
    weights.ClearField("raw_data")
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\0garbage", "cannot be read"),
        (b"", "cannot be read"),
        (to_onnx(a_head(unknown=False)), "no output 'unknown'"),
        (to_onnx(a_head(labels=4)), r"\(1, 4\)"),
        (tiny.backbone_model(), "no output 'probabilities'"),
        (with_external_weights(to_onnx(a_head())), "external data"),
    ],
)
def test_load_rejects_a_graph_that_is_not_a_head(content: bytes, says: str) -> None:
    """A graph that is not a suitable head is Corrupt at load time."""
    with pytest.raises(Corrupt, match=says):
        HeadLoader().load(content, width=WIDTH, labels=LABELS, unknown=True)


def test_load_rejects_a_head_of_another_width() -> None:
    """A head is tested with embeddings of its backbone's width."""
    with pytest.raises(Corrupt, match="width 48"):
        HeadLoader().load(to_onnx(a_head()), width=48, labels=LABELS, unknown=True)


def test_rejected_head_does_not_affect_heads_of_the_same_structure() -> None:
    """After a head is rejected, a valid head of the same structure can be loaded."""
    loader = HeadLoader()
    good = a_head()
    bad = replace(good, scorer=replace(good.scorer, weights=good.scorer.weights[:, :7]))
    content = to_onnx(good)
    model = onnx.load_model_from_string(content)
    for tensor in model.graph.initializer:
        if tensor.name == "weights":
            tensor.CopyFrom(onnx.numpy_helper.from_array(bad.scorer.weights, "weights"))
    with pytest.raises(Corrupt):
        loader.load(model.SerializeToString(), width=WIDTH, labels=LABELS, unknown=True)
    loader.load(content, width=WIDTH, labels=LABELS, unknown=True)
