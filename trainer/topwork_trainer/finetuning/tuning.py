"""Training loop of fine-tuning, epoch by epoch, with the weights of the best one. Imports torch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 # the name that torch's own documentation uses
from torch import Tensor, nn

from topwork.errors import InvalidInput
from topwork.training.embed import ImageSource
from topwork_trainer.backbones import TorchBackbone
from topwork_trainer.backbones.export import EmbeddingModel
from topwork_trainer.backbones.stages import BackboneStage
from topwork_trainer.finetuning.augment import EvalPreset, TrainPreset
from topwork_trainer.finetuning.feed import batches
from topwork_trainer.finetuning.settings import (
    Diverged,
    Epoch,
    FinetuneConfig,
    LinearHead,
    OnProgress,
)


class TrainableClassifier(nn.Module):
    """Maps images uint8 (N, crop, crop, 3), RGB, to logits (N, C)."""

    def __init__(self, backbone: TorchBackbone, head: LinearHead) -> None:
        super().__init__()
        self.spec = backbone.spec
        self.embedding = EmbeddingModel(backbone)
        self.weights = nn.Parameter(torch.tensor(head.weights, dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(head.bias, dtype=torch.float32))

    def forward(self, images: Tensor, *, smooth: float = 1e-12) -> Tensor:
        """Return logits; ``smooth`` is added under the square root."""
        embedding = self.embedding(images).float()
        features = F.normalize(embedding * torch.rsqrt(embedding.abs() + smooth), dim=1)
        return F.linear(features, self.weights, self.bias)

    def head(self) -> LinearHead:
        """Return the linear layer."""
        return LinearHead(
            weights=self.weights.detach().cpu().numpy(), bias=self.bias.detach().cpu().numpy()
        )


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images with the class index of each."""

    sources: Sequence[ImageSource]
    targets: Tensor
    """Class indices (N,)."""

    @classmethod
    def of(cls, sources: Sequence[ImageSource], labels: Sequence[str]) -> Self:
        """Return the images. Raises InvalidInput if there are none or a label is unknown."""
        position = {label: index for index, label in enumerate(labels)}
        unknown = sorted({source.label for source in sources} - set(position))
        if unknown or not sources:
            raise InvalidInput(
                f"images are labelled {unknown}, but the labels of the head are {list(labels)}"
                if unknown
                else "there must be at least one image to train on and one for validation",
                field="data",
            )
        return cls(sources, torch.tensor([position[source.label] for source in sources]))


