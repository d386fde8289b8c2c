"""Fine-tuning of a backbone together with its fitted head. Imports torch."""

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
from topwork_trainer.finetuning.tuning import LabelledImages, TrainableClassifier, Tuning


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneResult:
    """Backbone and head of the best epoch, and the history of epochs."""

    backbone: TorchBackbone
    """The given module, now fine-tuned, with an identity of its own."""
    head: LinearHead
    history: tuple[Epoch, ...]
    best: Epoch
    unfrozen: tuple[str, ...]
    """Names of the fine-tuned stages, from the output side."""


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
) -> FinetuneResult:
    """Train the last stages of ``backbone`` together with ``head``, which is already fitted.

    The result is the epoch that is best on ``validation``, which is not trained on; in the worst
    case the start. The module is trained in place. Afterwards, also after an error, it is frozen,
    in eval mode and on the CPU, with the weights of the best epoch so far.

    Each epoch saves its state to ``checkpoint``. After a crash a run with the same arguments
    resumes there and gives the same result as an uninterrupted run, bit for bit on a CPU with the
    same number of cores. ``checkpoints.discard`` deletes the file once the result is published.

    Raises InvalidInput for invalid settings or an unreadable image, and Diverged (after deleting
    the checkpoint) if the loss is not finite.
    """
    available = stages(backbone.module)
    unfrozen = available[: parse(config.unfreeze, available)]
    training, judging = LabelledImages.of(train, labels), LabelledImages.of(validation, labels)
    run_digest = _run_digest(backbone, training, judging, head, labels, config)
    with (
        _frozen_on_device(backbone.module, config.device) as device,
        ThreadPoolExecutor(available_cores()) as pool,
    ):
        model = TrainableClassifier(backbone, head).to(device)
        run = Tuning(model, unfrozen, training, judging, config, pool)
        try:
            run.begin(checkpoints.load(checkpoint, run_digest))
            while run.has_next_epoch():
                run.advance(on_progress)
                checkpoints.save(checkpoint, run_digest, run.state())
        except Diverged:
            checkpoints.discard(checkpoint)
            raise
        finally:
            run.take_best()
    on_progress(run.steps, run.steps)
    weights_sha256 = _weights_digest(backbone.module)
    return FinetuneResult(
        backbone=replace(
            backbone,
            identity=f"{backbone.identity}:tuned:{weights_sha256}",
            weights_sha256=weights_sha256,
        ),
        head=model.head(),
        history=tuple(run.history),
        best=run.best,
        unfrozen=tuple(stage.name for stage in unfrozen),
    )


@contextmanager
def _frozen_on_device(module: nn.Module, device: str) -> Iterator[torch.device]:
    """Yield the device with the module on it, frozen; restore all but the weights afterwards.

    The module is always in eval mode: so few images would spoil the statistics of batch norms.
    """
    place = _device(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(available_cores())  # torch's default is the host's number
    try:
        _move(module, place, torch.channels_last)  # a third faster on CPUs
        yield place
    finally:
        _move(module, torch.device("cpu"), torch.contiguous_format)
        torch.set_num_threads(threads)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises both for a missing device
        raise InvalidInput(f"device {name!r} cannot be used: {error}", field="device") from error


def _move(module: nn.Module, place: torch.device, memory_format: torch.memory_format) -> None:
    """Move a module to a device, frozen, in eval mode and without gradients."""
    module.eval().requires_grad_(False).zero_grad()
    module.to(place, memory_format=memory_format)  # type: ignore[call-overload] # not in its stubs


def _run_digest(
    backbone: TorchBackbone,
    training: LabelledImages,
    judging: LabelledImages,
    head: LinearHead,
    labels: Sequence[str],
    config: FinetuneConfig,
) -> str:
    """Return a digest of everything that the result depends on, except the machine."""
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
    """Return the sha256 of all parameters and buffers of a module on the CPU."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
