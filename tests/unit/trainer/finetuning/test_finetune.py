"""A backbone learns, too: never for the worse, and through every crash to the same result."""

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
from topwork_trainer.finetuning import checkpoints
from topwork_trainer.finetuning import finetune as finetuning
from topwork_trainer.finetuning.finetune import FinetuneResult, finetune
from topwork_trainer.finetuning.settings import Diverged, FinetuneConfig, LinearHead

LABELS = ("amber", "blue", "crimson", "green", "violet")
CONFIG = FinetuneConfig(unfreeze="all", epochs=3, batch=8, rate=1e-2, head_rate=1e-2)
STEPS = 5
"""Of an epoch: 40 images."""


class Small(nn.Module):
    """Two stages with normalisation, and dropout that training must not switch on."""

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
    given: TorchBackbone | None = None,
    train: list[ImageSource] = TRAIN,
    start: LinearHead | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> FinetuneResult:
    return finetune(
        given or backbone(),
        train,
        VALIDATION,
        start or head(),
        LABELS,
        config,
        checkpoint=checkpoint,
        on_progress=on_progress,
    )


def numbers(result: FinetuneResult) -> dict[str, bytes]:
    """Return every number of a result but for the seconds, for exact comparison."""
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
    """One thread: two that wait for each other on busy cores take ten times as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "available_cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """Return what an uninterrupted run gives."""
    return run(tmp_path_factory.mktemp("whole") / "checkpoint")


def test_what_is_learnt_shows(whole: FinetuneResult) -> None:
    """From a random head the right answers rise well above chance."""
    assert whole.history[0].accuracy < 0.5
    assert whole.best.accuracy > 0.7
    assert [epoch.epoch for epoch in whole.history] == [0, 1, 2, 3]
    assert whole.best == min(whole.history, key=lambda epoch: epoch.loss)


def test_epoch_0_is_the_frozen_start(whole: FinetuneResult) -> None:
    """The first entry of the history is the given head on the given backbone, as served."""
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


def test_the_result_is_the_best_epoch(whole: FinetuneResult, tmp_path: Path) -> None:
    """The returned weights give the validation numbers that are said to be the best."""
    frozen = dataclasses.replace(CONFIG, unfreeze="none")
    again = run(tmp_path / "checkpoint", frozen, given=whole.backbone, start=whole.head)
    assert (again.best.accuracy, again.best.loss) == (whole.best.accuracy, whole.best.loss)
    assert len(again.history) == 1


def test_the_module_comes_back_as_it_was_lent(whole: FinetuneResult) -> None:
    """Afterwards the module is in eval mode, frozen, without gradients, and no longer reordered."""
    module = whole.backbone.module
    assert not any(part.training for part in module.modules())
    assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
    assert all(p.is_contiguous() for p in module.parameters())


def test_a_tuned_backbone_is_another_backbone(whole: FinetuneResult) -> None:
    """Its identity differs from the start's, and says which weights it has."""
    assert whole.backbone.identity != backbone().identity
    assert whole.backbone.weights_sha256 in whole.backbone.identity
    assert whole.unfrozen == ("features.4", "features.0")


def test_the_result_can_be_exported(whole: FinetuneResult) -> None:
    """ONNX Runtime computes what the tuned module does."""

    def open_session(model: bytes) -> Callable[..., np.ndarray]:
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        return lambda images: np.asarray(session.run(["embedding"], {"image": images})[0])

    assert export(whole.backbone, open_session=open_session).parity.min_cosine > 0.99999


def test_only_what_is_thawed_changes(tmp_path: Path) -> None:
    """With ``last:1`` the lower stage keeps its weights, and no stage's statistics ever move."""
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


def test_a_run_is_a_function_of_its_arguments(whole: FinetuneResult, tmp_path: Path) -> None:
    """The same arguments give the same numbers, to the last bit; another seed gives others."""
    assert numbers(run(tmp_path / "a")) == numbers(whole)
    assert numbers(run(tmp_path / "b", dataclasses.replace(CONFIG, seed=1))) != numbers(whole)


