"""Fine-tuning: never worse than the start, deterministic, and resumable after a crash."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from support.pictures import picture
from torch import Tensor, nn

from topwork.errors import InvalidInput
from topwork.inputs.image import preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork.training.embed import ImageSource
from topwork_trainer.backbones import TorchBackbone
from topwork_trainer.backbones.export import EmbeddingModel, export
from topwork_trainer.backbones.pooled import Pooled
from topwork_trainer.finetuning import checkpoints
from topwork_trainer.finetuning import finetune as finetuning
from topwork_trainer.finetuning.finetune import FinetuneResult, finetune
from topwork_trainer.finetuning.settings import Diverged, FinetuneConfig, LinearHead

LABELS = ("amber", "blue", "crimson", "green", "violet")
CONFIG = FinetuneConfig(unfreeze="all", epochs=3, batch=8, rate=1e-2, head_rate=1e-2)
STEPS = 5
"""Steps per epoch, with 40 images."""


class Small(nn.Module):
    """Network of two stages with batch norms, and dropout that training must not enable."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(8, 16, 3, stride=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, 16)."""
        features: Tensor = self.features(images)
        return features.mean(dim=(2, 3))


def backbone() -> TorchBackbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Small().eval()
    return TorchBackbone(
        name="small",
        identity="small:1",
        module=module,
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        spec=PreprocessSpec(resize=16, crop=16),
        width=16,
        licence="none",
        source="test",
        weights_sha256="",
    )


def sources(start: int, count: int) -> list[ImageSource]:
    contents = {
        f"{label}/{index}": (label, picture(label, index))
        for index in range(start, start + count)
        for label in LABELS
    }
    return [
        ImageSource(name=name, label=label, read=io.BytesIO(content).getvalue)
        for name, (label, content) in contents.items()
    ]


TRAIN, VALIDATION = sources(0, 8), sources(100, 4)


def head(*, scale: float = 3.0) -> LinearHead:
    rng = np.random.default_rng(0)
    return LinearHead(
        weights=scale * rng.standard_normal((5, 16)).astype(np.float32),
        bias=np.zeros(5, dtype=np.float32),
    )


