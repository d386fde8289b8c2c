"""Settings of fine-tuning; their help texts are those of the options of ``topwork-train fit``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.errors import InvalidInput, TopworkError


class Diverged(TopworkError):
    """The loss is not finite; running again with the same settings gives the same error."""

    reason = "DIVERGED"


def _setting(
    default: Any, least: float | None = None, most: float | None = None, *, option: str = ""
) -> Any:
    """Return a field with bounds; ``option`` is the help text of its command-line option."""
    return field(default=default, metadata={"least": least, "most": most, "option": option})


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """Settings of fine-tuning; the defaults are those measured in docs/training.md.

    Raises InvalidInput for a value out of bounds.
    """

    unfreeze: str = _setting(
        "none",
        option="Stages of the backbone to fine-tune: none, last:N or all; `topwork-train describe` "
        "lists them.",
    )
    epochs: int = _setting(4, 1, 10_000, option="Number of epochs of fine-tuning.")
    augmented_views: int = _setting(
        4, 0, 1_000, option="Number of augmented views of a photo that fine-tuning uses in turn."
    )
    activations_gib: float = _setting(
        4.0,
        1e-6,
        1e6,
        option="Largest size of the temporary file of fine-tuning, in GiB; fewer augmented views "
        "are used if they do not fit.",
    )
    label_smoothing: float = _setting(
        0.0, 0, 0.9, option="Share of a label that fine-tuning spreads over all classes."
    )
    average_weights: bool = _setting(
        True, option="Fine-tune to the moving average of the weights over the last epoch."
    )
    mirror: bool = _setting(
        True,
        option="Mirror photos at random in fine-tuning; --no-mirror if left and right differ in "
        "meaning.",
    )
    batch: int = _setting(16, 1, 10_000)
    rate: float = _setting(4e-4, 1e-9, 1e9)
    """Peak learning rate of the last stage."""
    head_rate: float = _setting(1e-2, 1e-9, 1e9)
    """Peak learning rate of the linear layer."""
    decay: float = _setting(0.8, 1e-3, 1)
    """Factor of the learning rate from each stage to the stage before it."""
    weight_decay: float = _setting(0.02, 0, 10)
    mixup: float = _setting(0.2, 0, 10)
    """Parameter of mixup's beta distribution (Verma et al., ICML 2019); 0: no mixup."""
    device: str = _setting("auto")
    """``auto`` (CUDA if available, else CPU), or torch's name of a device."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            least, most = setting.metadata["least"], setting.metadata["most"]
            value = getattr(self, setting.name)
            if least is not None and not least <= value <= most:  # negated, so that NaN is refused
                raise InvalidInput(
                    f"{setting.name} must be {least:g} to {most:g}, not {value:g}",
                    field=setting.name,
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearHead:
    """Linear layer on square roots of embeddings that are normalised to length 1."""

    weights: NDArray[np.float32]
    """(C, D)"""
    bias: NDArray[np.float32]
    """(C,)"""