def test_nothing_global_changes(tmp_path: Path) -> None:
    """Torch's generator and thread count are afterwards what they were."""
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        run(tmp_path / "checkpoint", dataclasses.replace(CONFIG, epochs=1))
        assert torch.get_num_threads() == 1
        assert torch.equal(torch.get_rng_state(), generator)
    finally:
        torch.set_num_threads(threads)


def test_training_that_only_harms_gives_the_start(tmp_path: Path) -> None:
    """If no epoch is better than the start, the result has the start's weights."""
    good = run(tmp_path / "good", train=sources(0, 16))
    before = {k: v.clone() for k, v in good.backbone.module.state_dict().items()}
    wild = dataclasses.replace(CONFIG, rate=30.0, head_rate=30.0)
    result = run(tmp_path / "wild", wild, given=good.backbone, start=good.head)
    assert result.best.epoch == 0
    assert all(torch.equal(v, before[k]) for k, v in result.backbone.module.state_dict().items())
    assert np.array_equal(result.head.weights, good.head.weights)
    assert result.history[-1].accuracy < result.best.accuracy


def test_training_ends_when_nothing_improves(tmp_path: Path) -> None:
    """After ``patience`` epochs without a better one there are no more; progress is full."""
    seen: list[tuple[int, int]] = []
    wild = dataclasses.replace(CONFIG, rate=30.0, head_rate=30.0, epochs=20, patience=2)
    good = run(tmp_path / "good", train=sources(0, 16))
    result = run(
        tmp_path / "wild",
        wild,
        given=good.backbone,
        start=good.head,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert len(result.history) - 1 == result.best.epoch + 2
    assert seen[-1] == (100, 100)


def test_progress_counts_every_step(tmp_path: Path) -> None:
    """Progress rises step by step to the total."""
    seen: list[tuple[int, int]] = []
    run(tmp_path / "checkpoint", on_progress=lambda done, total: seen.append((done, total)))
    assert seen[:-1] == [(step, 3 * STEPS) for step in range(1, 3 * STEPS + 1)]
    assert seen[-1] == (3 * STEPS, 3 * STEPS)


def child(checkpoint: Path, *, step: int, write: int) -> int:
    """Run in a process that kills itself, at a step or in its nth write; return its status."""
    command = [sys.executable, __file__, str(checkpoint), str(step), str(write)]
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode


@pytest.mark.parametrize(
    ("step", "write"), [(STEPS + 2, 0), (0, 3)], ids=["in an epoch", "in a write"]
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    whole: FinetuneResult, tmp_path: Path, step: int, write: int
) -> None:
    """After kill -9, in an epoch or in the middle of a write, a rerun gives the same bits."""
    checkpoint = tmp_path / "checkpoint"
    assert child(checkpoint, step=step, write=write) == -signal.SIGKILL
    seen: list[int] = []
    resumed = run(checkpoint, on_progress=lambda done, _: seen.append(done))
    assert seen[0] == STEPS + 1
    assert numbers(resumed) == numbers(whole)


def test_a_finished_run_is_not_run_again(whole: FinetuneResult, tmp_path: Path) -> None:
    """As long as its checkpoint is there, a rerun costs no step."""
    run(tmp_path / "checkpoint")
    seen: list[int] = []
    again = run(tmp_path / "checkpoint", on_progress=lambda done, _: seen.append(done))
    assert seen == [3 * STEPS]
    assert numbers(again) == numbers(whole)


def test_the_checkpoint_of_another_run_is_not_used(tmp_path: Path) -> None:
    """Another seed, image, label of an image, head or backbone: training starts anew."""
    run(tmp_path / "checkpoint", dataclasses.replace(CONFIG, epochs=1))
    left = (tmp_path / "checkpoint").read_bytes()
    relabelled = [dataclasses.replace(TRAIN[0], label=LABELS[1]), *TRAIN[1:]]
    changed = [dataclasses.replace(TRAIN[0], read=TRAIN[5].read), *TRAIN[1:]]
    other = backbone()
    other.module.get_parameter("features.0.bias").data += 1e-3
    one = functools.partial(run, tmp_path / "checkpoint", dataclasses.replace(CONFIG, epochs=1))
    for start in (
        functools.partial(run, tmp_path / "checkpoint", dataclasses.replace(CONFIG, seed=1)),
        functools.partial(one, train=relabelled),
        functools.partial(one, train=changed),
        functools.partial(one, start=head(scale=2.0)),
        functools.partial(one, given=other),
    ):
        (tmp_path / "checkpoint").write_bytes(left)
        seen: list[int] = []
        start(on_progress=lambda done, _, seen=seen: seen.append(done))
        assert seen[0] == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_not_used(
    whole: FinetuneResult, tmp_path: Path, damage: str
) -> None:
    """A checkpoint that is not as it was written is as good as none."""
    file = tmp_path / "checkpoint"
    run(file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes({"cut": content[:-50], "flipped": content, "empty": b""}[damage]))
    seen: list[int] = []
    assert numbers(run(file, on_progress=lambda done, _: seen.append(done))) == numbers(whole)
    assert seen[0] == 1


def test_divergence_is_an_error_that_leaves_no_checkpoint(tmp_path: Path) -> None:
    """A loss that is no number ends the run with the place and the rate, and nothing to resume."""
    given, config = backbone(), dataclasses.replace(CONFIG, rate=1e9, head_rate=1e9)
    before = {name: value.clone() for name, value in given.module.state_dict().items()}
    with pytest.raises(Diverged, match=r"epoch 1, step \d of 5, at learning rate .*e\+") as caught:
        run(tmp_path / "checkpoint", config, given=given)
    assert "try" in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(v, before[k]) for k, v in given.module.state_dict().items())
    assert not any(p.requires_grad for p in given.module.parameters())


