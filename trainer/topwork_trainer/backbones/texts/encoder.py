"""Import of a text encoder's ONNX graph and tokenizer as a backbone, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from topwork.errors import InvalidInput
from topwork.inputs.text import (
    LARGEST_TOKENIZER,
    LATEST_PROBES,
    TextSpec,
    Tokens,
    probes,
    spec_of,
    vocabulary,
)
from topwork.runtime.backend import open_session
from topwork_trainer.backbones import onnx_file, onnx_graph
from topwork_trainer.backbones.imported import (
    ImportedBackbone,
    check_embeddings,
    imported,
    refusing,
)
from topwork_trainer.backbones.stamp import stamped
from topwork_trainer.backbones.texts.graph import (
    EncoderInputs,
    find_inputs,
    find_output,
    vocabulary_rows,
)
from topwork_trainer.backbones.texts.wrap import Pooling, Reduction, wrap

DEFAULT_TOKENS = 512
"""Raising it reads longer texts with encoders that do not say how long theirs may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSource:
    """A text encoder, and what is known about it; what is None is found, or the default."""

    file: Path
    """File of the graph or the weights, for messages and the digest."""
    tokenizer: Path
    """``tokenizer.json``"""
    pooling: Pooling | None = None
    """None: ``own_pooling``, or else the mean, if the output has a row per token."""
    own_pooling: Pooling | None = None
    """That with which the encoder was trained; not used if its output has a row per text."""
    max_tokens: int | None = None
    normalise: bool = False
    output: str | None = None
    """Name of the tensor to use."""
    licence: str = "unknown"


def import_file(name: str, source: TextSource) -> ImportedBackbone:
    """Return the backbone ``name`` from an ONNX file. Raises InvalidInput if it cannot be used."""
    return import_encoder(name, source, onnx_file.read(source.file))


def import_encoder(name: str, source: TextSource, model: onnx.ModelProto) -> ImportedBackbone:
    """Return the backbone ``name`` from a graph.

    The graph is completed so that it takes tokens alone, and compared with the original. Raises
    InvalidInput if it cannot be used, or does not fit the tokenizer.
    """
    spec = _spec(source)
    with refusing(source.file):
        return _import(name, source, model, spec)


def _spec(source: TextSource) -> TextSpec:
    """Return the spec of the tokenizer. Raises InvalidInput."""
    try:
        with source.tokenizer.open("rb") as file:
            content = file.read(LARGEST_TOKENIZER + 1)
        return spec_of(content, max_tokens=source.max_tokens or DEFAULT_TOKENS)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{source.tokenizer}: {error}", field="tokenizer") from error


def _import(
    name: str, source: TextSource, model: onnx.ModelProto, spec: TextSpec
) -> ImportedBackbone:
    """See ``import_encoder``. Raises ValueError, Corrupt, ExportError."""
    inputs = find_inputs(model)
    pooling = source.pooling or source.own_pooling
    tensor = find_output(model, source.output, pools=pooling is not None)
    bare = onnx_graph.cut(model, tensor)
    size = vocabulary(spec)
    rows = vocabulary_rows(bare, inputs.tokens.name)
    if rows is not None and size > rows:
        raise ValueError(
            f"its tokenizer has {size} tokens and the encoder {rows}: they do not belong together"
        )
    texts = [*probes(LATEST_PROBES, spec), np.array([size - 1]), _longest(spec)]
    outputs = _reference(bare, inputs, tensor, texts)
    shape = outputs[-1].shape
    wanted = pooling if len(shape) == 3 else source.pooling
    reduction = Reduction.of(shape, wanted, normalise=source.normalise)
    expected = np.concatenate([reduction.apply(output) for output in outputs])
    check_embeddings(expected, tensor, "texts")
    width = expected.shape[1]
    wrapped = wrap(bare, inputs, reduction=reduction, width=width)
    graph = stamped(wrapped.SerializeToString(), spec)
    session = open_session(graph, output="embedding", quiet=True)
    actual = np.concatenate([session.run(text[None]) for text in texts])
    return imported(
        name,
        source,
        original=bare,
        graph=graph,
        session=session,
        spec=spec,
        expected=expected,
        actual=actual,
        notes=tuple(_notes(inputs, tensor, reduction, spec, width)),
    )


def _longest(spec: TextSpec) -> Tokens:
    """Return a text of the most tokens, all in the vocabulary."""
    return np.arange(spec.max_tokens, dtype=np.int64) % vocabulary(spec)


def _reference(
    bare: onnx.ModelProto, inputs: EncoderInputs, tensor: str, texts: list[Tokens]
) -> list[NDArray[np.float32]]:
    """Return the output (1, ...) of the original graph for each text, whose last is the longest."""
    session = open_session(bare.SerializeToString(), output=tensor, quiet=True)
    outputs = []
    for text in texts:
        try:
            (output,) = session.run_fed(inputs.feeds(text), [tensor])
        except Exception as error:  # ONNX Runtime's errors share no class
            longer = "; pass --max-tokens if it takes fewer" * (len(text) == len(texts[-1]))
            raise ValueError(
                f"ONNX Runtime cannot run it with a text of {len(text)} tokens{longer}: {error}"
            ) from error
        if output.ndim < 1 or len(output) != 1 or (output.ndim == 3 and output.shape[1] == 0):
            raise ValueError(
                f"its output has the shape {onnx_graph.shape_text(output.shape)} for one text of "
                f"{len(text)} tokens"
            )
        outputs.append(output)
    return outputs


def _notes(
    inputs: EncoderInputs, tensor: str, reduction: Reduction, spec: TextSpec, width: int
) -> list[str]:
    """Return what was found, a sentence each."""
    filled = [f"{each.name} all {value}" for each, value in inputs.filled.items()]
    pooled = {"mean": f"mean of {tensor!r}", "cls": f"first row of {tensor!r}"}
    scaled = ", scaled to length 1" if reduction.normalise else ""
    return [
        f"input {inputs.tokens.name!r} of tokens" + "".join(f", {each}" for each in filled),
        f"texts up to {spec.max_tokens} tokens, of a vocabulary of {vocabulary(spec):,}",
        f"embedding: {width} values, {pooled.get(reduction.pooling or '', repr(tensor))}{scaled}",
    ]
