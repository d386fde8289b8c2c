"""Image towers in Hugging Face's format; the only import of transformers. Imports torch."""

from __future__ import annotations

import inspect
import textwrap
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from topwork.errors import InvalidInput
from topwork_trainer.backbones import torchvision_import, tower_files, weights
from topwork_trainer.backbones.plans import TOWER, Plan, split_pool
from topwork_trainer.backbones.token_pooling import Parts, TokenPooling
from topwork_trainer.backbones.tower_preprocess import normalisation, preprocess_spec

_PREFIX = "vision_transformer."
"""Prefix of the weights in a ``Tower``."""


class Tower(TokenPooling):
    """A model of transformers that takes pixels, of patches, windows or convolutions.

    Its own embedding is its pooled output (CLIP, SigLIP, and DINO's CLS), else CLS, else the mean.
    Position embeddings for another image size are resized in the graph, where they are constant.
    """

    def __init__(self, vision_transformer: nn.Module, pool: str) -> None:
        super().__init__(vision_transformer, pool)
        resizes = inspect.signature(vision_transformer.forward).parameters
        key = "interpolate_pos_encoding"
        self.options = {key: True} if key in resizes else {}
        config: Any = vision_transformer.config
        self.patch = getattr(config, "patch_size", None)
        # CLIP normalises its pooled token only, the others all tokens.
        self.normalises = config.model_type == "clip_vision_model"

    def parts(self, images: Tensor) -> Parts:
        """Return the embeddings."""
        outputs = self.vision_transformer(pixel_values=images, **self.options)
        tokens, own = outputs.last_hidden_state, outputs.get("pooler_output")
        if tokens.ndim == 4:  # (N, C, H, W)
            mean, cls = tokens.mean(dim=(2, 3)), None
        else:
            if self.normalises:
                tokens = self.vision_transformer.post_layernorm(tokens)
            prefix = self._prefix(tokens.shape[1], images.shape[-1])
            mean, cls = tokens[:, prefix:].mean(dim=1), tokens[:, 0] if prefix else None
        if own is None:
            own = mean if cls is None else cls
        return Parts(own=own.flatten(1), cls=cls, mean=mean)

    def _prefix(self, tokens: int, side: int) -> int:
        """Return the number of tokens before the patches: CLS and registers."""
        patches = (side // self.patch) ** 2 if isinstance(self.patch, int) else tokens
        return max(0, tokens - patches)


def plan(name: str) -> Plan:
    """Build the tower ``hf/local-dir:PATH`` or ``hf/OWNER/NAME``, also with ``:POOL``.

    Reads a folder as ``save_pretrained`` writes it or the hub has it; never runs its code, and
    reads weights from safetensors only. Raises InvalidInput if it cannot be used, NotFound if it is
    not on this machine and cannot be downloaded.
    """
    transformers = package()
    network, pool = split_pool(name)
    folder = tower_files.find(network)
    config = _config(transformers, network, folder)
    build = _builder(network, config)
    processor = _processor(transformers, network, folder)
    spec = preprocess_spec(processor, network)
    mean, std = normalisation(processor, network)
    try:
        module = Tower(build(state=None), pool).eval()
        module.check(name, spec.crop)
    except InvalidInput:
        raise
    except Exception as error:  # models raise errors of many types
        raise _unusable(network, f"it cannot embed an image: {_brief(error)}") from error
    return Plan(
        module=module,
        unused=(),
        mean=mean,
        std=std,
        spec=spec,
        licence=tower_files.licence(folder),
        source=network.removeprefix(TOWER),
        fetch=partial(tower_files.weights_file, network, folder),
        convert=partial(_convert, build=build),
    )


def package() -> ModuleType:
    """Import ``transformers``. Raises InvalidInput if it is not installed."""
    torchvision_import.package()  # transformers imports it, which may fail otherwise
    try:
        import transformers
    except ImportError as error:
        raise InvalidInput(
            "towers of Hugging Face need transformers: pip install"
            f" 'topwork[cpu,train,transformers]' ({error})",
            field="backbone",
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    assert isinstance(transformers, ModuleType)
    return transformers


def _config(transformers: ModuleType, name: str, folder: Path) -> Any:
    """Return the configuration of the image tower. Raises InvalidInput."""
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of many types; also a folder whose model is code of its own
        raise _unusable(name, f"transformers cannot read its config.json: {_brief(error)}") from (
            error
        )
    return getattr(config, "vision_config", config)


def _builder(name: str, config: Any) -> Any:
    """Return a function that makes the network, with random weights if ``state`` is None."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    if type(config) not in MODEL_MAPPING:
        raise _unusable(name, f"{config.model_type!r} is no network that transformers can build")
    network: Any = MODEL_MAPPING[type(config)]
    if network.main_input_name != "pixel_values":
        raise _unusable(
            name, f"{config.model_type!r} takes {network.main_input_name}, not pixel_values"
        )
    if config.model_type.startswith("siglip2"):
        raise _unusable(
            name, "SigLIP 2 of variable resolution (NaFlex) takes patches: use one of fixed size"
        )
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    if "add_pooling_layer" in inspect.signature(network.__init__).parameters:
        options["add_pooling_layer"] = False  # a layer that classifiers are not trained with

    def build(state: weights.State | None) -> nn.Module:
        if state is None:
            own = {key: options[key] for key in options if key == "add_pooling_layer"}
            config._attn_implementation = "eager"  # noqa: SLF001 # the constructor has no option
            module: nn.Module = network(config, **own).float()
            return module
        # It renames weights of other classes and of earlier releases.
        module, loaded = network.from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True, **options
        )
        if missing := sorted(map(str, loaded["missing_keys"])):
            raise ValueError(
                f"{len(missing)} weights are missing, the first is {missing[0]!r}"
                + "".join(f"; unknown is {key!r}" for key in sorted(loaded["unexpected_keys"])[:1])
            )
        return module

    return build


def _processor(transformers: ModuleType, name: str, folder: Path) -> Any:
    if not (folder / tower_files.PROCESSOR).is_file():
        raise _unusable(name, f"{folder} has no {tower_files.PROCESSOR}")
    try:
        return transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of many types
        raise _unusable(
            name, f"transformers cannot read its {tower_files.PROCESSOR}: {_brief(error)}"
        ) from error


def _convert(state: weights.State, _: nn.Module, *, build: Any) -> weights.State:
    """Return the weights under the names that they have in a ``Tower``."""
    return {_PREFIX + key: value for key, value in build(state=state).state_dict().items()}


def _unusable(name: str, why: str) -> InvalidInput:
    return InvalidInput(f"{name} cannot be used: {why}", field="backbone")


def _brief(error: Exception) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__