def test_a_later_divergence_deletes_the_earlier_checkpoint(tmp_path: Path) -> None:
    """What would lead to the same end again is not kept."""
    given = backbone()

    def poison(done: int, _: int) -> None:
        if done == STEPS + 1:
            assert (tmp_path / "checkpoint").exists()
            given.module.get_parameter("features.4.weight").data[:] = float("nan")

    with pytest.raises(Diverged, match="epoch 2, step 2 of 5"):
        run(tmp_path / "checkpoint", given=given, on_progress=poison)
    assert not list(tmp_path.iterdir())


def test_a_head_of_nan_is_refused_before_any_step(tmp_path: Path) -> None:
    """The start is judged, too: its loss must be a number."""
    broken = LinearHead(weights=np.full((5, 16), np.nan, np.float32), bias=head().bias)
    with pytest.raises(Diverged, match="epoch 0"):
        run(tmp_path / "checkpoint", start=broken)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    """An image that was spoilt since it was checked ends the run with its name."""

    def gone() -> bytes:
        raise FileNotFoundError("no such file")

    for read, reason in ((gone, "no such file"), (lambda: b"GIF89a", "6 bytes")):
        spoilt = ImageSource(name="amber/spoilt.png", label="amber", read=read)
        with pytest.raises(InvalidInput, match=rf"amber/spoilt.png cannot be read: .*{reason}"):
            run(tmp_path / "checkpoint", train=[*TRAIN, spoilt])


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
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, field: str, call: Callable[[Path], object]
) -> None:
    """Settings and data that cannot work are refused, with the field's name."""
    with pytest.raises(InvalidInput) as caught:
        call(tmp_path / "checkpoint")
    assert caught.value.field == field


def test_a_checkpoint_is_discarded_once_or_twice(tmp_path: Path) -> None:
    """Discarding deletes the file; there need be none."""
    file = tmp_path / "checkpoint"
    checkpoints.save(file, "run", {"epoch": 1})
    assert checkpoints.load(file, "run") == {"epoch": 1}
    checkpoints.discard(file)
    checkpoints.discard(file)
    assert checkpoints.load(file, "run") is None


def _die(checkpoint: Path, step: int, write: int) -> None:
    """Run, and be killed at training step ``step``, or in the ``write``-th sync of a file."""

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
