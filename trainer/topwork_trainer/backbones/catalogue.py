"""Properties of backbones, for a table: input size, width, cost, licence, and origin of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.runtime.backend import open_session
from topwork_trainer.backbones import BackboneChoice, plans
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.backbones.prepare import prepare_backbone
from topwork_trainer.backbones.timing import embedding_milliseconds
from topwork_trainer.kinds import sizes_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Properties of a backbone."""

    name: str
    image_size: int | None
    """Side of the input in pixels; None: it takes no images."""
    width: int
    """Width of the embedding."""
    megabytes: float
    """Size of the network in fp32."""
    milliseconds: float | None
    """Time to embed an image, a text of 64 tokens, or a window of audio, on one core; None: not
    measured."""
    licence: str
    max_tokens: int | None = None
    """Tokens of the longest text; None: it takes no texts."""
    audio_rate: int | None = None
    """Rate of audio in Hz; None: it takes no audio."""
    weights: str
    """``here``, ``added`` to the repository, or ``download``."""


def describe(name: str) -> Row:
    """Return the row of a backbone whose weights are not on this machine.

    Builds the network without weights. Raises InvalidInput if the name is unknown.
    """
    with _WithoutWeights():
        plan = plans.plan(name)
    module = plan.module.to("meta").eval()
    side = plan.spec.crop
    with torch.inference_mode():
        width = module(torch.zeros(2, 3, side, side, device="meta")).shape[1]
    return Row(
        name=name,
        image_size=side,
        width=int(width),
        megabytes=sum(weights.nbytes for weights in module.state_dict().values()) / 1e6,
        milliseconds=None,
        licence=plan.licence,
        weights="download",
    )


def measure(name: str, repository: Repository, exports: Exports | None) -> Row:
    """Return the row of a backbone whose weights are on this machine, exporting it if necessary.

    Raises the errors of ``prepare_backbone``.
    """
    return _row(
        repository, prepare_backbone(repository, BackboneChoice(name=name), exports), "here"
    )


def added(repository: Repository) -> list[Row]:
    """Return the rows of the backbones that were added to a repository. Raises Corrupt."""
    return [
        _row(repository, repository.backbone_info(digest), "added", name)
        for name, digest in repository.added_backbones().items()
    ]


def _row(repository: Repository, info: BackboneInfo, weights: str, name: str = "") -> Row:
    model = repository.backbone_model(info.digest)
    session = open_session(model, output="embedding")
    return Row(
        name=name or info.name,
        **sizes_json(info.preprocess),
        width=info.width,
        megabytes=len(model) / 1e6,
        milliseconds=embedding_milliseconds(session, info.preprocess),
        licence=info.licence,
        weights=weights,
    )


class _WithoutWeights(TorchFunctionMode):
    """Leaves the memory of layers unallocated, which makes building a large network fast.

    torch's own context ``torch.device("meta")`` would do so for all tensors, but torchvision's
    RegNet computes its widths with some.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        _: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        device = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **device})