def run(
    checkpoint: Path,
    config: FinetuneConfig = CONFIG,
    *,
    start: TorchBackbone | None = None,
    train: list[ImageSource] = TRAIN,
    start_head: LinearHead | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> FinetuneResult:
    return finetune(
        start or backbone(),
        train,
        VALIDATION,
        start_head or head(),
        LABELS,
        config,
        checkpoint=checkpoint,
        on_progress=on_progress,
    )


def numbers(result: FinetuneResult) -> dict[str, bytes]:
    """Return all numbers of a result except the seconds, for exact comparison."""
    history = [(e.epoch, e.train_loss, e.accuracy, e.loss) for e in result.history]
    weights = {
        name: value.numpy().tobytes() for name, value in result.backbone.module.state_dict().items()
    }
    return {
        **weights,
        "head": result.head.weights.tobytes() + result.head.bias.tobytes(),
        "history": repr((history, result.best.epoch)).encode(),
    }


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: two that wait for each other on busy cores take ten times as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "available_cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """Return the result of an uninterrupted run."""
    return run(tmp_path_factory.mktemp("whole") / "checkpoint")


def test_finetune_improves_a_pooled_backbone(tmp_path: Path) -> None:
    """The gradient passes through the means of the lower stage and their lengths."""
    plain = backbone()
    pooled = dataclasses.replace(
        plain, module=Pooled(plain.module, ["features.4"], crop=16).eval(), width=8 + 16
    )
    weights = np.random.default_rng(0).standard_normal((5, 24)).astype(np.float32)
    start = LinearHead(weights=3 * weights, bias=np.zeros(5, dtype=np.float32))
    before = pooled.module.state_dict()["module.features.0.weight"].clone()
    result = run(tmp_path / "checkpoint", start=pooled, start_head=start)
    assert result.unfrozen == ("features.4", "features.0")
    assert result.best.loss < 0.5 * result.history[0].loss
    assert not torch.equal(before, result.backbone.module.state_dict()["module.features.0.weight"])


def test_finetune_improves_accuracy(whole: FinetuneResult) -> None:
    """From a random head the accuracy rises well above chance."""
    assert whole.history[0].accuracy < 0.5
    assert whole.best.accuracy > 0.7
    assert [epoch.epoch for epoch in whole.history] == [0, 1, 2, 3]
    assert whole.best == min(whole.history, key=lambda epoch: epoch.loss)


def test_epoch_0_is_the_frozen_start(whole: FinetuneResult) -> None:
    """Epoch 0 of the history has the accuracy of the given head on the frozen backbone."""
    pixels = np.stack(
        [preprocess(s.read(), PreprocessSpec(resize=16, crop=16)) for s in VALIDATION]
    )
    with torch.inference_mode():
        embeddings = EmbeddingModel(backbone())(torch.from_numpy(pixels)).numpy()
    features = np.sqrt(embeddings)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    answers = (features @ head().weights.T).argmax(axis=1)
    right = np.mean(
        [LABELS[answer] == s.label for answer, s in zip(answers, VALIDATION, strict=True)]
    )
    assert whole.history[0].accuracy == pytest.approx(right)
    assert whole.history[0].train_loss is None


def test_result_is_the_best_epoch(whole: FinetuneResult, tmp_path: Path) -> None:
    """The returned weights give the validation accuracy and loss of ``best``."""
    frozen = dataclasses.replace(CONFIG, unfreeze="none")
    again = run(tmp_path / "checkpoint", frozen, start=whole.backbone, start_head=whole.head)
    assert (again.best.accuracy, again.best.loss) == (whole.best.accuracy, whole.best.loss)
    assert len(again.history) == 1


def test_module_is_frozen_and_contiguous_afterwards(whole: FinetuneResult) -> None:
    """The module is in eval mode, frozen, without gradients, and in contiguous memory format."""
    module = whole.backbone.module
    assert not any(part.training for part in module.modules())
    assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
    assert all(p.is_contiguous() for p in module.parameters())


def test_tuned_backbone_has_its_own_identity(whole: FinetuneResult) -> None:
    """The identity differs from that of the start and contains the digest of the weights."""
    assert whole.backbone.identity != backbone().identity
    assert whole.backbone.weights_sha256 in whole.backbone.identity
    assert whole.unfrozen == ("features.4", "features.0")


def test_tuned_backbone_can_be_exported(whole: FinetuneResult) -> None:
    """ONNX Runtime gives the embeddings of the tuned module."""

    def open_session(model: bytes) -> Callable[..., np.ndarray]:
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        return lambda images: np.asarray(session.run(["embedding"], {"image": images})[0])

    assert export(whole.backbone, open_session=open_session).parity.min_cosine > 0.99999


def test_frozen_stages_do_not_change(tmp_path: Path) -> None:
    """With ``last:1`` only the last stage's weights change; statistics of norms never do."""
    before = {name: value.clone() for name, value in backbone().module.state_dict().items()}
    config = dataclasses.replace(CONFIG, unfreeze="last:1", epochs=1)
    tuned = run(tmp_path / "checkpoint", config, train=sources(0, 16))
    assert tuned.best.epoch == 1
    after = tuned.backbone.module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        "features.4.weight",
        "features.4.bias",
        "features.5.weight",
        "features.5.bias",
    }


def test_equal_arguments_give_equal_results(whole: FinetuneResult, tmp_path: Path) -> None:
    """The same arguments give the same result bit for bit; another seed gives another."""
    assert numbers(run(tmp_path / "a")) == numbers(whole)
    assert numbers(run(tmp_path / "b", dataclasses.replace(CONFIG, seed=1))) != numbers(whole)


def test_global_state_of_torch_is_restored(tmp_path: Path) -> None:
    """Torch's random generator and number of threads are unchanged afterwards."""
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        run(tmp_path / "checkpoint", dataclasses.replace(CONFIG, epochs=1))
        assert torch.get_num_threads() == 1
        assert torch.equal(torch.get_rng_state(), generator)
    finally:
        torch.set_num_threads(threads)


def test_training_without_improvement_returns_the_start(tmp_path: Path) -> None:
    """If no epoch is better than the start, the result has the weights of the start."""
    good = run(tmp_path / "good", train=sources(0, 16))
    before = {k: v.clone() for k, v in good.backbone.module.state_dict().items()}
    wild = dataclasses.replace(CONFIG, rate=30.0, head_rate=30.0)
    result = run(tmp_path / "wild", wild, start=good.backbone, start_head=good.head)
    assert result.best.epoch == 0
    assert all(torch.equal(v, before[k]) for k, v in result.backbone.module.state_dict().items())
    assert np.array_equal(result.head.weights, good.head.weights)
    assert result.history[-1].accuracy < result.best.accuracy


