"""Fine-tuning of the top of a backbone without one fold after the other. Imports torch."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

import topwork
from topwork.bundle.exemplars import Exemplars
from topwork.errors import InvalidInput, TopworkError
from topwork.inputs.image_source import ImageSource
from topwork.runtime.cores import available_cores
from topwork.storage.files import sha256
from topwork_trainer.backbones import TorchBackbone, torchvision_import
from topwork_trainer.backbones.stages import BackboneStage, parse, stages
from topwork_trainer.finetuning import checkpoints
from topwork_trainer.finetuning.activations import Activations, cached
from topwork_trainer.finetuning.settings import Diverged, FinetuneConfig, LinearHead
from topwork_trainer.finetuning.split import SplitBackbone, split
from topwork_trainer.finetuning.tuning import Tuning


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """Result of fine-tuning without one fold."""

    fold: int
    embeddings: NDArray[np.float32]
    """(N, D), of all photos."""
    weights: dict[str, Tensor]
    """Fine-tuned parameters of the backbone by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldTuner:
    """Fine-tunes a backbone on all photos but those of a fold, once for each fold."""

    backbone: TorchBackbone
    exemplars: Exemplars
    """Photos, with their embeddings by the frozen backbone."""
    folds: NDArray[np.int64]
    """(N,)"""
    heads: Sequence[LinearHead]
    """Initial head for each fold, fitted without it."""
    config: FinetuneConfig
    seed: int
    parts: SplitBackbone
    unfrozen: Sequence[BackboneStage]
    activations: Activations
    software: dict[str, str]
    """Versions of the packages that the results depend on."""
    checkpoints: Path

    @property
    def photos(self) -> int:
        """Number of photos to train on, in all epochs of all folds."""
        trained = [int(np.sum(self.folds != fold)) for fold in range(len(self.heads))]
        return self.config.epochs * sum(trained)

    def results(self, on_photos: Callable[[int], None]) -> Generator[Tuned, None, None]:
        """Yield the result of each fold, in order; folds train side by side, on a core each.

        The results do not depend on the number of cores. Each epoch saves its state: after a crash
        a run with the same arguments continues there and gives the same results, bit for bit.
        ``on_photos`` is called with the number of photos done, of ``photos``, in any thread.
        Closing the iterator ends the training. Raises Diverged.
        """
        device = _device(self.config.device)
        closed, lock, done = threading.Event(), threading.Lock(), 0

        def count(photos: int) -> None:
            nonlocal done
            if closed.is_set():
                raise _ClosedError("nobody waits for the result")
            with lock:
                done += photos
                on_photos(done)

        pool = ThreadPoolExecutor(
            available_cores() if device.type == "cpu" else 1,
            initializer=torch.set_num_threads,
            initargs=(1,),
        )
        waiting: list[Future[Tuned]] = [
            pool.submit(self._tune, fold, device, count) for fold in range(len(self.heads))
        ]
        try:
            for future in waiting:
                yield future.result()
        finally:
            closed.set()
            pool.shutdown(cancel_futures=True)

    def tuned_backbone(self, tuned: Tuned) -> TorchBackbone:
        """Return the backbone with fine-tuned weights, under an identity of its own."""
        with torch.no_grad():
            for name, value in tuned.weights.items():
                self.backbone.module.get_parameter(name).copy_(value)
        digest = _weights_digest(self.backbone)
        return replace(
            self.backbone,
            identity=f"{self.backbone.identity}:tuned:{digest}",
            weights_sha256=digest,
        )

    def _tune(self, fold: int, device: torch.device, count: Callable[[int], None]) -> Tuned:
        rows = np.flatnonzero(self.folds != fold)
        run = Tuning(
            self.parts,
            self.unfrozen,
            self.activations,
            self.exemplars.targets,
            rows,
            self.heads[fold],
            self.config,
            seed=self.seed,
            device=device,
        )
        file, digest = self.checkpoints / f"fold-{fold}.pt", self._digest(fold)
        try:
            if (state := checkpoints.load(file, digest)) is not None:
                run.resume(state)
                count(run.epoch * len(rows))
            while run.epoch < self.config.epochs:
                run.advance(count)
                checkpoints.save(file, digest, run.state())
        except Diverged:
            checkpoints.discard(file)
            raise
        run.take_result()
        return Tuned(fold=fold, embeddings=run.embed(len(self.folds)), weights=run.tuned())

    def _digest(self, fold: int) -> str:
        """Return a digest of everything that the result depends on, except the machine."""
        backbone, exemplars, head = self.backbone, self.exemplars, self.heads[fold]
        arrays = (exemplars.contents, exemplars.targets, self.folds, head.weights, head.bias)
        facts = [
            backbone.identity,
            [asdict(backbone.spec), backbone.mean, backbone.std],
            _weights_digest(backbone),
            [asdict(self.config), self.activations.augmented, self.seed, fold],
            self.software,
            [sha256(np.ascontiguousarray(array).tobytes()) for array in arrays],
        ]
        return sha256(json.dumps(facts).encode())


@contextmanager
def fold_tuner(
    backbone: TorchBackbone,
    exemplars: Exemplars,
    sources: Sequence[ImageSource],
    folds: NDArray[np.int64],
    heads: Sequence[LinearHead],
    config: FinetuneConfig,
    *,
    seed: int,
    checkpoints: Path,
    on_image: Callable[[], None],
) -> Iterator[FoldTuner]:
    """Yield a tuner of ``backbone``, after the frozen stages have run once per view.

    ``sources`` (N) are the photos of the exemplars, ``folds`` (N,) their folds, and ``heads`` has
    an initial head for each fold. Raises InvalidInput for invalid settings or an unreadable photo,
    ExportError, and NotReady if the disk is full.
    """
    packages = (topwork, torch, torchvision_import.package(), np, PIL)
    available = stages(backbone.module)
    unfrozen = available[: parse(config.unfreeze, available)]
    parts = split(backbone, {name for stage in unfrozen for name in stage.parameters})
    seed %= 2**64  # NumPy refuses negative seeds
    with cached(backbone, parts, sources, config, seed=seed, on_image=on_image) as activations:
        yield FoldTuner(
            backbone=backbone,
            exemplars=exemplars,
            folds=folds,
            heads=heads,
            config=config,
            seed=seed,
            parts=parts,
            unfrozen=unfrozen,
            activations=activations,
            software={package.__name__: package.__version__ for package in packages},
            checkpoints=checkpoints,
        )


class _ClosedError(TopworkError):
    """Ends the training of a fold after the results were closed."""


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises both for a missing device
        raise InvalidInput(f"device {name!r} cannot be used: {error}", field="device") from error


def _weights_digest(backbone: TorchBackbone) -> str:
    """Return the sha256 of all parameters and buffers of a backbone."""
    digest = hashlib.sha256()
    for name, value in backbone.module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
