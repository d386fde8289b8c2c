"""Training loop of the top of a backbone with a linear head, epoch by epoch. Imports torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 # the name that torch's own documentation uses
from numpy.typing import NDArray
from torch import Tensor, nn

from topwork_trainer.backbones.stages import BackboneStage
from topwork_trainer.finetuning.activations import Activations
from topwork_trainer.finetuning.settings import Diverged, FinetuneConfig, LinearHead
from topwork_trainer.finetuning.split import SplitBackbone


class TrainableTop(nn.Module):
    """Maps activations (N, width) of a frozen stem to logits (N, C); owns a copy of the top."""

    def __init__(self, parts: SplitBackbone, head: LinearHead) -> None:
        super().__init__()
        self.shapes = parts.shapes
        self.top = copy.deepcopy(parts.top).requires_grad_(False)
        self.weights = nn.Parameter(torch.tensor(head.weights, dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(head.bias, dtype=torch.float32))

    def embed(self, activations: Tensor) -> Tensor:
        """Return embeddings (N, D)."""
        widths = [math.prod(shape) for shape in self.shapes]
        parts = [
            part.reshape(-1, *shape)
            for part, shape in zip(
                torch.split(activations, widths, dim=1), self.shapes, strict=True
            )
        ]
        embedding: Tensor = self.top(*map(_channels_last, parts))
        return embedding.float()

    def forward(self, activations: Tensor) -> Tensor:
        """Return logits."""
        embedding = self.embed(activations)
        features = F.normalize(embedding * torch.rsqrt(embedding.abs() + _SMOOTH), dim=1)
        return F.linear(features, self.weights, self.bias)


class Tuning:
    """State of fine-tuning on a set of photos; owns the model, the optimizer and the average."""

    def __init__(
        self,
        parts: SplitBackbone,
        unfrozen: Sequence[BackboneStage],
        activations: Activations,
        targets: NDArray[np.int64],
        rows: NDArray[np.int64],
        head: LinearHead,
        config: FinetuneConfig,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        """Prepare training on ``rows`` of the activations; ``targets`` (N,) has all classes."""
        self._activations, self._rows, self._config = activations, rows, config
        self._seed, self._device = seed, device
        self._model = TrainableTop(parts, head).to(device)
        self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # not in its stubs
        self._trained, groups = _unfreeze(self._model, unfrozen, config)
        self._optimizer = torch.optim.AdamW(groups)
        self._targets = torch.from_numpy(targets).to(device)
        self._class_weights = _class_weights(self._targets[rows], len(head.bias)).to(device)
        # bfloat16 is a quarter slower on CPUs.
        self._half = device.type == "cuda" and torch.cuda.is_bf16_supported(False)
        self._steps_per_epoch = math.ceil(len(rows) / config.batch)
        self._average = self._weights()
        self.steps = config.epochs * self._steps_per_epoch
        self.epoch = 0
        """Number of epochs done."""

    def state(self) -> dict[str, Any]:
        """Return the state for ``resume``. Random generators are seeded anew in each epoch."""
        return {
            "epoch": self.epoch,
            "average": self._average,
            "trained": self._weights(),
            "optimizer": self._optimizer.state_dict(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from the ``state`` of a run with the same arguments."""
        self.epoch = state["epoch"]
        self._average = [value.to(self._device) for value in state["average"]]
        self._put(state["trained"])
        self._optimizer.load_state_dict(state["optimizer"])

    def advance(self, on_step: Callable[[int], None]) -> None:
        """Train for one epoch; ``on_step`` gets the number of photos. Raises Diverged."""
        rng = np.random.default_rng([self._seed, self.epoch])
        order = rng.permutation(self._rows)
        for step, rows in enumerate(_batches(order, self._config.batch)):
            self._step(self.epoch * self._steps_per_epoch + step, rows, rng)
            on_step(len(rows))
        self.epoch += 1

    def take_result(self) -> None:
        """Load the resulting weights into the model, on the CPU."""
        if self._config.average_weights:
            self._put(self._average)
        self._model.cpu()
        self._device = torch.device("cpu")

    def tuned(self) -> dict[str, Tensor]:
        """Return the fine-tuned parameters of the backbone by name."""
        return {
            name: value.detach().contiguous()
            for name, value in self._model.top.named_parameters()
            if value.requires_grad
        }

    def embed(self, rows: int) -> NDArray[np.float32]:
        """Return embeddings (``rows``, D) of the first rows, as in serving."""
        with torch.inference_mode():
            return np.concatenate(
                [
                    sum(
                        self._model.embed(self._read(batch, view)).numpy()
                        for view in range(self._activations.plain)
                    )
                    / np.float32(self._activations.plain)
                    for batch in _batches(np.arange(rows), _EMBED_BATCH)
                ]
            )

    def _step(self, step: int, rows: NDArray[np.int64], rng: np.random.Generator) -> None:
        factor = _rate_factor(step, self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = factor * group["peak"]
        activations, targets = self._read(rows, self._view(rows)), self._targets[rows]
        share, partner = _blend(len(rows), self._config.mixup, rng)
        activations = torch.lerp(activations[partner], activations, share)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            logits = self._model(activations).float()
        loss = share * self._loss(logits, targets) + (1 - share) * self._loss(
            logits, targets[partner]
        )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        length = nn.utils.clip_grad_norm_(self._trained, _CLIP)
        if not (loss.isfinite() and length.isfinite()):
            raise self._diverged(step)
        self._optimizer.step()
        newest = max(1 / self._steps_per_epoch, 9 / (10 + step))  # larger at first
        with torch.no_grad():
            for average, parameter in zip(self._average, self._trained, strict=True):
                average.lerp_(parameter, newest)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(
            logits, targets, self._class_weights, label_smoothing=self._config.label_smoothing
        )

    def _view(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the view of each row in this epoch; photos take their augmented views in turn."""
        plain, augmented = self._activations.plain, self._activations.augmented
        if not augmented:
            return np.zeros_like(rows)
        return plain + (rows + self.epoch) % augmented

    def _read(self, rows: NDArray[np.int64], view: NDArray[np.int64] | int) -> Tensor:
        views = np.broadcast_to(np.int64(view), rows.shape)
        return self._activations.read(rows, views).to(self._device).float()

    def _weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._trained]

    def _put(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._trained, values, strict=True):
                parameter.copy_(value)

    def _diverged(self, step: int) -> Diverged:
        steps, config = self._steps_per_epoch, self._config
        rate = self._optimizer.param_groups[-1]["lr"]
        return Diverged(
            f"the loss or its gradient is not finite in epoch {self.epoch + 1}, step"
            f" {step % steps + 1} of {steps}, at learning rate {rate:.2g}: try a tenth of rate"
            f" {config.rate:g} and of head_rate {config.head_rate:g}, or unfreeze fewer stages than"
            f" {config.unfreeze!r}"
        )


_SMOOTH = 1e-4
"""Raising it flattens the square root near 0 in training: half of the elements of an embedding that
ends in a ReLU are 0, where the slope would be infinite."""

_CLIP = 1.0
"""Raising it clips fewer gradients: the largest norm of a gradient."""

_WARM_UP = 0.1
"""Raising it lengthens the warm-up: the share of the steps in which learning rates rise."""

_EMBED_BATCH = 32
"""Raising it embeds more photos at a time and needs more memory."""


def _batches(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _channels_last(part: Tensor) -> Tensor:
    """Return an image in the memory format that makes convolutions a third faster on CPUs."""
    return part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part


def _unfreeze(
    model: TrainableTop, unfrozen: Sequence[BackboneStage], config: FinetuneConfig
) -> tuple[list[nn.Parameter], list[dict[str, Any]]]:
    """Unfreeze the linear layer and these stages; return their parameters and parameter groups.

    Each stage has its own learning rate (Howard and Ruder, ACL 2018). Norms and biases have no
    weight decay.
    """
    available = dict(model.top.named_parameters())  # without those that no embedding depends on
    trained = [model.weights, model.bias]
    groups: list[dict[str, Any]] = [
        {"params": list(trained), "peak": config.head_rate, "weight_decay": 0.0}
    ]
    for depth, stage in enumerate(unfrozen):
        peak = config.rate * config.decay**depth
        members = [available[name] for name in stage.parameters if name in available]
        for parameter in members:
            parameter.requires_grad_(True)
        trained += members
        for decay, parameters in (
            (config.weight_decay, [p for p in members if p.ndim > 1]),
            (0.0, [p for p in members if p.ndim <= 1]),
        ):
            groups.append({"params": parameters, "peak": peak, "weight_decay": decay})
    return trained, groups


def _rate_factor(step: int, steps: int) -> float:
    """Return the share of the peak learning rates at ``step``: linear rise, then half a cosine."""
    rise = max(1, round(_WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / (steps - rise))


def _blend(size: int, mixup: float, rng: np.random.Generator) -> tuple[float, Tensor]:
    """Return mixup's share of each image of a batch, and the row of its partner, (n,)."""
    if not mixup:
        return 1.0, torch.arange(size)
    return float(rng.beta(mixup, mixup)), torch.from_numpy(rng.permutation(size))


def _class_weights(targets: Tensor, classes: int) -> Tensor:
    """Return weights (C,) with which each class that has images counts the same."""
    counts = torch.bincount(targets, minlength=classes)
    return len(targets) / (counts.count_nonzero() * counts.clamp(min=1))