def test_training_stops_early_after_patience(tmp_path: Path) -> None:
    """Training stops after ``patience`` epochs without improvement; progress is complete."""
    seen: list[tuple[int, int]] = []
    wild = dataclasses.replace(CONFIG, rate=30.0, head_rate=30.0, epochs=20, patience=2)
    good = run(tmp_path / "good", train=sources(0, 16))
    result = run(
        tmp_path / "wild",
        wild,
        start=good.backbone,
        start_head=good.head,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert len(result.history) - 1 == result.best.epoch + 2
    assert seen[-1] == (100, 100)


def test_progress_counts_every_step(tmp_path: Path) -> None:
    """Progress counts each step up to the total."""
    seen: list[tuple[int, int]] = []
    run(tmp_path / "checkpoint", on_progress=lambda done, total: seen.append((done, total)))
    assert seen[:-1] == [(step, 3 * STEPS) for step in range(1, 3 * STEPS + 1)]
    assert seen[-1] == (3 * STEPS, 3 * STEPS)


def child(checkpoint: Path, *, step: int, write: int) -> int:
    """Run in a process that kills itself at a step or in its nth write; return its exit status."""
    command = [sys.executable, __file__, str(checkpoint), str(step), str(write)]
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode


@pytest.mark.parametrize(
    ("step", "write"), [(STEPS + 2, 0), (0, 3)], ids=["in an epoch", "in a write"]
)
def test_killed_run_resumes_to_the_same_result(
    whole: FinetuneResult, tmp_path: Path, step: int, write: int
) -> None:
    """After kill -9 in an epoch or in a write, another run gives the same result bit for bit."""
    checkpoint = tmp_path / "checkpoint"
    assert child(checkpoint, step=step, write=write) == -signal.SIGKILL
    seen: list[int] = []
    resumed = run(checkpoint, on_progress=lambda done, _: seen.append(done))
    assert seen[0] == STEPS + 1
    assert numbers(resumed) == numbers(whole)


def test_finished_run_is_not_repeated(whole: FinetuneResult, tmp_path: Path) -> None:
    """As long as the checkpoint exists, another run trains no step."""
    run(tmp_path / "checkpoint")
    seen: list[int] = []
    again = run(tmp_path / "checkpoint", on_progress=lambda done, _: seen.append(done))
    assert seen == [3 * STEPS]
    assert numbers(again) == numbers(whole)


def test_checkpoint_of_other_arguments_is_not_used(tmp_path: Path) -> None:
    """With another seed, image, label, head or backbone training starts from the beginning."""
    run(tmp_path / "checkpoint", dataclasses.replace(CONFIG, epochs=1))
    checkpoint = (tmp_path / "checkpoint").read_bytes()
    relabelled = [dataclasses.replace(TRAIN[0], label=LABELS[1]), *TRAIN[1:]]
    changed = [dataclasses.replace(TRAIN[0], read=TRAIN[5].read), *TRAIN[1:]]
    other = backbone()
    other.module.get_parameter("features.0.bias").data += 1e-3
    run_epoch = functools.partial(
        run, tmp_path / "checkpoint", dataclasses.replace(CONFIG, epochs=1)
    )
    for call in (
        functools.partial(run, tmp_path / "checkpoint", dataclasses.replace(CONFIG, seed=1)),
        functools.partial(run_epoch, train=relabelled),
        functools.partial(run_epoch, train=changed),
        functools.partial(run_epoch, start_head=head(scale=2.0)),
        functools.partial(run_epoch, start=other),
    ):
        (tmp_path / "checkpoint").write_bytes(checkpoint)
        seen: list[int] = []
        call(on_progress=lambda done, _, seen=seen: seen.append(done))
        assert seen[0] == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_checkpoint_is_not_used(whole: FinetuneResult, tmp_path: Path, damage: str) -> None:
    """A checkpoint that fails its checksum counts as missing."""
    file = tmp_path / "checkpoint"
    run(file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes({"cut": content[:-50], "flipped": content, "empty": b""}[damage]))
    seen: list[int] = []
    assert numbers(run(file, on_progress=lambda done, _: seen.append(done))) == numbers(whole)
    assert seen[0] == 1


def test_divergence_raises_and_deletes_the_checkpoint(tmp_path: Path) -> None:
    """The error has epoch, step and learning rate; no checkpoint remains."""
    start, config = backbone(), dataclasses.replace(CONFIG, rate=1e9, head_rate=1e9)
    before = {name: value.clone() for name, value in start.module.state_dict().items()}
    with pytest.raises(Diverged, match=r"epoch 1, step \d of 5, at learning rate .*e\+") as caught:
        run(tmp_path / "checkpoint", config, start=start)
    assert "try" in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(v, before[k]) for k, v in start.module.state_dict().items())
    assert not any(p.requires_grad for p in start.module.parameters())


