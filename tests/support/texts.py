"""Texts of made-up topics, and a tiny encoder: the mean of a random vector for each word."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from support import tiny
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.store import Repository
from topwork.inputs.image_source import ImageSource
from topwork.inputs.text import TextSpec, spec_of
from topwork.runtime.agreement import expect
from topwork.runtime.backend import open_session
from topwork.training.embed import embed

WIDTH = 16
COMMON = ("the", "a", "of", "and", "in", "is", "was", "with")
TOPICS: Mapping[str, tuple[str, ...]] = {
    "cooking": ("salt", "pan", "onion", "boil", "flour", "oven", "soup", "butter"),
    "sailing": ("mast", "wind", "harbour", "tide", "keel", "anchor", "sail", "wave"),
    "gardens": ("rose", "soil", "seed", "prune", "hedge", "bloom", "spade", "compost"),
    "music": ("chord", "violin", "tempo", "choir", "melody", "drum", "opera", "tune"),
    "chess": ("pawn", "bishop", "mate", "castle", "gambit", "rook", "queen", "draw"),
}
_WORDS = ("[UNK]", "[CLS]", "[SEP]", *COMMON, *(word for own in TOPICS.values() for word in own))


def tokenizer_json(words: Sequence[str] = _WORDS) -> bytes:
    """Return a ``tokenizer.json`` of whole words in lower case."""
    special = [
        {
            "id": words.index(word), "content": word, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": True,
        }
        for word in ("[UNK]", "[CLS]", "[SEP]")
    ]  # fmt: skip
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special,
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {
                "type": "BertProcessing",
                "sep": ["[SEP]", words.index("[SEP]")],
                "cls": ["[CLS]", words.index("[CLS]")],
            },
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": {word: number for number, word in enumerate(words)},
                "unk_token": "[UNK]",
            },
        }
    ).encode()


def spec(max_tokens: int = 32) -> TextSpec:
    """Return the spec of the tokenizer."""
    return spec_of(tokenizer_json(), max_tokens=max_tokens)


def encoder_model() -> bytes:
    """Return an ONNX graph that maps tokens int64 (N, T) to embeddings (N, WIDTH)."""
    table = np.random.default_rng(3).normal(size=(len(_WORDS), WIDTH)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "tokens"], ["vectors"], axis=0),
            helper.make_node("ReduceMean", ["vectors"], ["embedding"], axes=[1], keepdims=0),
        ],
        "texts",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", "T"])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", WIDTH])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def backbone_info(model: bytes) -> BackboneInfo:
    """Return the description of the encoder."""
    return replace(
        tiny.backbone_info(model),
        name="words",
        identity="words:1",
        preprocess=spec(),
        width=WIDTH,
        expected=expect(open_session(model, output="embedding").run, spec()),
    )


def texts(label: str, count: int, *, first: int = 0) -> list[str]:
    """Return texts of a topic: those numbered ``first`` and later."""
    made = []
    for number in range(first, first + count):
        random = np.random.default_rng([zlib.crc32(label.encode()), number])
        words = [*random.choice(TOPICS[label], 6), *random.choice(COMMON, 6)]
        made.append(" ".join(random.permutation(words)))
    return made


def exemplars(given: Mapping[str, Sequence[str]]) -> Exemplars:
    """Return the exemplars of texts by label."""
    sources = [
        ImageSource(name=f"{label}-{number}", label=label, read=text.encode)
        for label, own in given.items()
        for number, text in enumerate(own)
    ]
    session = open_session(encoder_model(), output="embedding")
    made, skipped = embed(sources, session, spec(), cores=2)
    assert made is not None
    assert not skipped
    return made


def publish(repository: Repository, model: str, made: Exemplars) -> Manifest:
    """Publish a revision fitted on ``made``, and let it serve."""
    graph = encoder_model()
    return tiny.publish(repository, model, made, backbone=graph, info=backbone_info(graph))


@tiny.copied
def repository(root: Path) -> Repository:
    """Return a new repository with a model ``topics`` fitted on 15 texts of each of four topics."""
    made = Repository(root)
    four = {label: texts(label, 15) for label in [*TOPICS][:4]}
    publish(made, "topics", exemplars(four))
    return made
