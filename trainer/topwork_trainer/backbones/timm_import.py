"""Backbones of timm, by name; the only import of timm. Imports torch."""

from __future__ import annotations

import difflib
import importlib.util
import logging
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from topwork.errors import InvalidInput, NotFound, TopworkError
from topwork.inputs.preprocess import DEEP_GREY, Interpolation, PreprocessSpec
from topwork_trainer.backbones import torchvision_import, weights
from topwork_trainer.backbones.plans import TIMM, Plan, split_pool
from topwork_trainer.backbones.token_pooling import Parts, TokenPooling


class TimmPooling(TokenPooling):
    """A vision transformer of timm."""

    def parts(self, images: Tensor) -> Parts:
        """Return the embeddings."""
        model = self.vision_transformer
        tokens = model.forward_features(images)
        prefix = model.num_prefix_tokens
        mean = tokens[:, prefix:].mean(dim=1)
        # A network that averages normalises after that, others before.
        cls = model.fc_norm(tokens[:, 0]) if prefix else None
        return Parts(own=model.forward_head(tokens), cls=cls, mean=model.fc_norm(mean))


def plan(name: str) -> Plan:
    """Build the network ``timm/NAME`` or ``timm/NAME:POOL``.

    NAME is one of timm's, ``hf-hub:OWNER/NAME`` or ``local-dir:PATH``. Raises InvalidInput if it is
    unknown, if it takes no square RGB images, or if timm is not installed.
    """
    timm = package()
    model, pool = split_pool(name.removeprefix(TIMM))
    try:
        module = timm.create_model(model, pretrained=False, exportable=True)
    except Exception as error:  # timm raises RuntimeError, ValueError, AssertionError and more
        close = difflib.get_close_matches(model, timm.list_models(pretrained=True))
        hint = f"; close to it: {', '.join(TIMM + each for each in close)}" if close else ""
        raise InvalidInput(
            f"unknown backbone {name!r} ({error}){hint}", field="backbone"
        ) from error
    names = set(module.state_dict())
    module.reset_classifier(0)
    classifier = names - set(module.state_dict())
    config = module.pretrained_cfg
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise InvalidInput(
            f"{name} takes {channels} x {height} x {width} values, not square RGB images",
            field="backbone",
        )
    if pool:
        module = _pooled(module, pool, name, height)
    prefix = "vision_transformer." if pool else ""
    interpolation: Interpolation = (
        "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    )
    red, green, blue = config["mean"]
    reds, greens, blues = config["std"]
    return Plan(
        module=module,
        unused=tuple(prefix + weight for weight in sorted(classifier)),
        mean=(255 * red, 255 * green, 255 * blue),
        std=(255 * reds, 255 * greens, 255 * blues),
        spec=PreprocessSpec(
            resize=max(height, int(height / config.get("crop_pct", 1.0))),
            crop=height,
            interpolation=interpolation,
            deep_grey=DEEP_GREY,
        ),
        licence=config.get("license") or "unknown",
        source=config.get("hf_hub_id") or config.get("url") or config.get("file") or "unknown",
        fetch=partial(_fetch, name, config),
        convert=partial(_convert, prefix=prefix),
    )


def package() -> ModuleType:
    """Import ``timm``. Raises InvalidInput if it is not installed."""
    torchvision_import.package()  # timm imports it, which may fail otherwise
    try:
        import timm
    except ImportError as error:
        raise InvalidInput(
            f"timm's backbones need timm: pip install 'topwork[cpu,train,timm]' ({error})",
            field="backbone",
        ) from error
    assert isinstance(timm, ModuleType)
    return timm


def names() -> list[str]:
    """Return the names of all networks with published weights. Raises InvalidInput without timm."""
    return [TIMM + name for name in package().list_models(pretrained=True)]


def downloaded() -> list[str]:
    """Return the names of timm's backbones whose weights are in the hub's cache."""
    if not all(map(importlib.util.find_spec, ("timm", "huggingface_hub"))):
        return []
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob(
        f"models--timm--*/snapshots/*/{weights.FOLDER_FILES[0]}"
    )
    return sorted({TIMM + path.parts[-4].removeprefix("models--timm--") for path in folders})


def _pooled(module: nn.Module, pool: str, name: str, side: int) -> nn.Module:
    """Return a vision transformer with another pooling. Raises InvalidInput for other networks."""
    if not (hasattr(module, "num_prefix_tokens") and hasattr(module, "fc_norm")):
        raise InvalidInput(f"{split_pool(name)[0]} has no tokens for :{pool}", field="backbone")
    pooled = TimmPooling(module, pool).eval()
    pooled.check(name, side)
    return pooled


def _convert(state: weights.State, module: nn.Module, *, prefix: str) -> weights.State:
    """Rename weights of earlier releases and other publishers, as timm does."""
    model = module.get_submodule(prefix.rstrip("."))
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is not None:
        state = rename(state, model)
    return {prefix + key: value for key, value in state.items()}


def _fetch(name: str, config: dict[str, Any]) -> Path:
    """Return the published weights, from a local folder, the cache or the hub. Raises NotFound."""
    if folder := config.get("file"):
        for file in weights.FOLDER_FILES:
            if (path := Path(folder, file)).is_file():
                return path
        raise _missing(name, f"{folder} has neither {' nor '.join(weights.FOLDER_FILES)}")
    hub = config.get("hf_hub_id")
    try:
        if hub:
            return _from_hub(hub, config.get("hf_hub_filename"))
        if url := config.get("url"):
            return weights.download(name, url)
    except TopworkError:
        raise
    except Exception as error:  # errors of the hub, of HTTP and of the network
        why = " ".join(str(error).split())[:300]
        raise _missing(name, f"they cannot be downloaded from {hub} ({why})") from error
    raise _missing(name, "timm publishes none")


def _from_hub(repository: str, file: str | None) -> Path:
    """Return a file of the hub. Raises errors of many types."""
    import huggingface_hub

    # It logs each failed attempt to connect.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    wanted = (file,) if file else weights.FOLDER_FILES
    for each in wanted:
        cached = huggingface_hub.try_to_load_from_cache(repository, each)
        if isinstance(cached, str):
            return Path(cached)
    for each in wanted[:-1]:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, each))
        except huggingface_hub.errors.RemoteEntryNotFoundError:
            continue
    return Path(huggingface_hub.hf_hub_download(repository, wanted[-1]))


def _missing(name: str, why: str) -> NotFound:
    return NotFound(
        f"the weights of {name} are not on this machine: {why}; pass --weights FILE",
        kind="weights",
        resource=name,
    )
