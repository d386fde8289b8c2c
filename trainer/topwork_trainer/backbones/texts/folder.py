"""Folders of text encoders: as Optimum, ``save_pretrained`` or sentence-transformers write them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topwork.errors import InvalidInput
from topwork.inputs.text import MOST_TOKENS
from topwork_trainer.backbones import onnx_file, tower_files
from topwork_trainer.backbones.imported import ImportedBackbone
from topwork_trainer.backbones.texts.encoder import (
    DEFAULT_TOKENS,
    TextSource,
    import_encoder,
)
from topwork_trainer.backbones.texts.wrap import Pooling
from topwork_trainer.backbones.weights import SAFE_WEIGHTS

TOKENIZER = "tokenizer.json"
GRAPHS = ("model.onnx", "onnx/model.onnx")
"""Places of the graph, the better one first."""

_MODULES = ("Transformer", "Pooling", "Normalize")
"""Modules of sentence-transformers that can be taken over."""
_ROBERTA = ("roberta", "xlm-roberta", "camembert", "mpnet", "esm")
"""Architectures whose positions are counted from the padding's number + 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderOptions:
    """Settings that replace those of the folder; None: as in the folder."""

    pooling: Pooling | None = None
    max_tokens: int | None = None
    normalise: bool = False
    output: str | None = None
    licence: str | None = None


def import_folder(name: str, folder: Path, options: FolderOptions) -> ImportedBackbone:
    """Return the backbone ``name`` from a folder with ``tokenizer.json`` and a network.

    That is ``model.onnx``, or else ``model.safetensors`` with ``config.json``, which needs torch
    and transformers. Raises InvalidInput if it cannot be used.
    """
    if not (folder / TOKENIZER).is_file():
        raise _unusable(folder, f"it has no {TOKENIZER}")
    graph = next((folder / place for place in GRAPHS if (folder / place).is_file()), None)
    if graph is None and not [*folder.glob("*.safetensors*"), *folder.glob("*.bin")]:
        raise _unusable(folder, f"it has neither {GRAPHS[0]} nor {SAFE_WEIGHTS}")
    file = graph or tower_files.weights_file(str(folder), folder)
    pooling, normalise = _pooling(folder)
    source = TextSource(
        file=file,
        tokenizer=folder / TOKENIZER,
        pooling=options.pooling,
        own_pooling=pooling,
        max_tokens=options.max_tokens or _max_tokens(folder),
        normalise=options.normalise or normalise,
        output=options.output,
        licence=options.licence or tower_files.licence(folder),
    )
    if graph is not None:
        return import_encoder(name, source, onnx_file.read(file))
    if options.output is not None:
        raise InvalidInput("--output needs an ONNX file", field="output")
    from topwork_trainer.backbones.texts.checkpoint import to_onnx  # torch

    return import_encoder(name, source, to_onnx(folder))


def _pooling(folder: Path) -> tuple[Pooling | None, bool]:
    """Return what sentence-transformers does with the tokens' rows, and whether it normalises."""
    modules = _json(folder, "modules.json") or []
    names = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if foreign := [name for name in names if name not in _MODULES]:
        raise _unusable(
            folder,
            f"its modules.json has {foreign[0]}, and only {', '.join(_MODULES)} can be taken over",
        )
    config = _json(folder, "1_Pooling/config.json")
    return (_mode(folder, config) if config else None), "Normalize" in names


def _mode(folder: Path, config: dict[str, Any]) -> Pooling:
    modes = [key for key, value in config.items() if key.startswith("pooling_mode") and value]
    named = config.get("pooling_mode")  # of newer releases, in place of a flag for each
    if isinstance(named, str):
        modes = [
            {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}.get(named, named)
        ]
    if modes == ["pooling_mode_mean_tokens"]:
        return "mean"
    if modes == ["pooling_mode_cls_token"]:
        return "cls"
    raise _unusable(
        folder, f"its pooling is {' and '.join(modes) or 'unknown'}; the mean and CLS are possible"
    )


def _max_tokens(folder: Path) -> int:
    """Return the tokens of the longest text that the encoder was made for."""
    config = _json(folder, "config.json") or {}
    positions = config.get("max_position_embeddings")
    limits = [MOST_TOKENS]
    if isinstance(positions, int) and positions > 0:
        padding = config.get("pad_token_id")
        offset = 1 + (padding if isinstance(padding, int) else 1)
        limits.append(positions - offset * (config.get("model_type") in _ROBERTA))
    wanted = [
        (_json(folder, "sentence_bert_config.json") or {}).get("max_seq_length"),
        (_json(folder, "tokenizer_config.json") or {}).get("model_max_length"),
    ]
    found = [each for each in wanted if isinstance(each, int) and each > 0]
    default = limits[-1] if len(limits) > 1 else DEFAULT_TOKENS
    return max(1, min([*(found[:1] or [default]), *limits]))


def _json(folder: Path, name: str) -> Any:
    """Return a JSON file of the folder; None if there is none. Raises InvalidInput."""
    try:
        content = (folder / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unusable(folder, f"{name}: {error.strerror}") from error
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _unusable(folder, f"{name} is no JSON: {error}") from error
    kind = list if name == "modules.json" else dict
    if not isinstance(found, kind) or (
        kind is list and not all(isinstance(module, dict) for module in found)
    ):
        raise _unusable(folder, f"{name} has another form than expected")
    return found


def _unusable(folder: Path, why: str) -> InvalidInput:
    return InvalidInput(f"text encoder {folder} cannot be used: {why}", field="encoder")
