"""Import of text encoders from ONNX files: the completed graph, and files that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from support import text_encoders, texts
from support.text_encoders import WIDTH, encoder, hidden

from topwork.errors import InvalidInput
from topwork.inputs.text import TextSpec, prepare
from topwork.runtime.agreement import measure
from topwork.runtime.backend import open_session
from topwork_trainer.backbones.imported import ImportedBackbone
from topwork_trainer.backbones.quantise import QuantisationError, quantise_texts
from topwork_trainer.backbones.texts.encoder import TextSource, import_file

TEXT = b"the salt and the pan in the oven"
BOTH = ("last_hidden_state", "sentence_embedding")


@pytest.fixture
def imported(tmp_path: Path) -> Callable[..., ImportedBackbone]:
    """Return a function that saves a graph and a tokenizer and imports both."""

    def run(model: onnx.ModelProto, **options: Any) -> ImportedBackbone:
        files = text_encoders.folder(tmp_path, model)
        options = {"max_tokens": 32, **options}
        return import_file(
            "mine",
            TextSource(file=files / "model.onnx", tokenizer=files / "tokenizer.json", **options),
        )

    return run


Import = Callable[..., ImportedBackbone]


def embed(backbone: ImportedBackbone, content: bytes = TEXT) -> NDArray[np.float32]:
    """Return the embedding (D,) of a text."""
    spec = backbone.info.preprocess
    assert isinstance(spec, TextSpec)
    session = open_session(backbone.onnx, output="embedding")
    return np.asarray(session.run(prepare(content, spec)[None])[0])


def rows(content: bytes = TEXT) -> NDArray[np.float32]:
    """Return the row of each token."""
    return hidden(prepare(content, texts.spec()))


@pytest.mark.parametrize("element", [TensorProto.INT64, TensorProto.INT32])
@pytest.mark.parametrize(
    "inputs",
    [
        ("input_ids", "attention_mask", "token_type_ids"),
        ("token_type_ids", "attention_mask", "input_ids"),
    ],
)
def test_mask_and_segments_are_computed_in_the_graph(
    imported: Import, element: int, inputs: tuple[str, ...]
) -> None:
    """The only input is tokens, and the embedding the mean of the rows of a whole first segment."""
    backbone = imported(encoder(element=element, inputs=inputs))
    graph = onnx.load_from_string(backbone.onnx).graph
    assert [value.name for value in graph.input] == ["tokens"]
    np.testing.assert_allclose(embed(backbone), rows().mean(axis=0), rtol=1e-5, atol=1e-6)
    assert (backbone.info.width, backbone.info.precision) == (WIDTH, "fp32")
    assert measure(backbone.info, open_session(backbone.onnx, output="embedding").run) == 1.0
    assert "attention_mask all 1, token_type_ids all 0" in backbone.notes[0]


def test_cls_and_normalisation(imported: Import) -> None:
    """CLS is the first row; a normalised embedding has the length 1."""
    first = rows()[0]
    backbone = imported(encoder(), pooling="cls", normalise=True)
    np.testing.assert_allclose(embed(backbone), first / np.linalg.norm(first), atol=1e-5)
    assert "first row of 'last_hidden_state', scaled to length 1" in backbone.notes[2]


def test_an_output_with_a_row_per_text_is_preferred(imported: Import) -> None:
    """Without --pooling the encoder's own embedding is used; with it, the rows of its tokens."""
    own = imported(encoder(outputs=BOTH))
    np.testing.assert_allclose(embed(own), rows().sum(axis=0), rtol=1e-5, atol=1e-5)
    pooled = imported(encoder(outputs=BOTH), pooling="mean")
    np.testing.assert_allclose(embed(pooled), rows().mean(axis=0), rtol=1e-5, atol=1e-6)
    chosen = imported(encoder(outputs=BOTH), output="bent")
    np.testing.assert_allclose(embed(chosen), rows().mean(axis=0), rtol=1e-5, atol=1e-6)