class Tuning:
    """State of a fine-tuning run; owns the optimizer, the averaged weights and the history."""

    def __init__(
        self,
        model: TrainableClassifier,
        unfrozen: Sequence[BackboneStage],
        training: LabelledImages,
        judging: LabelledImages,
        config: FinetuneConfig,
        pool: Executor,
    ) -> None:
        self._model, self._config, self._pool = model, config, pool
        self._training, self._judging = training, judging
        self._trained, groups = _unfreeze(model, unfrozen, config)
        self._optimizer = torch.optim.AdamW(groups)
        self._device = device = model.bias.device
        self._class_weights = _class_weights(training.targets, len(model.bias)).to(device)
        # bfloat16 is a quarter slower on CPUs.
        self._half = device.type == "cuda" and torch.cuda.is_bf16_supported(False)
        self._steps_per_epoch = math.ceil(len(training.sources) / config.batch)
        self.steps = config.epochs * self._steps_per_epoch if unfrozen else 0
        self.history: list[Epoch] = []
        self._average = self._weights()
        self._best: list[Tensor] = []

    @property
    def best(self) -> Epoch:
        """Epoch with the smallest loss among those at least as accurate as the start.

        Neither its loss nor its accuracy is worse than at the start. The loss decides because it is
        less noisy than the accuracy on few validation images.
        """
        equal = [epoch for epoch in self.history if epoch.accuracy >= self.history[0].accuracy]
        return min(equal, key=lambda epoch: epoch.loss)

    def begin(self, state: dict[str, Any] | None) -> None:
        """Resume from ``state``; if it is None, judge the start as epoch 0."""
        if state is None:
            self._judge(train_loss=None, since=time.perf_counter())
            return
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self._best = state["best"]
        self._average = [value.to(self._device) for value in state["average"]]
        self._put(state["trained"])
        self._optimizer.load_state_dict(state["optimizer"])

    def state(self) -> dict[str, Any]:
        """Return the state for ``begin``. Random generators are seeded anew in each epoch."""
        return {
            "history": [asdict(epoch) for epoch in self.history],
            "best": self._best,
            "average": self._average,
            "trained": self._weights(),
            "optimizer": self._optimizer.state_dict(),
        }

    def has_next_epoch(self) -> bool:
        """Return True if epochs are left and patience is not exhausted."""
        done = self.history[-1].epoch
        left = self.steps - done * self._steps_per_epoch
        return left > 0 and done - self.best.epoch < self._config.patience

    def advance(self, on_progress: OnProgress) -> None:
        """Train for one epoch and judge it. Raises Diverged."""
        since = time.perf_counter()
        epoch = self.history[-1].epoch + 1
        step = (epoch - 1) * self._steps_per_epoch
        seed = self._config.seed % 2**64
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(self._training.sources))
        preset = TrainPreset(spec=self._model.spec, mirror=self._config.mirror)

        def view(content: bytes, row: int) -> Tensor:
            return preset(content, np.random.default_rng([seed, epoch, row]))

        total = 0.0
        for rows, images in batches(
            self._pool, self._training.sources, order.tolist(), view, size=self._config.batch
        ):
            total += len(rows) * self._step(step, images, self._training.targets[rows], rng)
            step += 1
            on_progress(step, self.steps)
        self._judge(train_loss=total / len(order), since=since)

    def take_best(self) -> None:
        """Load the weights of the best epoch into the model."""
        if self._best:
            self._put(self._best)

    def _step(self, step: int, images: Tensor, targets: Tensor, rng: np.random.Generator) -> float:
        """Train on one batch and return its loss."""
        factor = _rate_factor(step, self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = factor * group["peak"]
        images, targets = images.to(self._device), targets.to(self._device)
        share, partner = _blend(len(images), self._config.mixup, rng)
        images = torch.lerp(images[partner].float(), images.float(), share)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            logits = self._model(images, smooth=_SMOOTH).float()
        loss = share * F.cross_entropy(logits, targets, self._class_weights) + (
            1 - share
        ) * F.cross_entropy(logits, targets[partner], self._class_weights)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        length = nn.utils.clip_grad_norm_(self._trained, _CLIP)
        if not (loss.isfinite() and length.isfinite()):
            raise self._diverged("the loss or its gradient", step)
        self._optimizer.step()
        newest = max(1 / self._steps_per_epoch, 9 / (10 + step))  # larger at first
        with torch.no_grad():
            for average, parameter in zip(self._average, self._trained, strict=True):
                average.lerp_(parameter, newest)
        return float(loss.detach())

    def _judge(self, *, train_loss: float | None, since: float) -> None:
        """Add an epoch to the history, with metrics on the validation images."""
        images, preset = self._judging, EvalPreset(spec=self._model.spec)
        right, loss, live = 0, 0.0, self._weights()
        self._put(self._average)
        with torch.inference_mode():
            for rows, views in batches(
                self._pool,
                images.sources,
                range(len(images.sources)),
                lambda content, _: preset(content),
                size=self._config.batch,
            ):
                logits = self._model(views.to(self._device)).cpu()
                targets = images.targets[rows]
                right += int((logits.argmax(dim=1) == targets).sum())
                loss += float(F.cross_entropy(logits, targets, reduction="sum"))
        self._put(live)
        if not math.isfinite(loss):
            raise self._diverged("the loss on the validation images")
        epoch = Epoch(
            epoch=len(self.history),
            train_loss=train_loss,
            accuracy=right / len(images.sources),
            loss=loss / len(images.sources),
            seconds=time.perf_counter() - since,
        )
        self.history.append(epoch)
        if self.best is epoch:
            self._best = [average.clone() for average in self._average]

    def _weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._trained]

    def _put(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._trained, values, strict=True):
                parameter.copy_(value)

    def _diverged(self, quantity: str, step: int | None = None) -> Diverged:
        steps = self._steps_per_epoch
        at = "" if step is None else f", step {step % steps + 1} of {steps}"
        rate = self._optimizer.param_groups[-1]["lr"]
        return Diverged(
            f"{quantity} is not finite in epoch {len(self.history)}{at}, at learning rate"
            f" {rate:.2g}: try a tenth of rate {self._config.rate:g} and of head_rate"
            f" {self._config.head_rate:g}, or unfreeze fewer stages than {self._config.unfreeze!r}"
        )


_SMOOTH = 1e-4
"""Raising it flattens the square root near 0 in training: half of the elements of an embedding that
ends in a ReLU are 0, where the slope would be infinite."""

_CLIP = 1.0
"""Raising it clips fewer gradients: the largest norm of a gradient."""

_WARM_UP = 0.1
"""Raising it lengthens the warm-up: the share of the steps in which learning rates rise."""


def _unfreeze(
    model: TrainableClassifier, unfrozen: Sequence[BackboneStage], config: FinetuneConfig
) -> tuple[list[nn.Parameter], list[dict[str, Any]]]:
    """Unfreeze the linear layer and these stages; return their parameters and parameter groups.

    Each stage has its own learning rate (Howard and Ruder, ACL 2018). Norms and biases have no
    weight decay.
    """
    trained = [model.weights, model.bias]
    groups: list[dict[str, Any]] = [
        {"params": list(trained), "peak": config.head_rate, "weight_decay": 0.0}
    ]
    for depth, stage in enumerate(unfrozen):
        peak = config.rate * config.decay**depth
        members = [model.embedding.backbone.get_parameter(name) for name in stage.parameters]
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
