"""Fine-tuning of a backbone after its head is fitted, and its judgement.

Imports torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import nn

import topwork
from topwork.bundle.files import sha256
from topwork.errors import InvalidInput
from topwork.runtime.cores import available_cores
from topwork.training.embed import ImageSource
from topwork_trainer.backbones import TorchBackbone, torchvision_import
from topwork_trainer.backbones.stages import parse, stages
from topwork_trainer.finetuning import checkpoints
from topwork_trainer.finetuning.feed import read
from topwork_trainer.finetuning.settings import (
    Diverged,
    Epoch,
    FinetuneConfig,
    LinearHead,
    OnProgress,
)
from topwork_trainer.finetuning.tuning import TrainableClassifier, TrainingImages, Tuning


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetuned:
    """What a fine-tuning gave: the best epoch's backbone and head."""

    backbone: TorchBackbone
    """With the module that was given, now trained, and an identity of its own."""
    head: LinearHead
    history: tuple[Epoch, ...]
    best: Epoch
    thawed: tuple[str, ...]
    """The names of the trained stages, from the output side."""


def finetune(
    backbone: TorchBackbone,
    train: Sequence[ImageSource],
    validation: Sequence[ImageSource],
    head: LinearHead,
    labels: Sequence[str],
    config: FinetuneConfig,
    *,
    checkpoint: Path,
    on_progress: OnProgress,
) -> Finetuned:
    """Train the upper stages of ``backbone`` together with ``head``, which was fitted before.

    The result is the epoch that is best on ``validation``, on which nothing is trained; at worst
    the start. The module is trained in place; whatever happens, it is then frozen, in eval mode and
    on the CPU again, with the weights of the best epoch so far.

    After each epoch the state goes to ``checkpoint``. A rerun with the same arguments after a crash
    goes on from there and gives what it would have given uninterrupted, on a CPU with as many cores
    bit for bit. ``checkpoints.discard`` deletes the file once the result is safe.

    Raises InvalidInput for settings that make no sense and for an image that cannot be read, and
    Diverged (no checkpoint remains) when the loss is no number any more.
    """
    available = stages(backbone.module)
    thawed = available[: parse(config.unfreeze, available)]
    training, judging = TrainingImages.of(train, labels), TrainingImages.of(validation, labels)
    run_digest = _run_digest(backbone, training, judging, head, labels, config)
    with (
        _lent(backbone.module, config.device) as device,
        ThreadPoolExecutor(available_cores()) as pool,
    ):
        model = TrainableClassifier(backbone, head).to(device)
        run = Tuning(model, thawed, training, judging, config, pool)
        try:
            run.begin(checkpoints.load(checkpoint, run_digest))
            while run.goes_on():
                run.advance(on_progress)
                checkpoints.save(checkpoint, run_digest, run.state())
        except Diverged:
            checkpoints.discard(checkpoint)
            raise
        finally:
            run.take_best()
    on_progress(run.steps, run.steps)
    weights_sha256 = _weights_digest(backbone.module)
    return Finetuned(
        backbone=replace(
            backbone,
            identity=f"{backbone.identity}:tuned:{weights_sha256}",
            weights_sha256=weights_sha256,
        ),
        head=model.head(),
        history=tuple(run.history),
        best=run.best,
        thawed=tuple(stage.name for stage in thawed),
    )


@contextmanager
def _lent(module: nn.Module, device: str) -> Iterator[torch.device]:
    """Yield the device, with the module on it and frozen; undo all but the weights afterwards.

    In eval mode throughout: so few images would spoil the statistics of a normalisation.
    """
    place = _device(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(available_cores())  # torch counts the host's
    try:
        _move(module, place, torch.channels_last)  # took two thirds of the time on CPUs
        yield place
    finally:
        _move(module, torch.device("cpu"), torch.contiguous_format)
        torch.set_num_threads(threads)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises either for a missing device
        raise InvalidInput(f"device {name!r} cannot be used: {error}", field="device") from error


def _move(module: nn.Module, place: torch.device, memory_format: torch.memory_format) -> None:
    """Put a module onto a device, frozen, in eval mode and without gradients."""
    module.eval().requires_grad_(False).zero_grad()
    module.to(place, memory_format=memory_format)  # type: ignore[call-overload] # not in its stubs


def _run_digest(
    backbone: TorchBackbone,
    training: TrainingImages,
    judging: TrainingImages,
    head: LinearHead,
    labels: Sequence[str],
    config: FinetuneConfig,
) -> str:
    """Return a digest of all that the result depends on, but for the machine."""
    software = (topwork, torch, torchvision_import.package(), np, PIL)
    facts = [
        backbone.identity,
        [asdict(backbone.spec), backbone.mean, backbone.std],
        list(labels),
        asdict(config),
        {package.__name__: package.__version__ for package in software},
        _weights_digest(backbone.module),
        [sha256(part.tobytes()) for part in (head.weights, head.bias)],
        [
            [(source.name, source.label, sha256(read(source))) for source in images.sources]
            for images in (training, judging)
        ],
    ]
    return sha256(json.dumps(facts).encode())


def _weights_digest(module: nn.Module) -> str:
    """Return the sha256 of all weights and statistics of a module on the CPU."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
