"""Files of an image tower in Hugging Face's format: a local folder, or a snapshot of the hub."""

from __future__ import annotations

import logging
import textwrap
from pathlib import Path

from topwork.errors import InvalidInput, NotFound
from topwork_trainer.backbones import plans
from topwork_trainer.backbones.weights import SAFE_WEIGHTS

CONFIG, PROCESSOR, CARD = "config.json", "preprocessor_config.json", "README.md"

UNKNOWN_LICENCE = "unknown, ask its owner"

_MOST_CARD_LINES = 200


def find(name: str) -> Path:
    """Return the folder of a tower, downloading it from the hub if necessary.

    Raises NotFound if it is not there, InvalidInput for a name of another form.
    """
    if folder := plans.folder(name):
        if not (folder / CONFIG).is_file():
            raise NotFound(
                f"{name}: {folder} has no {CONFIG}, so it is no model that save_pretrained wrote",
                kind="backbone",
                resource=name,
            )
        return folder
    owner, _, model = (repository := name.removeprefix(plans.TOWER)).partition("/")
    if not owner or not model or "/" in model or owner in {".", "..", "~"}:
        raise InvalidInput(
            f"{name!r} is no name on the hub: write hf/OWNER/NAME, or hf/local-dir:PATH for a"
            " folder",
            field="backbone",
        )
    return _snapshot(name, repository)


def weights_file(name: str, folder: Path) -> Path:
    """Return the weights in a folder. Raises NotFound if there are none in safetensors."""
    file = folder / SAFE_WEIGHTS
    if file.is_file():
        return file
    if (folder / f"{SAFE_WEIGHTS}.index.json").is_file():
        why = f"its weights are in several files; save them as one {SAFE_WEIGHTS}"
    elif pickles := sorted(path.name for path in folder.glob("*.bin")):
        why = (
            f"{pickles[0]} may contain code, so it is not read: save the model with"
            f" save_pretrained, which writes {SAFE_WEIGHTS}"
        )
    else:
        why = f"{folder} has no {SAFE_WEIGHTS}; pass --weights FILE"
    raise NotFound(f"the weights of {name} cannot be used: {why}", kind="weights", resource=name)


def licence(folder: Path) -> str:
    """Return the licence in the metadata of the model card, or UNKNOWN_LICENCE."""
    try:
        lines = (folder / CARD).read_text(encoding="utf-8").splitlines()[:_MOST_CARD_LINES]
    except (OSError, UnicodeDecodeError):
        return UNKNOWN_LICENCE
    if not lines or lines[0].strip() != "---":
        return UNKNOWN_LICENCE
    found: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, _, value = line.partition(":")
        found[key] = value.strip().strip("'\"")
    stated = found.get("license", "")
    named = found.get("license_name", "") if stated in {"", "other"} else ""
    return named or stated or UNKNOWN_LICENCE


def _snapshot(name: str, repository: str) -> Path:
    """Return the folder of a model in the hub's cache, downloading it if necessary."""
    import huggingface_hub

    # It logs each failed attempt to connect.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    required = (CONFIG, PROCESSOR, SAFE_WEIGHTS)
    try:
        cached = Path(huggingface_hub.snapshot_download(repository, local_files_only=True))
        if all((cached / file).is_file() for file in required):
            return cached
    except (OSError, ValueError):  # it is not in the cache
        pass
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=[*required, CARD]))
    except Exception as error:  # errors of the hub, of HTTP and of the network
        why = textwrap.shorten(str(error), 120, placeholder=" ...")
        raise NotFound(
            f"{name} is not on this machine and cannot be downloaded ({why}): where the hub can be"
            f" reached run `hf download {repository} --local-dir DIR`, copy DIR here, and use"
            " hf/local-dir:DIR",
            kind="backbone",
            resource=name,
        ) from error
