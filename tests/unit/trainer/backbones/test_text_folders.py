"""Import of text encoders from folders: settings beside the network, and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support import text_encoders, texts
from support.text_encoders import encoder

from topwork.errors import InvalidInput, NotFound
from topwork.inputs.text import TextSpec, prepare
from topwork.runtime.backend import open_session
from topwork_trainer.backbones.imported import ImportedBackbone
from topwork_trainer.backbones.texts.folder import FolderOptions, import_folder

OPTIONS = FolderOptions(max_tokens=32)
CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def modules(*names: str) -> list[dict[str, str]]:
    """Return the content of modules.json."""
    return [{"type": f"sentence_transformers.models.{name}"} for name in names]


def spec_of(backbone: ImportedBackbone) -> TextSpec:
    """Return the spec of a backbone."""
    assert isinstance(backbone.info.preprocess, TextSpec)
    return backbone.info.preprocess


def test_settings_of_sentence_transformers_are_used(tmp_path: Path) -> None:
    """Pooling, normalisation, length and licence come from the files beside the graph."""
    files = text_encoders.folder(
        tmp_path,
        encoder(),
        **{"1_Pooling__config": CLS},
        modules=modules("Transformer", "Pooling", "Normalize"),
        sentence_bert_config={"max_seq_length": 12},
        config={"max_position_embeddings": 40},
    )
    (files / "README.md").write_text("---\nlicense: mit\n---\n")
    backbone = import_folder("mine", files, FolderOptions())
    assert "first row of 'last_hidden_state', scaled to length 1" in backbone.notes[2]
    assert spec_of(backbone).max_tokens == 12
    assert backbone.info.licence == "mit"
    own = import_folder("mine", files, FolderOptions(pooling="mean", max_tokens=20, licence="x"))
    assert "mean of 'last_hidden_state', scaled" in own.notes[2]
    assert (spec_of(own).max_tokens, own.info.licence) == (20, "x")


@pytest.mark.parametrize(
    ("files", "tokens"),
    [
        ({"config": {"max_position_embeddings": 40}}, 40),
        ({"config": {"model_type": "roberta", "max_position_embeddings": 40}}, 38),
        (
            {
                "config": {"max_position_embeddings": 30},
                "tokenizer_config": {"model_max_length": 512},
            },
            30,
        ),
        ({"tokenizer_config": {"model_max_length": 25}}, 25),
    ],
)
def test_longest_text_is_found(tmp_path: Path, files: dict[str, Any], tokens: int) -> None:
    """It is the tokenizer's, within the positions that the network has."""
    found = import_folder(
        "mine", text_encoders.folder(tmp_path, encoder(), **files), FolderOptions()
    )
    assert spec_of(found).max_tokens == tokens


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules": modules("Transformer", "Pooling", "Dense")}, "modules.json has Dense"),
        ({"1_Pooling__config": {"pooling_mode_max_tokens": True}}, "its pooling is pooling_mode_m"),
        ({"1_Pooling__config": CLS | {"pooling_mode_mean_tokens": True}}, " and "),
        ({"config": [7]}, "config.json has another form than expected"),
    ],
)
def test_unusable_settings_are_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    """What cannot be taken over is named, since other embeddings would come out."""
    folder = text_encoders.folder(tmp_path, encoder(), **files)
    with pytest.raises(InvalidInput, match=message):
        import_folder("mine", folder, FolderOptions())


def test_own_pooling_is_for_rows_of_tokens(tmp_path: Path) -> None:
    """A graph that pools itself needs none of the folder's; --pooling is an error."""
    files = text_encoders.folder(
        tmp_path, encoder(outputs=("sentence_embedding",)), **{"1_Pooling__config": CLS}
    )
    found = import_folder("mine", files, OPTIONS)
    assert "16 values, 'sentence_embedding'" in found.notes[2]
    with pytest.raises(InvalidInput, match="one row per text"):
        import_folder("mine", files, FolderOptions(pooling="mean", max_tokens=32))


def test_folders_without_network_or_tokenizer_are_refused(tmp_path: Path) -> None:
    """Each missing file is named; weights that may contain code are not read."""
    with pytest.raises(InvalidInput, match=r"it has no tokenizer\.json"):
        import_folder("mine", tmp_path, OPTIONS)
    folder = text_encoders.folder(tmp_path)
    with pytest.raises(InvalidInput, match=r"neither model\.onnx nor model\.safetensors"):
        import_folder("mine", folder, OPTIONS)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(NotFound, match="may contain code"):
        import_folder("mine", folder, OPTIONS)


def test_onnx_below_a_folder_is_found(tmp_path: Path) -> None:
    """Optimum writes model.onnx beside the weights, the hub has it in onnx/."""
    folder = text_encoders.folder(tmp_path)
    (folder / "onnx").mkdir()
    onnx.save(encoder(), folder / "onnx" / "model.onnx")
    assert import_folder("mine", folder, OPTIONS).info.source == "model.onnx"


@pytest.mark.parametrize(
    "kind", ["bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"]
)
def test_checkpoint_gives_the_embeddings_of_transformers(tmp_path: Path, kind: str) -> None:
    """A folder that save_pretrained wrote becomes a graph with the mean of the same rows."""
    pytest.importorskip("transformers")
    import torch

    from topwork_trainer.backbones import towers

    transformers = towers.package()
    torch.manual_seed(0)
    sizes = {
        "vocab_size": text_encoders.WORDS,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 42,
    }
    if kind == "distilbert":
        sizes = {
            "vocab_size": text_encoders.WORDS, "dim": 32, "n_layers": 1, "n_heads": 2,
            "hidden_dim": 64, "max_position_embeddings": 42,
        }  # fmt: skip
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **sizes))
    model = model.eval()
    model.save_pretrained(tmp_path)
    text_encoders.folder(tmp_path)
    backbone = import_folder("mine", tmp_path, FolderOptions())
    spec = spec_of(backbone)
    assert spec.max_tokens == (40 if kind in {"camembert", "roberta", "xlm-roberta"} else 42)
    session = open_session(backbone.onnx, output="embedding")
    for text in (b"the salt and the pan in the oven", b"rook"):
        tokens = prepare(text, spec)[None]
        with torch.inference_mode():
            rows = model(
                input_ids=torch.from_numpy(tokens), attention_mask=torch.ones(tokens.shape)
            )[0]
        np.testing.assert_allclose(
            session.run(tokens)[0], rows.mean(dim=1).numpy()[0], rtol=1e-4, atol=1e-5
        )


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    """The error names those that can be exported, and another way."""
    pytest.importorskip("transformers")
    folder = text_encoders.folder(tmp_path, config={"model_type": "gpt2"})
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"'gpt2' is none of bert, .* Optimum"):
        import_folder("mine", folder, OPTIONS)


def test_tokenizer_of_another_encoder_is_refused(tmp_path: Path) -> None:
    """A vocabulary that is larger than the encoder's table is an error, not a wrong row."""
    folder = text_encoders.folder(tmp_path, encoder())
    words = [*json.loads(texts.tokenizer_json())["model"]["vocab"], "new"]
    (folder / "tokenizer.json").write_bytes(texts.tokenizer_json(words))
    with pytest.raises(InvalidInput, match="do not belong together"):
        import_folder("mine", folder, OPTIONS)
