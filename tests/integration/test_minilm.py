"""A real text encoder, MiniLM-L6, from a package of PyPI: `make minilm` downloads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from benchmarks.text_topics import PACKAGE, packaged_encoder
from numpy.typing import NDArray

from topwork.inputs.text import TextSpec, prepare
from topwork.runtime.backend import open_session
from topwork_trainer.backbones.imported import ImportedBackbone
from topwork_trainer.backbones.quantise import quantise_texts
from topwork_trainer.backbones.texts.folder import FolderOptions, import_folder

DOWNLOADED = Path(__file__).parents[2] / ".minilm" / PACKAGE / "model"
FOLDER = DOWNLOADED if DOWNLOADED.is_dir() else packaged_encoder()

pytestmark = pytest.mark.skipif(FOLDER is None, reason="needs MiniLM: make minilm")

Embed = Callable[[str], NDArray[np.float32]]
PAIRS = [
    ("The cat sleeps on the sofa.", "A kitten is lying on the couch.", "Shares fell on Monday."),
    ("How do I install a package?", "Setting up the software", "We had soup and bread."),
]
"""A text, one that means about the same, and another."""


@pytest.fixture(scope="module")
def minilm() -> ImportedBackbone:
    """Return the backbone, exported with torch."""
    pytest.importorskip("transformers")
    assert FOLDER is not None
    return import_folder("minilm", FOLDER, FolderOptions())


def embedder(backbone: ImportedBackbone, graph: bytes) -> Embed:
    """Return a function that embeds one text (D,)."""
    spec = backbone.info.preprocess
    assert isinstance(spec, TextSpec)
    session = open_session(graph, output="embedding")
    return lambda text: np.asarray(session.run(prepare(text.encode(), spec)[None])[0])


def test_settings_of_the_package_are_found(minilm: ImportedBackbone) -> None:
    """The mean of 256 tokens at most, with length 1, of 384 numbers."""
    assert minilm.info.width == 384
    assert minilm.notes[1:] == (
        "texts up to 256 tokens, of a vocabulary of 30,522",
        "embedding: 384 values, mean of 'last_hidden_state', scaled to length 1",
    )
    assert minilm.info.parity_error < 1e-5
    length = np.linalg.norm(embedder(minilm, minilm.onnx)("any text"))
    assert length == pytest.approx(1, abs=1e-5)


def test_embeddings_are_those_of_transformers(minilm: ImportedBackbone) -> None:
    """A padded batch of transformers, with mask, has the same means."""
    import torch

    from topwork_trainer.backbones import towers

    transformers = towers.package()
    model = transformers.AutoModel.from_pretrained(FOLDER).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    texts = [text for pair in PAIRS for text in pair]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        rows = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    means = ((rows * mask).sum(1) / mask.sum(1)).numpy()
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    embed = embedder(minilm, minilm.onnx)
    np.testing.assert_allclose(np.stack([*map(embed, texts)]), expected, atol=2e-5)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_similar_texts_are_near_each_other(minilm: ImportedBackbone, precision: str) -> None:
    """int8 keeps the meaning: a paraphrase is nearer than another text."""
    graph = minilm.onnx if precision == "fp32" else quantise_texts(minilm.onnx)
    embed = embedder(minilm, graph)
    for text, same, other in PAIRS:
        row = embed(text)
        assert row @ embed(same) > row @ embed(other) + 0.2