def test_graph_alone_tells_two_tokenizers_apart(imported: Import) -> None:
    """Two lengths of texts are two backbones, though their networks are the same."""
    long, short = imported(encoder()), imported(encoder(), max_tokens=4)
    assert long.info.digest != short.info.digest
    content = b"the salt and the pan and the soup and butter"
    assert not np.array_equal(embed(long, content), embed(short, content))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (encoder(rows=text_encoders.ROWS[:-1]), {}, "its tokenizer has 51 tokens and the encoder"),
        (encoder(dims=("batch", 32)), {}, "'input_ids' has a fixed sequence length of 32"),
        (encoder(dims=(1, "sequence")), {}, "has a fixed batch size of 1"),
        (encoder(dims=("n", "t", "d")), {}, "has 3 dimensions; texts have two"),
        (encoder(), {"max_tokens": 41}, "text of 41 tokens; pass --max-tokens"),
        (encoder(outputs=("scalar",)), {}, r"its output has the shape \(\)"),
        (encoder(outputs=("logits",)), {}, "is that of a classifier or a language model"),
        (encoder(outputs=("mixed", "bent")), {}, "'mixed', 'bent', of which none is named"),
        (encoder(outputs=("sentence_embedding",)), {"pooling": "mean"}, "one row per text"),
        (encoder(), {"output": "nothing"}, "it has no tensor 'nothing'"),
        (encoder(element=TensorProto.FLOAT), {}, "is float; tokens are int64 or int32"),
        (
            encoder(extra=[helper.make_node("Own", ["bent"], ["own"], domain="my.ops")]),
            {},
            "it has operators of my.ops",
        ),
    ],
)
def test_unusable_encoders_are_refused(
    imported: Import, model: onnx.ModelProto, options: dict[str, Any], message: str
) -> None:
    """The error has the file and what is wrong with it."""
    with pytest.raises(InvalidInput, match=message) as raised:
        imported(model, **options)
    assert "model.onnx cannot be used" in str(raised.value)
    assert raised.value.field == "onnx"


def test_unknown_inputs_are_refused(imported: Import) -> None:
    """Images, or what else a graph takes, are named."""
    model = encoder()
    model.graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.INT64, ["a", "b"]))
    with pytest.raises(InvalidInput, match="not 'pixels'"):
        imported(model)


def test_missing_external_data_is_refused(tmp_path: Path) -> None:
    """Weights in a file that is not there are named."""
    files = text_encoders.folder(tmp_path)
    onnx.save(
        encoder(), files / "model.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    (files / "w").unlink()
    source = TextSource(file=files / "model.onnx", tokenizer=files / "tokenizer.json")
    with pytest.raises(InvalidInput, match="cannot be used"):
        import_file("mine", source)


def test_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    """The error has the file of the tokenizer."""
    files = text_encoders.folder(tmp_path, encoder())
    (files / "tokenizer.json").write_text('{"model": 7}')
    source = TextSource(file=files / "model.onnx", tokenizer=files / "tokenizer.json")
    with pytest.raises(InvalidInput, match=r"tokenizer\.json: the tokenizer cannot be used"):
        import_file("mine", source)


def test_int8_has_the_same_input_and_is_deterministic(imported: Import) -> None:
    """The products with weights are of 8 bits, and equal graphs are equal bytes."""
    backbone = imported(encoder())
    quantised = quantise_texts(backbone.onnx)
    assert quantised == quantise_texts(backbone.onnx)
    graph = onnx.load_from_string(quantised).graph
    assert [value.name for value in graph.input] == ["tokens"]
    assert "MatMulInteger" in {node.op_type for node in graph.node}
    tokens = prepare(TEXT, texts.spec())[None]
    small, exact = (
        open_session(model, output="embedding").run(tokens)[0]
        for model in (quantised, backbone.onnx)
    )
    cosine = float(small @ exact / np.linalg.norm(small) / np.linalg.norm(exact))
    assert 0.98 < cosine < 1


def test_a_graph_without_products_is_not_quantised() -> None:
    """An encoder that only looks rows up has nothing to gain."""
    with pytest.raises(QuantisationError, match="no product with weights"):
        quantise_texts(texts.encoder_model())