def test_later_divergence_deletes_the_earlier_checkpoint(tmp_path: Path) -> None:
    """A checkpoint that leads to divergence is deleted."""
    start = backbone()

    def poison(done: int, _: int) -> None:
        if done == STEPS + 1:
            assert (tmp_path / "checkpoint").exists()
            start.module.get_parameter("features.4.weight").data[:] = float("nan")

    with pytest.raises(Diverged, match="epoch 2, step 2 of 5"):
        run(tmp_path / "checkpoint", start=start, on_progress=poison)
    assert not list(tmp_path.iterdir())


def test_head_of_nan_is_refused_before_training(tmp_path: Path) -> None:
    """The loss of epoch 0 must be finite, too."""
    broken = LinearHead(weights=np.full((5, 16), np.nan, np.float32), bias=head().bias)
    with pytest.raises(Diverged, match="epoch 0"):
        run(tmp_path / "checkpoint", start_head=broken)


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    """The error of an image that became unreadable has its name and the reason."""

    def gone() -> bytes:
        raise FileNotFoundError("no such file")

    for read, reason in ((gone, "no such file"), (lambda: b"GIF89a", "6 bytes")):
        damaged = ImageSource(name="amber/damaged.png", label="amber", read=read)
        with pytest.raises(InvalidInput, match=rf"amber/damaged.png cannot be read: .*{reason}"):
            run(tmp_path / "checkpoint", train=[*TRAIN, damaged])


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("data", lambda file: run(file, train=[])),
        ("data", lambda file: run(file, train=[dataclasses.replace(TRAIN[0], label="teal")])),
        ("device", lambda file: run(file, dataclasses.replace(CONFIG, device="abacus"))),
        ("unfreeze", lambda file: run(file, dataclasses.replace(CONFIG, unfreeze="last:3"))),
        ("epochs", lambda _: dataclasses.replace(CONFIG, epochs=0)),
        ("rate", lambda _: dataclasses.replace(CONFIG, rate=float("nan"))),
        ("decay", lambda _: dataclasses.replace(CONFIG, decay=1.5)),
        ("mixup", lambda _: dataclasses.replace(CONFIG, mixup=-0.1)),
    ],
)
def test_invalid_arguments_are_refused(
    tmp_path: Path, field: str, call: Callable[[Path], object]
) -> None:
    """The error for invalid settings or data has the name of the field."""
    with pytest.raises(InvalidInput) as caught:
        call(tmp_path / "checkpoint")
    assert caught.value.field == field


def test_discard_deletes_an_existing_or_missing_checkpoint(tmp_path: Path) -> None:
    """Discarding deletes the file, and does nothing if it is missing."""
    file = tmp_path / "checkpoint"
    checkpoints.save(file, "run", {"epoch": 1})
    assert checkpoints.load(file, "run") == {"epoch": 1}
    checkpoints.discard(file)
    checkpoints.discard(file)
    assert checkpoints.load(file, "run") is None


def _die(checkpoint: Path, step: int, write: int) -> None:
    """Run, and kill this process at training step ``step`` or in the ``write``-th fsync."""

    def die_at(done: int, _: int) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    fsync, syncs = os.fsync, iter(range(1, 1000))

    def die_in(descriptor: int) -> None:
        if next(syncs) == write:
            os.ftruncate(descriptor, 1000)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", die_in)
        patch.setattr(finetuning, "available_cores", lambda: 1)
        run(checkpoint, on_progress=die_at)


if __name__ == "__main__":
    _die(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
