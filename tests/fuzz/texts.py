"""Fuzz target of texts: any bytes as a text, and any bytes as a ``tokenizer.json``."""

from __future__ import annotations

import json

import numpy as np
from support import texts

from topwork.errors import ImageError
from topwork.inputs.text import (
    TextSpec,
    digest,
    fingerprint,
    prepare,
    preview,
    probes,
    spec_of,
    vocabulary,
)
from topwork.printable import printable

SPEC = texts.spec()
SAMPLES = (b"Salt the pan", "naïve Grüße \u200d\U0001f469 \ufeff".encode(), b"")
MAX_TOKENS = 8


def read(content: bytes) -> None:
    """Read any bytes; the first one says whether they are a text or a tokenizer."""
    if content[:1] == b"{":
        _use(content)
    else:
        _read_text(content[1:], SPEC)


def _use(tokenizer: bytes) -> None:
    try:
        spec = spec_of(tokenizer, max_tokens=MAX_TOKENS)
    except ValueError:
        return
    assert vocabulary(spec) >= 1
    for probe in probes("tokens-1", spec):
        assert 0 < len(probe) <= MAX_TOKENS
    for sample in SAMPLES:
        _read_text(sample, spec)


def _read_text(content: bytes, spec: TextSpec) -> None:
    assert len(preview(content).decode()) <= 500
    try:
        tokens = prepare(content, spec)
    except ImageError as error:
        message = str(error)
        assert len(message) < 1000, message
        assert printable(message).isprintable()
        return
    assert tokens.dtype == np.int64
    assert 0 < len(tokens) <= spec.max_tokens
    assert tokens.min() >= 0
    assert tokens.max() < vocabulary(spec)
    assert len(digest(tokens)) == 64
    assert len(fingerprint(tokens)) == 32


def seeds() -> list[bytes]:
    """Return texts, and tokenizers with each kind of model."""
    plain = json.loads(texts.tokenizer_json(("[UNK]", "[CLS]", "[SEP]", "salt", "pan")))
    vocab = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "s": 3, "##alt": 4, "salt": 5}
    pieces = [["<unk>", 0.0], ["\u2581salt", -1.0], ["a", -2.5]]
    models = (
        plain["model"],
        {
            "type": "WordPiece",
            "vocab": vocab,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        {"type": "BPE", "vocab": {"s": 0, "a": 1, "sa": 2, "<unk>": 3}, "merges": ["s a"]},
        {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False},
    )
    made = [json.dumps({**plain, "model": model, "added_tokens": []}).encode() for model in models]
    bare = [
        json.dumps(
            {"version": "1.0", "post_processor": None, "normalizer": None, "model": model}
        ).encode()
        for model in models
    ]
    return [
        texts.tokenizer_json(("[UNK]", "[CLS]", "[SEP]", "salt")),
        *made,
        *bare,
        *(b"\0" + sample for sample in SAMPLES),
        b"\0salt \xff",
        b"\0salt \xed\xa0\x80",
        b"\0" + b"salt " * 100,
    ]
